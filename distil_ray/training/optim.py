"""The optimizer, its schedule, and the gradients as one flat buffer."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from distil_ray.training.checkpoint import Tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split trainable parameters: no decay for biases and for LayerNorm, which is told by its type, not its name."""
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.LayerNorm) or name == "bias"
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in exempt], "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, *, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with the fused kernel, which CPU and CUDA both have."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)


def learning_rate_factor(progress: float, schedule: str, warmup_fraction: float) -> float:
    """Share of the peak learning rate at ``progress`` in [0, 1): linear warmup from 0, then ``schedule`` down to 0.

    Args:
        progress: share of the training that lies behind.
        schedule: ``linear``, ``cosine`` or ``constant``.
        warmup_fraction: share of the training that warms up.
    """
    if progress < warmup_fraction:
        return progress / warmup_fraction
    if schedule == "constant":
        return 1.0
    remaining = (1.0 - progress) / (1.0 - warmup_fraction)
    return remaining if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * remaining))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class FlatGradients:
    """All gradients in one fp32 buffer of fixed layout, of which every ``parameter.grad`` is a view.

    One all-reduce a step sums them over the workers. The layout never changes, so neither does the order of the sums,
    before or after a resume.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        trainable = [p for p in parameters if p.requires_grad]
        self.buffer = torch.zeros(sum(p.numel() for p in trainable), device=trainable[0].device)
        offset = 0
        for parameter in trainable:
            parameter.grad = self.buffer[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()

    def zero(self) -> None:
        """Start the next step's sum."""
        self.buffer.zero_()

    def all_reduce(self) -> None:
        """Sum over all workers."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.buffer)

    def clip(self, max_norm: float) -> float:
        """Scale down to norm ``max_norm`` if it is larger; return the norm before. Waits for the device."""
        norm: float = torch.linalg.vector_norm(self.buffer).item()
        if max_norm < norm < math.inf:
            self.buffer.mul_(max_norm / norm)
        return norm


def optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module) -> Tensors:
    """The optimizer's state, ``<parameter name>.<moment>`` and the count of updates of each."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module, tensors: Tensors) -> None:
    """Inverse of `optimizer_tensors`. State stays empty where none was saved (no update was done yet)."""
    for name, parameter in model.named_parameters():
        if f"{name}.step" in tensors:
            optimizer.state[parameter] = {
                "step": tensors[f"{name}.step"].to(parameter.device),
                **{key: tensors[f"{name}.{key}"].to(parameter.device) for key in _MOMENTS},
            }
