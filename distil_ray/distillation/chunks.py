"""A loss on vocabulary logits, computed in chunks so that few logits are alive at once.

Shapes: N selected positions, D width, V vocabulary, S sums. V may be padded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Head = tuple[Tensor, Tensor, Tensor]
"""What logits are made of: hidden states [N, D], and the decoder's weight [V, D] and bias [V]."""

LogitLoss = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(student's logits [N, V], teacher's or None, labels [N], scale []) -> (loss [], sums [S]), all fp32."""


def loss_in_chunks(
    logit_loss: LogitLoss, student: Head, teacher: Head | None, labels: Tensor, scale: Tensor, num_chunks: int
) -> tuple[Tensor, Tensor]:
    """Return what ``logit_loss`` gives for the logits of both heads, added up over chunks of positions.

    The loss has gradients for the student's head. Of one chunk, autograd keeps the logits. Of several, each one's
    gradients are computed along with its loss, and the backward pass has only to multiply them: no logits are kept,
    and none are computed twice (as in Liger-Kernel, Hsu et al. 2024, arXiv 2410.10989). The sums have none then.

    Args:
        labels, scale: [N] and []; passed on to ``logit_loss``.
    """
    if num_chunks == 1:
        return logit_loss(F.linear(*student), None if teacher is None else F.linear(*teacher), labels, scale)
    apply: Any = _LossInChunks.apply
    loss, sums = apply(logit_loss, num_chunks, labels, scale, *student, *(teacher or ()))
    return loss, sums


class _LossInChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logit_loss: LogitLoss,
        num_chunks: int,
        labels: Tensor,
        scale: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        *teacher: Tensor,
    ) -> tuple[Tensor, Tensor]:
        gradient_and_value = torch.func.grad_and_value(logit_loss, has_aux=True)
        matrix = weight.to(hidden.dtype)  # once; autocast would do it in each product
        losses, sums, hidden_gradients = [], [], []
        weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
        for chunk, teacher_chunk, label_chunk in zip(
            hidden.tensor_split(num_chunks),
            teacher[0].tensor_split(num_chunks) if teacher else (None,) * num_chunks,
            labels.tensor_split(num_chunks),
            strict=True,
        ):
            teacher_logits = None if teacher_chunk is None else F.linear(teacher_chunk, *teacher[1:])
            logits = F.linear(chunk, matrix, bias)
            gradient, (loss, chunk_sums) = gradient_and_value(logits, teacher_logits, label_chunk, scale)
            losses.append(loss)
            sums.append(chunk_sums)
            hidden_gradients.append(gradient @ matrix)
            weight_gradient = weight_gradient + gradient.t() @ chunk
            bias_gradient = bias_gradient + gradient.sum(0, dtype=bias.dtype)
        total = torch.stack(sums).sum(0)
        ctx.mark_non_differentiable(total)
        ctx.save_for_backward(torch.cat(hidden_gradients).to(hidden.dtype), weight_gradient, bias_gradient)
        return torch.stack(losses).sum(), total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        head = (gradient * saved for saved in ctx.saved_tensors)
        return None, None, None, None, *head, None, None, None
