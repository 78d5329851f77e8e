"""The relation loss against the plain formula in float64, and what it must not keep."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distil_ray.distillation import relations
from distil_ray.distillation.relations import relation_loss

B, T, HEADS = 5, 7, 4
WIDTHS = (16, 16, 8)  # of queries, keys and values; keys and values may be narrower


def vectors(seed: int, factor: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, width * factor, dtype=torch.float64, generator=generator) for width in WIDTHS]


def plain_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Equations 1 to 3 of the paper, without the division by the number of tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        for row in range(B):
            for head in range(HEADS):
                log_p, log_q = (log_relations(one[row], head) for one in (own, other))
                total = total + (log_q.exp() * (log_q - log_p)).sum()
    return total / HEADS / len(student)


def log_relations(row: Tensor, head: int) -> Tensor:
    width = row.shape[-1] // HEADS
    part = row[:, head * width : (head + 1) * width]
    return (part @ part.T / width**0.5).log_softmax(-1)


@pytest.mark.parametrize("rows_at_once", [B, 2, 0])
def test_loss_and_gradient_are_those_of_the_plain_formula(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "MAX_RELATION_BYTES", max(rows_at_once * HEADS * T * T * 4, 1))
    student, teacher = [one.requires_grad_() for one in vectors(0)], vectors(1, factor=2)
    expected = plain_loss(student, teacher)
    loss = relation_loss(student, teacher, HEADS)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for gradient, wanted in zip(
        torch.autograd.grad(3 * loss, student), torch.autograd.grad(3 * expected, student), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_equal_relations_cost_nothing_whatever_the_width() -> None:
    student = vectors(0)
    teacher = [torch.cat([one.unflatten(-1, (HEADS, -1))] * 2, dim=-1).flatten(-2) / 2**0.25 for one in student]
    torch.testing.assert_close(relation_loss(student, teacher, HEADS), torch.zeros(()), atol=1e-5, rtol=0)


def test_half_precision_is_summed_in_fp32() -> None:
    student, teacher = vectors(2), vectors(3)
    exact = plain_loss(student, teacher).float()
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.01)):
        loss = relation_loss([one.to(dtype) for one in student], [one.to(dtype) for one in teacher], HEADS)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=tolerance, atol=0)


def test_large_vectors_do_not_overflow_in_fp16() -> None:
    large = [(40 * one).half().requires_grad_() for one in vectors(4)]
    loss = relation_loss(large, [one.half() for one in vectors(5)], HEADS)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(one.grad).all() for one in large if one.grad is not None)


class Sizes(TorchDispatchMode):
    """Notes the largest result of an operation."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_only_a_part_of_the_relations_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the forward pass, at a time, nor for the backward pass, which gets gradients alone."""
    monkeypatch.setattr(relations, "MAX_RELATION_BYTES", HEADS * T * T * 4)
    student = [one.requires_grad_() for one in vectors(0)]
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with Sizes() as sizes, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        relation_loss(student, vectors(1), HEADS)
    assert sizes.largest == max(HEADS * T * T, B * T * max(WIDTHS))
    assert sorted(saved) == sorted(B * T * width for width in WIDTHS)
