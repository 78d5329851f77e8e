"""Held-out figures of a student, at T = 1 and with fixed masks, so that they mean the same in every run."""

import numpy as np
import torch
import torch.distributed as dist

from distil_ray.data.batch import Arrays, to_device
from distil_ray.distillation.figures import NUM_FIGURES, figure_sums
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
        models = [student] if teacher is None else [teacher, student]
        sums = torch.zeros(len(models), NUM_FIGURES, dtype=torch.float64, device=self._device)
        num_rows = len(self._rows["group"])
        student.train(False)
        for start in range(0, num_rows, self._batch_size):
            batch = to_device(self._rows, start, min(start + self._batch_size, num_rows), self._device)
            with learner.autocast():
                sums += figure_sums(models, batch)
        student.train()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        means = (sums / self._num_targets).tolist()
        if teacher is None:
            return dict(zip(_STUDENT, means[0][:2], strict=True))
        if not self._teacher_figures:
            self._teacher_figures = dict(zip(_TEACHER, means[0][:2], strict=True))
        return dict(zip(_STUDENT + _AGAINST_TEACHER, means[1], strict=True)) | self._teacher_figures
