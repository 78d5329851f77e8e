"""The number format of matrix products: what is fastest on a device, what all workers can use, how it is applied."""

import statistics
import time
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distil_ray.models.threads import using_threads

Precision = Literal["fp32", "fp16", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_MIN_SPEEDUP = 1.25  # of bf16 on a processor: below, its rounding is not worth it, nor a choice that noise can turn
_NUM_TRIALS = 15


def fastest_precision(device: torch.device) -> Precision:
    """Return bf16 where the hardware multiplies it fast, else fp16 on a GPU and fp32 on a processor.

    A processor is tried: of those with instructions for bf16 (AVX-512 BF16, AMX, SVE), some take longer with it than
    with fp32. The trial takes some milliseconds, and up to a second where bf16 is emulated.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _speedup(torch.bfloat16) >= _MIN_SPEEDUP else "fp32"


def common_precision(precisions: Collection[Precision]) -> Precision:
    """Return one for all workers: the one with the most bits that any of them would take by itself."""
    return min(precisions, key=lambda precision: torch.finfo(DTYPES[precision]).eps)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Let matrix products have this format, whatever the format of the weights."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def to_precision(model: nn.Module, device: torch.device, precision: Precision) -> None:
    """Move a model and give its parameters this format, in place; its buffers keep theirs.

    With rotary frequencies in bf16, which has eight digits, a few hundred positions would be off by a radian.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, DTYPES[precision])
    model.to(device)


class AutocastLayerNorm(nn.LayerNorm):
    """Under autocast, takes and returns its format, with statistics in fp32; without it, `nn.LayerNorm`.

    PyTorch's own returns fp32 under autocast on a GPU, and makes fp32 of everything that is added to it: of all that
    passes from layer to layer, which takes twice the time to move.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] in any floating dtype."""
        device = hidden.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(hidden)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (self.weight, self.bias))
            return F.layer_norm(hidden.to(dtype), self.normalized_shape, weight, bias, self.eps)


def use_autocast_layer_norms(model: nn.Module) -> None:
    """Make the model's LayerNorms `AutocastLayerNorm`s, in place; parameters and state dict stay what they are."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = AutocastLayerNorm


def _speedup(dtype: torch.dtype) -> float:
    """Time of a product of this processor in fp32, divided by that in ``dtype``: the median of several pairs.

    CPU time of one thread: by the clock, other work on a busy machine could decide; and so it could by the time of
    several threads, which wait for each other by spinning.
    """
    factors = [(torch.ones(256, 512, dtype=one), torch.ones(512, 512, dtype=one)) for one in (torch.float32, dtype)]
    ratios = []
    with using_threads(1):
        for _ in range(_NUM_TRIALS):
            times = [time.thread_time()]
            for left, right in factors:
                left @ right
                times.append(time.thread_time())
            ratios.append((times[1] - times[0]) / max(times[2] - times[1], 1e-9))
    return statistics.median(ratios)
