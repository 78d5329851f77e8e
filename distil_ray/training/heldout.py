"""Held-out evaluation: how well models predict masked pieces, and how close they are to the teacher.

Shapes: B rows, T tokens per row, K masked positions per row, N = B·K selected positions, D width, M models, V pieces.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from distil_ray.data.batch import Arrays, Batch, to_device
from distil_ray.distillation.intermediate import IntermediateTerm
from distil_ray.models.families import has_head
from distil_ray.models.loading import encode, predict
from distil_ray.training.learner import Learner
from distil_ray.training.world import World

NUM_FIGURES = 4

MAX_HIDDEN = 2**27
"""Numbers of the teacher's hidden states that are kept for the next evaluation, of which they are most of the work."""

MAX_LOGITS = 2**25
"""Logits of a model that are alive at once: 128 MiB in fp32, and some five such matrices are alive with two models."""


def figure_sums(
    models: Sequence[PreTrainedModel], batch: Batch, known: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Return ``[M, NUM_FIGURES]`` float64 sums over the masked positions; the first model is the teacher.

    The columns: cross-entropy with the true piece in nats, whether that piece has the highest probability,
    KL(teacher ‖ model) in nats at T = 1, whether the model's most probable piece is the teacher's.

    Args:
        known: the last hidden states ``[N, D]`` at the masked positions, of those models that have encoded the batch.
    """
    labels = batch.masked_labels.flatten()
    hidden = [
        _at_masks(encode(model, batch.input_ids), batch) if states is None else states
        for model, states in zip(models, known or [None] * len(models), strict=True)
    ]
    num_chunks = max(1, -(-len(labels) * models[0].config.vocab_size // MAX_LOGITS))
    sums = torch.zeros(len(models), NUM_FIGURES, dtype=torch.float64, device=labels.device)
    for part, *hidden_parts in zip(*(values.tensor_split(num_chunks) for values in (labels, *hidden)), strict=True):
        sums += _chunk_sums(models, hidden_parts, part)
    return sums


def _at_masks(hidden: Tensor, batch: Batch) -> Tensor:
    """``[B, T, D]`` -> ``[N, D]``: the hidden states at the masked positions."""
    index = batch.masked_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, index).flatten(0, 1)


def _chunk_sums(models: Sequence[PreTrainedModel], hidden: Sequence[Tensor], labels: Tensor) -> Tensor:
    log_q, best = _log_probabilities(models[0], hidden[0])
    itself = (labels.new_zeros(()), labels.new_full((), len(labels)))  # a teacher's distance to itself
    rows = [_stack(*_mlm_sums(log_q, best, labels), *itself)]
    for model, states in zip(models[1:], hidden[1:], strict=True):
        log_p, guesses = _log_probabilities(model, states)
        kl = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1).double().sum()
        rows.append(_stack(*_mlm_sums(log_p, guesses, labels), kl, (guesses == best).sum()))
    return torch.stack(rows)


def _log_probabilities(model: PreTrainedModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 log-probabilities ``[N, V]``, and the most probable pieces ``[N]``."""
    logits = predict(model, hidden).float()
    return logits.log_softmax(-1), logits.argmax(-1)


def _mlm_sums(log_p: Tensor, guesses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return -log_p.gather(1, labels.unsqueeze(1)).double().sum(), (guesses == labels).sum()


def _stack(*sums: Tensor) -> Tensor:
    return torch.stack([value.double() for value in sums])


_STUDENT = ("eval/mlm_loss", "eval/mlm_accuracy")
_AGAINST_TEACHER = ("eval/kl_to_teacher", "eval/teacher_agreement")
_TEACHER = ("eval/teacher_mlm_loss", "eval/teacher_mlm_accuracy")
_INTERMEDIATE: dict[IntermediateTerm, str] = {"relations": "eval/relation_loss", "hidden": "eval/hidden_loss"}


def models_with_heads(learner: Learner) -> list[PreTrainedModel]:
    """The teacher, if it has an MLM head, and the student; none if the student has no head."""
    if not has_head(learner.student):
        return []
    teacher = learner.teacher
    return [learner.student] if teacher is None or not has_head(teacher) else [teacher, learner.student]


def batch_sums(learner: Learner, batch: Batch, teacher_hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `figure_sums` of `models_with_heads`, and sums ``[I]`` over all positions of the I `intermediate_terms`.

    Each model encodes the batch once, the teacher not even that if ``teacher_hidden`` is all that is needed.

    Args:
        teacher_hidden: the teacher's last hidden states ``[N, D]`` at the masked positions, if they are known.
    """
    models = models_with_heads(learner)
    known: list[Tensor | None] = [teacher_hidden, None]
    sums = torch.zeros(len(models), NUM_FIGURES, dtype=torch.float64, device=batch.input_ids.device)
    inner = torch.zeros(len(learner.intermediate_terms), device=batch.input_ids.device)
    with learner.autocast():
        if learner.intermediate_terms:
            compared = learner.compare(batch.input_ids)
            known = [_at_masks(hidden, batch) for hidden in (compared.teacher_hidden, compared.student_hidden)]
            inner = torch.stack([compared.sums[term] for term in learner.intermediate_terms])
        if models:
            sums = figure_sums(models, batch, known[-len(models) :])
    return sums, inner


class HeldOut:
    """Evaluates on rows that stay in memory; each worker takes its share and the sums are added up."""

    def __init__(self, rows: Arrays, world: World, batch_size: int) -> None:
        """``rows``: the arrays of `data.batch`; without any, there is nothing to evaluate."""
        self._num_targets, self._num_tokens = (
            rows[name].size if rows else 0 for name in ("masked_labels", "input_ids")
        )
        share = slice(world.rank, None, world.world_size)
        self._rows = {name: np.ascontiguousarray(values[share]) for name, values in rows.items()}
        self._batch_size = batch_size
        self._world = world
        self._teacher_figures: dict[str, float] = {}
        self._teacher_hidden: dict[int, Tensor] = {}  # by the first row of the batch

    @torch.no_grad()
    def evaluate(self, learner: Learner) -> dict[str, float]:
        """Return the metrics ``eval/…``: means over all masked positions of all workers, or over all positions for the
        losses between relations and between hidden states. What would need a head that a model has not is left out. A
        collective call.
        """
        if not self._num_targets:
            return {}
        models = models_with_heads(learner)
        teacher = models[0] if len(models) > 1 else None
        sums = torch.zeros(len(models), NUM_FIGURES, dtype=torch.float64, device=self._world.device)
        terms = learner.intermediate_terms
        inner_sums = torch.zeros(len(terms), dtype=torch.float64, device=self._world.device)
        num_rows = len(self._rows["group"])
        learner.student.train(False)
        for start in range(0, num_rows, self._batch_size):
            batch = to_device(self._rows, start, min(start + self._batch_size, num_rows), self._world.device)
            hidden = None if teacher is None or terms else self._hidden_of(learner, teacher, start, batch)
            found, inner = batch_sums(learner, batch, hidden)
            sums += found
            inner_sums += inner
        learner.student.train()
        if self._world.world_size > 1:
            dist.all_reduce(sums)
            dist.all_reduce(inner_sums)
        inner_means = (inner_sums / self._num_tokens).tolist()
        figures = {_INTERMEDIATE[term]: mean for term, mean in zip(terms, inner_means, strict=True)}
        if not models:
            return figures
        *of_teacher, of_student = (sums / self._num_targets).tolist()
        if not of_teacher:
            return dict(zip(_STUDENT, of_student[:2], strict=True)) | figures
        if not self._teacher_figures:
            self._teacher_figures = dict(zip(_TEACHER, of_teacher[0][:2], strict=True))
        return dict(zip(_STUDENT + _AGAINST_TEACHER, of_student, strict=True)) | self._teacher_figures | figures

    def _hidden_of(self, learner: Learner, teacher: PreTrainedModel, start: int, batch: Batch) -> Tensor:
        """The teacher's hidden states at the masks of the batch at row ``start``, which are the same each time."""
        if start in self._teacher_hidden:
            return self._teacher_hidden[start]
        with learner.autocast():
            hidden = _at_masks(encode(teacher, batch.input_ids), batch)
        if sum(kept.numel() for kept in self._teacher_hidden.values()) + hidden.numel() <= MAX_HIDDEN:
            self._teacher_hidden[start] = hidden
        return hidden
