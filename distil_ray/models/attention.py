"""Which implementation of attention PyTorch takes on a GPU: it depends on the GPU, cuDNN, and the dropout."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch.nn.attention import SDPBackend
from transformers import PreTrainedModel

from distil_ray.models.families import family_of


class Attention(NamedTuple):
    """What the choice depends on, of a model.

    Attributes:
        dropout: of its attention probabilities; 0 unless it is trained.
        is_trained: whether gradients will be needed.
    """

    num_heads: int
    head_width: int
    dropout: float
    is_trained: bool

    @classmethod
    def of(cls, model: PreTrainedModel, *, is_trained: bool) -> Self:
        """That of a model of a supported family."""
        config = model.config
        dropout = getattr(config, family_of(config).attention_dropout_field) if is_trained else 0.0
        return cls(config.num_attention_heads, config.hidden_size // config.num_attention_heads, dropout, is_trained)


def backend(attention: Attention, num_tokens: int, dtype: torch.dtype, device: torch.device) -> str:
    """Return what `scaled_dot_product_attention` would take for rows of ``num_tokens``: ``CUDNN_ATTENTION``, …"""
    shape = 1, attention.num_heads, num_tokens, attention.head_width
    query = torch.empty(shape, dtype=dtype, device=device, requires_grad=attention.is_trained)
    # What that function asks itself. Public are only the questions which backends are possible, and not their order.
    choice = torch._fused_sdp_choice(query, query, query, dropout_p=attention.dropout)
    return SDPBackend(choice).name


def describe_attention(
    models: Mapping[str, Attention], num_tokens: int, dtype: torch.dtype, device: torch.device
) -> str:
    """Say in a line what each of the models, by role, gets, and which cuDNN is there."""
    choices = ", ".join(f"{role} {backend(one, num_tokens, dtype, device)}" for role, one in models.items())
    return f"attention: {choices}; cuDNN {torch.backends.cudnn.version() or 'missing'}"
