"""Which implementation of attention is named: the one that runs."""

import pytest
import torch
from operations import Operations
from small_models import random_ids, small_model
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from distil_ray.models.attention import Attention, backend, describe_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, "FLASH_ATTENTION"), (0.1, "MATH")])
def test_what_is_named_is_what_runs(dropout, expected):
    attention = Attention(num_heads=4, head_width=8, dropout=dropout, is_trained=True)
    assert backend(attention, 16, torch.float32, CPU) == expected
    query = torch.ones(1, 4, 16, 8)
    with Operations() as operations:
        F.scaled_dot_product_attention(query, query, query, dropout_p=dropout)
    assert any("flash_attention" in name for name in operations.names) == (expected == "FLASH_ATTENTION")


def test_both_models_are_described():
    model = small_model("distilbert", attention_dropout=0.25)
    assert Attention.of(model, is_trained=True) == Attention(4, 8, 0.25, is_trained=True)
    assert Attention.of(model, is_trained=False) == Attention(4, 8, 0.0, is_trained=False)
    models = {"student": Attention.of(model, is_trained=True), "teacher": Attention.of(model, is_trained=False)}
    line = describe_attention(models, 16, torch.float32, CPU)
    assert line.startswith("attention: student MATH, teacher FLASH_ATTENTION; cuDNN ")
    with sdpa_kernel(SDPBackend.MATH):
        assert "teacher MATH" in describe_attention(models, 16, torch.float32, CPU)


def test_layers_with_a_window_and_attention_that_is_not_fused_are_named():
    models = {
        name: Attention.of(small_model(family), is_trained=False)
        for name, family in (("teacher", "modernbert"), ("shared keys", "eurobert"), ("student", "mpnet"))
    }
    assert models["shared keys"].num_key_heads == 2
    line = describe_attention(models, 16, torch.float32, CPU)
    assert "teacher FLASH_ATTENTION and, in local layers, FLASH_ATTENTION, shared keys " in line
    assert "student unfused;" in line
    assert "local layers" not in describe_attention(models, 3, torch.float32, CPU)  # shorter than half the window


@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
def test_heads_and_masks_are_those_of_the_model(family, monkeypatch):
    model, calls = small_model(family), []
    attention = F.scaled_dot_product_attention

    def record(query, key, value, attn_mask=None, **options):
        calls.append((query.shape[1], key.shape[1], attn_mask is not None))
        return attention(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    model(input_ids=random_ids(1, 4))
    of_model = Attention.of(model, is_trained=False)
    assert {(queries, keys) for queries, keys, _ in calls} == {(4, of_model.num_key_heads or 4)}
    assert any(is_masked for *_, is_masked in calls) == (of_model.window > 0)
