"""The number format of matrix products: what is fastest on a device, what all workers can use, how it is applied."""

import time
from collections.abc import Collection
from typing import Literal

import torch

Precision = Literal["fp32", "fp16", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_MIN_SPEEDUP = 1.25  # of bf16 on a processor: below, its rounding is not worth it, nor a choice that noise can turn
_NUM_TRIALS = 7


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


def _speedup(dtype: torch.dtype) -> float:
    """Time of a product of this processor in fp32, divided by that in ``dtype``; the shortest of several each."""
    factors = {
        one: (torch.ones(256, 512, dtype=one), torch.ones(512, 512, dtype=one)) for one in (torch.float32, dtype)
    }
    shortest = dict.fromkeys(factors, float("inf"))
    for _ in range(_NUM_TRIALS):
        for one, (left, right) in factors.items():  # in turns, so that other load slows down both
            began = time.perf_counter()
            left @ right
            shortest[one] = min(shortest[one], time.perf_counter() - began)
    return shortest[torch.float32] / shortest[dtype]
