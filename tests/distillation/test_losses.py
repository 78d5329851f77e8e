"""Losses against their formulas, written out in float64, and their gradients."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from distil_ray.distillation.losses import IGNORE_INDEX, cosine_loss, mlm_loss, soft_target_loss

N, V, D = 7, 11, 5


def normal(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: Tensor) -> Tensor:
    exponentials = torch.exp(logits)
    return exponentials / exponentials.sum(-1, keepdim=True)


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_soft_target_loss_and_gradient(temperature: float) -> None:
    teacher = normal(N, V, seed=0)
    student = normal(N, V, seed=1)
    p, q = softmax(student / temperature), softmax(teacher / temperature)
    expected = temperature**2 * (q * (torch.log(q) - torch.log(p))).sum()
    expected_gradient = temperature * (p - q)

    logits = student.float().requires_grad_()
    loss = soft_target_loss(logits, teacher.float(), temperature)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(loss, logits).double(), expected_gradient, rtol=1e-5, atol=1e-6)


def test_soft_target_loss_at_temperature_one_is_the_divergence() -> None:
    student, teacher = normal(N, V, seed=1), normal(N, V, seed=0)
    expected = kl_divergence(Categorical(logits=teacher), Categorical(logits=student)).sum()
    loss = soft_target_loss(student.float(), teacher.float(), 1.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_soft_target_loss_of_equal_logits_is_zero() -> None:
    logits = normal(N, V, seed=0).float().requires_grad_()
    loss = soft_target_loss(logits, logits.detach() + 5.0, 2.0)  # a softmax does not see the shift
    assert abs(loss.item()) < 1e-5
    assert gradient(loss, logits).abs().max() < 1e-5


def test_mlm_loss_and_gradient_over_the_labels_that_count() -> None:
    student = normal(N, V, seed=2).requires_grad_()
    labels = torch.tensor([3, IGNORE_INDEX, 0, 10, IGNORE_INDEX, 5, 5])
    counted = labels != IGNORE_INDEX
    expected = -torch.log(softmax(student)[counted, labels[counted]]).sum()
    student_fp32 = student.detach().float().requires_grad_()
    loss = mlm_loss(student_fp32, labels)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    grad = gradient(loss, student_fp32)
    torch.testing.assert_close(grad.double(), gradient(expected, student), rtol=1e-5, atol=1e-6)
    assert not grad[~counted].any()


def test_mlm_loss_without_a_label_is_zero() -> None:
    assert mlm_loss(normal(N, V, seed=2).float(), torch.full((N,), IGNORE_INDEX)).item() == 0.0


def test_cosine_loss_and_gradient() -> None:
    student, teacher = normal(2, N, D, seed=3).requires_grad_(), normal(2, N, D, seed=4)
    cosine = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    expected = (1 - cosine).sum()
    student_fp32 = student.detach().float().requires_grad_()
    loss = cosine_loss(student_fp32, teacher.float())
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    grad = gradient(loss, student_fp32).double()
    torch.testing.assert_close(grad, gradient(expected, student), rtol=1e-5, atol=1e-6)


def test_cosine_loss_runs_from_zero_to_two_a_position() -> None:
    hidden = normal(N, D, seed=5).float()
    assert cosine_loss(hidden, 3 * hidden).item() == pytest.approx(0, abs=1e-5)
    assert cosine_loss(hidden, -hidden).item() == pytest.approx(2 * N, rel=1e-6)


@pytest.mark.parametrize("loss", ["ce", "mlm", "cos"])
def test_sum_over_parts_is_the_sum_over_the_whole(loss: str) -> None:
    student, teacher = normal(N, V, seed=6).float(), normal(N, V, seed=7).float()
    labels = torch.arange(N)

    def total(rows: slice) -> Tensor:
        match loss:
            case "ce":
                return soft_target_loss(student[rows], teacher[rows], 2.0)
            case "mlm":
                return mlm_loss(student[rows], labels[rows])
            case _:
                return cosine_loss(student[rows], teacher[rows])

    torch.testing.assert_close(total(slice(3)) + total(slice(3, None)), total(slice(None)))


def test_bf16_logits_are_summed_in_fp32() -> None:
    student, teacher = normal(300, 500, seed=8).bfloat16(), normal(300, 500, seed=9).bfloat16()
    labels = torch.arange(300)
    for loss, exact in (
        (soft_target_loss(student, teacher, 2.0), soft_target_loss(student.double(), teacher.double(), 2.0)),
        (mlm_loss(student, labels), mlm_loss(student.double(), labels)),
        (cosine_loss(student, teacher), cosine_loss(student.double(), teacher.double())),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact.float(), rtol=1e-5, atol=0)
