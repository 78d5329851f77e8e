"""One update of the student: micro-batches, losses, and the optimizer's step."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from distil_ray.data.batch import to_device
from distil_ray.data.hashing import stream_key
from distil_ray.data.masking import num_masked_positions
from distil_ray.distillation.distiller import Compared
from distil_ray.distillation.intermediate import IntermediateTerm
from distil_ray.models.attention import Attention, describe_attention
from distil_ray.models.flops import flops_per_token
from distil_ray.models.host_memory import keep_freed_memory
from distil_ray.models.precision import DTYPES, Precision, autocast, to_precision, use_autocast_layer_norms
from distil_ray.models.processor import fast_on_processor
from distil_ray.training.meter import Meter
from distil_ray.training.objective import build_distiller, counts_of, shares_of
from distil_ray.training.optimizer import Optimizer, learning_rate_factor

if TYPE_CHECKING:  # the learner can be timed where only torch and transformers are
    from distil_ray.config import Config
    from distil_ray.training.checkpoint import Tensors
    from distil_ray.training.feed import StepRows


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
        keep_freed_memory(device)
        self.teacher, self.student = teacher, student
        self._distiller = distiller = build_distiller(config, teacher, student).to(device).train()
        if teacher is not None:
            to_precision(teacher, device, precision)
            teacher.train(False)
        if precision != "fp32" and device.type == "cuda":
            for model in filter(None, (teacher, student)):
                use_autocast_layer_norms(model)
        self._shares, self._counts = shares_of(config), counts_of(config)
        self._losses = torch.compile(distiller, fullgraph=True, dynamic=False) if config.runtime.compile else distiller
        self._trained = distiller.trained()
        self._optimizer = Optimizer(
            self._trained,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            max_grad_norm=config.optim.max_grad_norm,
            precision=precision,
        )

    def new_meter(self, world_size: int) -> Meter:
        """A meter of what this learner's updates add up to."""
        config = self._config
        return Meter(
            self._shares,
            self._counts,
            tokens_per_step=config.tokens_per_step,
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

    @property
    def intermediate_terms(self) -> Sequence[IntermediateTerm]:
        """The losses that `compare` returns."""
        return self._distiller.intermediate_terms

    def compare(self, input_ids: torch.Tensor) -> Compared:
        """See `Distiller.compare`."""
        return self._distiller.compare(input_ids)

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
        self._optimizer.zero_grad()
        for block in rows.blocks:
            for start in range(0, self._block_rows, self._micro_batch_size):
                micro_batch = (block.index * self._block_rows + start) // self._micro_batch_size
                self._seed_dropout(step, micro_batch)
                batch = to_device(block.rows, start, start + self._micro_batch_size, self.device)
                with self.autocast(), self._fast():
                    loss, sums = self._losses(*batch, self._optimizer.loss_scale)
                loss.backward()
                meter.add_terms(sums)
        meter.add_step(rows.wait_seconds)
        return self._optimizer.step(learning_rate), learning_rate

    def _fast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._config.runtime.compile else fast_on_processor(self.device)

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
            "student": dict(self._trained),
            "optimizer": self._optimizer.tensors(),
        }

    def load(self, parts: "Mapping[str, Tensors]") -> None:
        """Go back to what `tensors` returned."""
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(parts["student"][name])
        self._optimizer.load(parts["optimizer"])
