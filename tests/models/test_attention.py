"""Which implementation of attention is named: the one that runs."""

import pytest
import torch
from small_models import small_model
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from distil_ray.models.attention import Attention, backend, describe_attention

CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """Notes the names of what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


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
    assert Attention.of(model, is_trained=True) == (4, 8, 0.25, True)
    assert Attention.of(model, is_trained=False) == (4, 8, 0.0, False)
    models = {"student": Attention.of(model, is_trained=True), "teacher": Attention.of(model, is_trained=False)}
    line = describe_attention(models, 16, torch.float32, CPU)
    assert line.startswith("attention: student MATH, teacher FLASH_ATTENTION; cuDNN ")
    with sdpa_kernel(SDPBackend.MATH):
        assert "teacher MATH" in describe_attention(models, 16, torch.float32, CPU)
