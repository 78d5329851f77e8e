"""How well models predict masked pieces, and how near they come to the first of them: sums over the masked positions.

Shapes: B rows, T tokens a row, K masked positions a row, N = B·K selected positions, D width, M models, V pieces.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from distil_ray.data.batch import Batch
from distil_ray.distillation.models import encode, predict

NUM_FIGURES = 4

MAX_LOGITS = 2**25
"""Logits of a model that are alive at once: 128 MiB in fp32, and some five such matrices are alive with two models."""


def figure_sums(models: Sequence[PreTrainedModel], batch: Batch) -> Tensor:
    """Return ``[M, NUM_FIGURES]`` float64 sums over the masked positions; the first model is the teacher.

    The columns: cross-entropy with the true piece in nats, whether that piece has the highest probability,
    KL(teacher ‖ model) in nats at T = 1, whether the model's most probable piece is the teacher's.
    """
    labels = batch.masked_labels.flatten()
    hidden = [_masked_hidden(model, batch) for model in models]
    num_chunks = max(1, -(-len(labels) * models[0].config.vocab_size // MAX_LOGITS))
    sums = torch.zeros(len(models), NUM_FIGURES, dtype=torch.float64, device=labels.device)
    for part, *hidden_parts in zip(*(values.tensor_split(num_chunks) for values in (labels, *hidden)), strict=True):
        sums += _chunk_sums(models, hidden_parts, part)
    return sums


def _masked_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states ``[N, D]`` at the masked positions."""
    hidden = encode(model, batch.input_ids)
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
