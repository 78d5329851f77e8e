"""One update: micro-batches, losses, the flat gradient, its all-reduce, clipping, AdamW and its schedule."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from distil_ray.data.batch import to_device
from distil_ray.data.hashing import stream_key
from distil_ray.data.masking import num_masked_positions
from distil_ray.models.attention import Attention, describe_attention
from distil_ray.models.flops import flops_per_token
from distil_ray.models.precision import DTYPES, Precision, autocast, use_autocast_layer_norms
from distil_ray.training.meter import Meter
from distil_ray.training.objective import build_distiller, counts_of, shares_of

if TYPE_CHECKING:  # the learner can be timed where only torch and transformers are
    from distil_ray.config import Config
    from distil_ray.training.checkpoint import Checkpoint, Tensors
    from distil_ray.training.feed import StepRows

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LOSS_SCALE = "loss_scale"  # its name among the optimizer's tensors


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


def optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module) -> "Tensors":
    """The optimizer's state, ``<parameter name>.<moment>`` and the count of updates of each."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.AdamW, model: nn.Module, tensors: "Tensors") -> None:
    """Inverse of `optimizer_tensors`. State stays empty where none was saved (no update was done yet)."""
    for name, parameter in model.named_parameters():
        if f"{name}.step" in tensors:
            optimizer.state[parameter] = {
                "step": tensors[f"{name}.step"].to(parameter.device),
                **{key: tensors[f"{name}.{key}"].to(parameter.device) for key in _MOMENTS},
            }


class Learner:
    """Student, teacher, losses and optimizer on one device. Equal on all workers after every update."""

    def __init__(
        self,
        config: "Config",
        teacher: PreTrainedModel | None,
        student: PreTrainedModel,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self._config = config
        self._precision = precision
        self._block_rows, self._micro_batch_size = config.block_rows, config.micro_batch_size
        self.device = device
        self.teacher, self.student = teacher, student
        distiller = build_distiller(config, teacher, student).to(device).train()
        if teacher is not None:
            nn.Module.to(teacher, device, DTYPES[precision]).train(False)
        if precision != "fp32" and device.type == "cuda":
            for model in filter(None, (teacher, student)):
                use_autocast_layer_norms(model)
        self._shares, self._counts = shares_of(config), counts_of(config)
        self._losses = torch.compile(distiller, fullgraph=True, dynamic=False) if config.runtime.compile else distiller
        self._optimizer = build_optimizer(
            self.student,
            learning_rate=config.optim.learning_rate,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
        )
        self._gradients = FlatGradients(self.student.parameters())
        self._loss_scale = LossScale(device, is_active=precision == "fp16")

    def new_meter(self, world_size: int) -> Meter:
        """A meter of what this learner's updates add up to."""
        config = self._config
        return Meter(
            self._shares,
            self._counts,
            tokens_per_step=config.optim.global_batch_size * config.data.max_seq_length,
            world_size=world_size,
            device=self.device,
            flops_per_token=flops_per_token(
                None if self.teacher is None else self.teacher.config,
                self.student.config,
                max_seq_length=config.data.max_seq_length,
                num_masked=num_masked_positions(config.data.max_seq_length, config.data.mlm_probability),
                ce_positions=config.distill.ce_positions,
                terms=self._shares,
            ),
        )

    def describe_attention(self) -> str:
        """Say in a line which implementation of attention teacher and student get."""
        models = {"student": Attention.of(self.student, is_trained=True)}
        if self.teacher is not None:
            models["teacher"] = Attention.of(self.teacher, is_trained=False)
        return describe_attention(models, self._config.data.max_seq_length, DTYPES[self._precision], self.device)

    def autocast(self) -> torch.autocast:
        """The precision of the matrix products."""
        return autocast(self.device, self._precision)

    def update(self, rows: "StepRows", step: int, progress: float, meter: Meter) -> tuple[torch.Tensor, float]:
        """Update the student once; with a gradient that is not finite, leave it as it is. A collective call.

        Does not wait for the device.

        Args:
            rows: this worker's blocks of the step.
            step: number of the update, from 0: names its dropout.
            progress: share of the training that is done: decides the learning rate.
            meter: gets the raw loss sums and the time waited for the rows.

        Returns:
            (L2 norm of the gradient before clipping, an fp32 scalar on the device; learning rate).
        """
        config = self._config
        learning_rate = config.optim.learning_rate * learning_rate_factor(
            progress, config.optim.lr_schedule, config.optim.warmup_fraction
        )
        self._gradients.zero()
        for block in rows.blocks:
            for start in range(0, self._block_rows, self._micro_batch_size):
                micro_batch = (block.index * self._block_rows + start) // self._micro_batch_size
                self._seed_dropout(step, micro_batch)
                batch = to_device(block.rows, start, start + self._micro_batch_size, self.device)
                with self.autocast():
                    loss, sums = self._losses(*batch, self._loss_scale.factor)
                loss.backward()
                meter.add_terms(sums)
        meter.add_step(rows.wait_seconds)
        self._gradients.all_reduce()
        norm = self._gradients.norm() / self._loss_scale.factor
        set_learning_rate(self._optimizer, learning_rate)
        self._step(norm)
        return norm, learning_rate

    def _step(self, norm: torch.Tensor) -> None:
        """Clip and update, or do nothing if the norm is not finite: the device decides.

        The fused kernel divides gradients by `grad_scale`, and leaves weights and moments alone if `found_inf` is not
        0: two attributes that `torch.amp.GradScaler` sets, too.
        """
        is_finite = torch.isfinite(norm)
        excess = (norm / self._config.optim.max_grad_norm).clamp(min=1.0)
        optimizer: Any = self._optimizer
        optimizer.grad_scale = self._loss_scale.factor * excess
        optimizer.found_inf = (~is_finite).float()
        optimizer.step()
        self._loss_scale.update(is_finite)

    def _seed_dropout(self, step: int, micro_batch: int) -> None:
        """Draws depend on the place in the run alone: there is no generator state to save, nor one per worker."""
        key = stream_key(self._config.run.seed, "dropout", step, micro_batch)
        # torch.manual_seed would take milliseconds for accelerators that are not there.
        torch.default_generator.manual_seed(int(key >> 1))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(int(key >> 1))

    def tensors(self) -> "dict[str, Tensors]":
        """Everything that a checkpoint must hold, by part. Never the teacher."""
        return {
            "student": dict(self.student.named_parameters()),
            "optimizer": optimizer_tensors(self._optimizer, self.student) | self._loss_scale.tensors(),
        }

    def restore(self, checkpoint: "Checkpoint") -> None:
        """Go back to what `tensors` returned when the checkpoint was saved."""
        parameters = checkpoint.load("student")
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                parameter.copy_(parameters[name])
        tensors = checkpoint.load("optimizer")
        load_optimizer_tensors(self._optimizer, self.student, tensors)
        self._loss_scale.load(tensors)
