"""Dropout and attention of training on a processor are PyTorch's, but for the draws."""

import pytest
import torch
from operations import Operations
from small_models import random_ids, small_encoder, small_model
from torch.nn import functional as F

from distil_ray.models.families import FAMILIES
from distil_ray.models.processor import attention, dropout, fast_on_processor

CPU = torch.device("cpu")
SLOW = {"bernoulli_", "native_dropout", "_scaled_dot_product_flash_attention_for_cpu"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.99])
def test_as_many_elements_are_dropped_as_asked_for_and_the_mean_stays(dtype, probability):
    hidden = torch.ones(333, 1001, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    result = dropout(hidden, probability)
    result.sum().backward()

    assert result.dtype == dtype
    assert torch.equal(hidden.grad, result)  # d(x·f)/dx = f, and x is 1
    kept = (result != 0).double()
    error = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert 1 - kept.mean().item() == pytest.approx(probability, abs=4 * error)
    assert result[result != 0].unique().item() == pytest.approx(1 / (1 - probability), rel=4e-3)


def test_draws_are_independent_and_follow_the_generator():
    hidden = torch.ones(400_000)
    torch.manual_seed(0)
    first, second = (dropout(hidden, 0.3) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(dropout(hidden, 0.3), first)

    kept = (first != 0).double()
    others = [kept.roll(shift) for shift in (1, 2, 3, 4, 8)] + [(second != 0).double()]
    for other in others:  # four draws are of one word
        assert abs(torch.corrcoef(torch.stack([kept, other]))[0, 1].item()) < 4 / len(hidden) ** 0.5


MASKS = {
    "none": None,
    "booleans": torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(0)) < 0.7,
    "numbers": torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("num_key_heads", [1, 3])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_pytorchs_with_its_gradients(mask, num_key_heads, scale):
    torch.manual_seed(0)
    heads = [torch.randn(2, number, 7, 8, requires_grad=True) for number in (3, num_key_heads, num_key_heads)]
    results = []
    for function in (attention, F.scaled_dot_product_attention):
        out = function(*heads, attn_mask=mask, dropout_p=0.0, scale=scale, enable_gqa=num_key_heads < 3)
        results.append([out, *torch.autograd.grad(out.square().sum(), heads)])
    torch.testing.assert_close(*results)


def test_attention_drops_probabilities():
    torch.manual_seed(0)
    query = key = torch.zeros(64, 2, 50, 8)
    probabilities = attention(query, key, torch.eye(50).expand(64, 2, 50, 50), dropout_p=0.25)
    assert (probabilities == 0).double().mean().item() == pytest.approx(0.25, abs=0.005)
    assert probabilities.max().item() == pytest.approx(1 / 50 / 0.75, rel=1e-5)


def test_a_position_that_sees_none_gets_numbers():
    heads = torch.randn(1, 1, 4, 8, requires_grad=True)
    out = attention(heads, heads, heads, attn_mask=torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    out.sum().backward()
    assert out.isfinite().all()
    assert heads.grad.isfinite().all()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_trains_with_them(model_type):
    model, ids = small_encoder(model_type).train(), random_ids(2, 12)
    with fast_on_processor(CPU), torch.autocast("cpu", dtype=torch.bfloat16), Operations() as operations:
        model(input_ids=ids)
    assert "random_" in operations.names
    assert not SLOW.intersection(operations.names)


@pytest.mark.parametrize("is_training", [True, False])
def test_without_dropout_a_model_computes_what_it_did(is_training):
    model, ids = small_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), random_ids(2, 12)
    model.train(is_training)
    with fast_on_processor(CPU), Operations() as operations:
        fast = model(input_ids=ids).logits
    torch.testing.assert_close(fast, model(input_ids=ids).logits)
    assert "random_" not in operations.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_may_be_called_without_options(dtype):
    torch.manual_seed(0)
    heads = torch.randn(1, 2, 4, 8, dtype=dtype, requires_grad=True)
    with fast_on_processor(CPU):
        fast = F.scaled_dot_product_attention(heads, heads, heads)
    expected = F.scaled_dot_product_attention(heads, heads, heads)
    torch.testing.assert_close(fast, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)  # its outputs are about 1
