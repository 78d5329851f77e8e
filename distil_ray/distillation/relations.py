"""The relation loss of MiniLMv2 (Wang et al. 2021, arXiv 2012.15828, section 3.2), whose memory does not grow with B.

Queries of a teacher's layer are compared with each other, and so are the student's; then these relations are compared,
and likewise those of keys and of values. Neither widths nor numbers of attention heads need to be the same.

Shapes: B rows, T tokens per row, D width, A relation heads, d = D / A.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_RELATION_BYTES = 2**28
"""Of one model's relations [b, A, T, T] in fp32 that are alive at once; about five such tensors are."""


def relation_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], num_heads: int) -> Tensor:
    """Return ``Σ_b Σ_t mean_a mean_i KL(teacher's relations ‖ student's)`` over n kinds of vectors i: an fp32 scalar.

    The relations of a token t within head a are ``softmax_u(x_t · x_u / √d)`` over the row's tokens u. With queries,
    keys and values, each kind has the weight of a third, and divided by the number of tokens it is the paper's loss.

    The gradient of each part of the batch is computed along with its loss, and the backward pass has only to multiply
    it: no relations are kept, and none are computed twice.

    Args:
        student, teacher: n vectors of each token, such as (Q, K, V), ``[B, T, D]`` each, any floating dtype; the
            teacher's D may be another one, and each kind may have its own.
        num_heads: A, which divides each D.
    """
    apply: Any = _RelationLoss.apply
    losses: list[Tensor] = [apply(own, other, num_heads) for own, other in zip(student, teacher, strict=True)]
    return torch.stack(losses).sum() / len(losses)


class _RelationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, num_heads: int) -> Tensor:
        num_rows, num_tokens = student.shape[:2]
        row_bytes = num_heads * num_tokens * num_tokens * 4
        num_chunks = min(num_rows, -(-num_rows * row_bytes // MAX_RELATION_BYTES))
        parts = [
            _loss_and_gradient(own, other, num_heads)
            for own, other in zip(student.tensor_split(num_chunks), teacher.tensor_split(num_chunks), strict=True)
        ]
        ctx.save_for_backward(torch.cat([gradient for _, gradient in parts]))
        return torch.stack([loss for loss, _ in parts]).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return gradient * saved, None, None


def _loss_and_gradient(student: Tensor, teacher: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """The divergence of vectors [b, T, D], summed over tokens, an fp32 scalar, and its gradient [b, T, D]."""
    heads = _scaled_heads(student, num_heads)
    log_p = _log_relations(heads)
    log_q = _log_relations(_scaled_heads(teacher, num_heads))
    loss = F.kl_div(log_p, log_q, reduction="sum", log_target=True) / num_heads
    # With respect to the products it is p - q, and a vector is on both sides of its products.
    difference = (log_p.exp() - log_q.exp()).to(heads.dtype)
    gradient = (difference + difference.mT) @ heads
    return loss, gradient.transpose(1, 2).flatten(2) * (heads.shape[-1] ** -0.25 / num_heads)


def _scaled_heads(vectors: Tensor, num_heads: int) -> Tensor:
    """[b, T, D] -> [b, A, T, d], times ``d^(-1/4)``: the products are then divided by √d, and small enough for fp16."""
    heads: Tensor = vectors.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads * float(heads.shape[-1] ** -0.25)


def _log_relations(heads: Tensor) -> Tensor:
    """Logarithms of the relations of [b, A, T, d]: fp32 ``[b, A, T, T]``."""
    log_relations: Tensor = (heads @ heads.mT).float().log_softmax(-1)
    return log_relations
