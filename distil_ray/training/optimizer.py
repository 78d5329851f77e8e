"""The optimizer: AdamW, its schedule, one flat gradient, clipping, and the scale of the loss with fp16.

Nothing here waits for the device.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from distil_ray.models.precision import Precision

if TYPE_CHECKING:  # an update can be timed where only torch and transformers are
    from distil_ray.training.checkpoint import Tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LOSS_SCALE = "loss_scale"  # its name among the optimizer's tensors


Parameters = Mapping[str, nn.Parameter]
"""By name."""


def parameter_groups(parameters: Parameters, weight_decay: float) -> list[dict[str, object]]:
    """Split trainable parameters: no decay for biases and for norms of any class, the parameters of one dimension."""
    trainable = [parameter for parameter in parameters.values() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]


def build_adamw(
    parameters: Parameters, *, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with the fused kernel, which CPU and CUDA have. Its learning rate is 0."""
    return torch.optim.AdamW(parameter_groups(parameters, weight_decay), lr=0.0, betas=betas, eps=eps, fused=True)


def learning_rate_factor(progress: float, schedule: str, warmup_fraction: float) -> float:
    """Share of the peak learning rate at ``progress`` in [0, 1): linear warmup from 0, then ``schedule`` down to 0.

    Args:
        progress: share of the training that is done.
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

    One all-reduce per step sums them over the workers. The layout never changes, so neither does the order of the sums,
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

    def norm(self) -> torch.Tensor:
        """L2 norm of the whole gradient, an fp32 scalar. Does not wait for the device."""
        norm: torch.Tensor = torch.linalg.vector_norm(self.buffer)
        return norm


class LossScale:
    """A factor on the loss that keeps gradients within fp16's range (Micikevicius et al. 2018, arXiv 1710.03740).

    Doubled after GROWTH_INTERVAL finite steps in a row, halved when a step's gradient is not finite, like
    `torch.amp.GradScaler`'s, but a tensor that nobody reads: its device need not be waited for.
    """

    INITIAL = 2.0**16
    GROWTH_INTERVAL = 2000

    def __init__(self, device: torch.device, *, is_active: bool) -> None:
        self._is_active = is_active
        # [2]: the factor, and the number of finite steps since it last changed
        self._state = torch.tensor([self.INITIAL if is_active else 1.0, 0.0], device=device)

    @property
    def factor(self) -> torch.Tensor:
        """[] fp32; 1 if the scale is not active."""
        return self._state[0]

    def tensors(self) -> "Tensors":
        """What a checkpoint must hold: nothing if the scale is not active."""
        return {_LOSS_SCALE: self._state} if self._is_active else {}

    def load(self, tensors: "Tensors") -> None:
        """Inverse of `tensors`; begins anew where none was saved."""
        if self._is_active and _LOSS_SCALE in tensors:
            self._state = tensors[_LOSS_SCALE].to(self._state.device)

    def update(self, is_finite: torch.Tensor) -> None:
        """Prepare for the next step. ``is_finite``: whether this step's gradient was, a bool scalar."""
        if not self._is_active:
            return
        factor, num_finite = self._state
        num_finite = num_finite + 1
        grows = num_finite >= self.GROWTH_INTERVAL
        grown = torch.where(grows, factor * 2, factor)
        self._state = torch.stack(
            (
                torch.where(is_finite, grown, factor / 2),
                torch.where(is_finite & ~grows, num_finite, torch.zeros_like(num_finite)),
            )
        )


def optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Parameters) -> "Tensors":
    """The optimizer's state, ``<parameter name>.<moment>`` and the count of updates of each."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        f"{names[id(parameter)]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Parameters, tensors: "Tensors") -> None:
    """Inverse of `optimizer_tensors`. State stays empty where none was saved (no update was done yet)."""
    for name, parameter in parameters.items():
        if f"{name}.step" in tensors:
            optimizer.state[parameter] = {
                "step": tensors[f"{name}.step"].to(parameter.device),
                **{key: tensors[f"{name}.{key}"].to(parameter.device) for key in _MOMENTS},
            }


class Optimizer:
    """AdamW, with what surrounds it. All workers that call it have equal parameters after every step."""

    def __init__(
        self,
        parameters: Parameters,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float,
        max_grad_norm: float,
        precision: Precision,
    ) -> None:
        """``max_grad_norm``: L2 norm to which the whole gradient is clipped; ``precision``: of the matrix products."""
        self._parameters = parameters
        self._max_grad_norm = max_grad_norm
        self._adamw = build_adamw(parameters, betas=betas, eps=eps, weight_decay=weight_decay)
        self._gradients = FlatGradients(parameters.values())
        self._loss_scale = LossScale(self._gradients.buffer.device, is_active=precision == "fp16")

    def zero_grad(self) -> None:
        """Begin a step."""
        self._gradients.zero()

    @property
    def loss_scale(self) -> torch.Tensor:
        """What to multiply the step's loss by before its backward passes, an fp32 scalar."""
        return self._loss_scale.factor

    def step(self, learning_rate: float) -> torch.Tensor:
        """Add the gradients of all workers, clip and update; with a norm that is not finite, change nothing.

        The device decides: the fused kernel divides gradients by `grad_scale`, and leaves weights and moments alone if
        `found_inf` is not 0, two attributes that `torch.amp.GradScaler` sets, too.

        Returns:
            L2 norm of the gradient before clipping, an fp32 scalar on the device.
        """
        self._gradients.all_reduce()
        norm = self._gradients.norm() / self._loss_scale.factor
        is_finite = torch.isfinite(norm)
        adamw: Any = self._adamw
        adamw.grad_scale = self._loss_scale.factor * (norm / self._max_grad_norm).clamp(min=1.0)
        adamw.found_inf = (~is_finite).float()
        set_learning_rate(adamw, learning_rate)
        adamw.step()
        self._loss_scale.update(is_finite)
        return norm

    def tensors(self) -> "Tensors":
        """Its state by name, for a checkpoint."""
        return optimizer_tensors(self._adamw, self._parameters) | self._loss_scale.tensors()

    def load(self, tensors: "Tensors") -> None:
        """Inverse of `tensors`."""
        load_optimizer_tensors(self._adamw, self._parameters, tensors)
        self._loss_scale.load(tensors)
