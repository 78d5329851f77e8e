"""Dropout and attention of training on a processor, in less time than PyTorch's own take there."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LEVELS = 2**16  # what 16 bits can tell apart
_MAX_KEPT = 512  # tokens of a row whose scores may be kept in memory where PyTorch would not keep them


def fast_on_processor(device: torch.device) -> AbstractContextManager[object]:
    """Let models call `dropout` and `attention` in place of PyTorch's: for training on a processor, forward passes.

    Not for what is compiled: Inductor draws masks in code of its own.
    """
    return _Replacing() if device.type == "cpu" else nullcontext()


def dropout(hidden: Tensor, probability: float) -> Tensor:
    """Zero each element with ``probability``, and scale the others so that the mean stays.

    PyTorch's draws one number after the other, in one thread: on one, a sixth of the time of training MPNet's layers.

    Args:
        hidden: [...] in a floating dtype, on a processor.
        probability: below 1; the nearest multiple of 2^-16 is taken.
    """
    num_dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    words = torch.empty(math.ceil(hidden.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: hidden.numel()].view(hidden.shape)
    # Straight into the dtype of the product: to convert a mask of booleans takes longer than to draw it.
    kept = torch.ge(draws, num_dropped - _LEVELS // 2, out=torch.empty(hidden.shape, dtype=hidden.dtype))
    return hidden * kept.mul_(_LEVELS / (_LEVELS - num_dropped))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, with products and probabilities in the dtype of the heads.

    Args:
        query, key, value: heads [B, H, T, D], all in one dtype.
        attn_mask: broadcast to [B, H, T, T]; booleans, true where a position is seen, or numbers to add to the scores.
        dropout_p: of the attention probabilities.
        scale: of the scores; None: 1 / sqrt(D).
        enable_gqa: each head of keys and values is for several of queries.
    """
    if enable_gqa:
        key, value = (heads.repeat_interleave(query.shape[1] // heads.shape[1], dim=1) for heads in (key, value))
    scores = (query @ key.mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        # Not -inf: a position that sees none, as padding may, would get NaN.
        unseen = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~attn_mask, unseen) if attn_mask.dtype == torch.bool else scores + attn_mask
    probabilities = scores.softmax(-1)
    return (dropout(probabilities, dropout_p) if dropout_p else probabilities) @ value


class _Replacing(TorchFunctionMode):
    """Gets the calls of PyTorch's functions, from whichever module of a model they come."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout and kwargs["training"] and 0 < kwargs["p"] < 1:
            return dropout(args[0], kwargs["p"])
        if func is F.scaled_dot_product_attention and _is_faster(args[0], kwargs):
            return attention(*args, **{name: value for name, value in kwargs.items() if name != "is_causal"})
        return func(*args, **kwargs)


def _is_faster(query: Tensor, options: dict[str, Any]) -> bool:
    """Whether `attention` can do it, and faster.

    PyTorch computes it step by step and in fp32 with dropout, and without by a fused kernel that is slow in bf16,
    in its backward pass.
    """
    if options.get("is_causal") or not query.requires_grad:
        return False
    return options.get("dropout_p", 0.0) > 0 or (query.dtype == torch.bfloat16 and query.shape[-2] <= _MAX_KEPT)
