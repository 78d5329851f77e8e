"""Which implementation of attention PyTorch takes on a GPU: it depends on the GPU, cuDNN, the dropout, and a mask."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch.nn.attention import SDPBackend
from transformers import PreTrainedModel

from distil_ray.models.families import family_of, head_width, num_key_heads


class Attention(NamedTuple):
    """What the choice depends on, of a model.

    Attributes:
        dropout: of its attention probabilities; 0 unless it is trained.
        is_trained: whether gradients will be needed.
        num_key_heads: heads of keys and values; 0: as many as queries have.
        window: whole width of the window of layers with local attention; 0: it has none.
        is_fused: whether it calls PyTorch's `scaled_dot_product_attention`.
    """

    num_heads: int
    head_width: int
    dropout: float
    is_trained: bool
    num_key_heads: int = 0
    window: int = 0
    is_fused: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel, *, is_trained: bool) -> Self:
        """That of a model of a supported family."""
        config, family = model.config, family_of(model.config)
        return cls(
            config.num_attention_heads,
            head_width(config),
            getattr(config, family.attention_dropout_field) if is_trained else 0.0,
            is_trained,
            num_key_heads(config) if num_key_heads(config) < config.num_attention_heads else 0,
            0 if family.window_field is None else getattr(config, family.window_field),
            family.attention == "sdpa",
        )


def backend(
    attention: Attention, num_tokens: int, dtype: torch.dtype, device: torch.device, *, is_masked: bool = False
) -> str:
    """Return what `scaled_dot_product_attention` would take for rows of ``num_tokens``: ``CUDNN_ATTENTION``, …"""

    def heads(number: int) -> torch.Tensor:
        shape = 1, number, num_tokens, attention.head_width
        return torch.empty(shape, dtype=dtype, device=device, requires_grad=attention.is_trained)

    query, key = heads(attention.num_heads), heads(attention.num_key_heads or attention.num_heads)
    mask = torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool, device=device) if is_masked else None
    # What that function asks itself. Public are only the questions which backends are possible, and not their order.
    choice = torch._fused_sdp_choice(
        query, key, key, mask, dropout_p=attention.dropout, enable_gqa=attention.num_key_heads > 0
    )
    return SDPBackend(choice).name


def _describe(attention: Attention, num_tokens: int, dtype: torch.dtype, device: torch.device) -> str:
    if not attention.is_fused:
        return "unfused"
    everywhere = backend(attention, num_tokens, dtype, device)
    if not 0 < attention.window // 2 <= num_tokens:  # transformers makes a mask
        return everywhere
    return f"{everywhere} and, in local layers, {backend(attention, num_tokens, dtype, device, is_masked=True)}"


def describe_attention(
    models: Mapping[str, Attention], num_tokens: int, dtype: torch.dtype, device: torch.device
) -> str:
    """Say in a line what each of the models, by role, gets, and which cuDNN is there."""
    choices = ", ".join(f"{role} {_describe(one, num_tokens, dtype, device)}" for role, one in models.items())
    return f"attention: {choices}; cuDNN {torch.backends.cudnn.version() or 'missing'}"
