"""Held-out figures of a student, at T = 1 and with fixed masks, so that they mean the same in every run.

Shapes: B rows, K masked positions a row, N = B·K selected positions, V pieces.
"""

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedModel

from distil_ray.data.batch import Arrays, Batch, to_device
from distil_ray.distillation.models import encode, predict
from distil_ray.training.learner import Learner

_STUDENT = ("eval/mlm_loss", "eval/mlm_accuracy")
_AGAINST_TEACHER = ("eval/kl_to_teacher", "eval/teacher_agreement")
_TEACHER = ("eval/teacher_mlm_loss", "eval/teacher_mlm_accuracy")


class HeldOut:
    """Evaluates on rows that stay in memory; each worker takes its share and the sums are added up."""

    def __init__(self, rows: Arrays, *, rank: int, world_size: int, batch_size: int, device: torch.device) -> None:
        """``rows``: the arrays of `data.batch`; without any, there is nothing to evaluate."""
        self._num_targets = rows["masked_labels"].size if rows else 0
        self._rows = {name: np.ascontiguousarray(values[rank::world_size]) for name, values in rows.items()}
        self._batch_size = batch_size
        self._device = device
        self._teacher_figures: dict[str, float] = {}

    @torch.no_grad()
    def evaluate(self, learner: Learner) -> dict[str, float]:
        """Return the metrics ``eval/…``: means over all masked positions of all workers. A collective call."""
        if not self._num_targets:
            return {}
        teacher, student = learner.teacher, learner.student
        names = _STUDENT + (_AGAINST_TEACHER if teacher is not None else ())
        if teacher is not None and not self._teacher_figures:
            names += _TEACHER
        sums = torch.zeros(len(names), dtype=torch.float64, device=self._device)
        num_rows = len(self._rows["group"])
        student.train(False)
        for start in range(0, num_rows, self._batch_size):
            batch = to_device(self._rows, start, min(start + self._batch_size, num_rows), self._device)
            with learner.autocast():
                sums += _sums(batch, student, teacher)[: len(names)]
        student.train()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        figures = dict(zip(names, (sums / self._num_targets).tolist(), strict=True))
        self._teacher_figures |= {name: figures[name] for name in _TEACHER if name in figures}
        return figures | self._teacher_figures


def _sums(batch: Batch, student: PreTrainedModel, teacher: PreTrainedModel | None) -> torch.Tensor:
    labels = batch.masked_labels.flatten()
    logits = _masked_logits(student, batch)
    figures = [*_mlm_sums(logits, labels)]
    if teacher is not None:
        teacher_logits = _masked_logits(teacher, batch)
        kl = F.kl_div(logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True, reduction="sum")
        agreement = (logits.argmax(-1) == teacher_logits.argmax(-1)).sum()
        figures += [kl, agreement, *_mlm_sums(teacher_logits, labels)]
    return torch.stack([figure.double() for figure in figures])


def _masked_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """fp32 logits ``[N, V]`` at the masked positions."""
    hidden = encode(model, batch.input_ids)
    index = batch.masked_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    return predict(model, hidden.gather(1, index).flatten(0, 1)).float()


def _mlm_sums(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) == labels).sum()
