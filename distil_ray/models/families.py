"""What differs between the supported families of models, by model_type; a new family is an entry here.

Shapes: N positions, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from distil_ray.errors import InputError


@dataclass(frozen=True)
class Family:
    """A family of masked language models.

    Attributes:
        head: from a model and its last hidden states [N, D] to the logits [N, V] of its MLM head.
        feed_forward_field: the configuration's field that holds the width of the feed-forward layers.
        counts_from_padding: whether a row's positions count from ``pad_token_id + 1``, and not from 0.
    """

    head: Callable[[Any, Tensor], Tensor]
    feed_forward_field: str = "intermediate_size"
    counts_from_padding: bool = False


def _distilbert_head(model: Any, hidden: Tensor) -> Tensor:
    hidden = model.activation(model.vocab_transform(hidden))
    logits: Tensor = model.vocab_projector(model.vocab_layer_norm(hidden))
    return logits


def _bert_head(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.cls(hidden)
    return logits


def _roberta_head(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(hidden)
    return logits


FAMILIES = {
    "bert": Family(_bert_head),
    "distilbert": Family(_distilbert_head, feed_forward_field="hidden_dim"),
    "roberta": Family(_roberta_head, counts_from_padding=True),
    "xlm-roberta": Family(_roberta_head, counts_from_padding=True),
}


def family_of(config: PreTrainedConfig) -> Family:
    return FAMILIES[config.model_type]


def first_position(config: PreTrainedConfig) -> int:
    """Return the position of a row's first token."""
    return int(config.pad_token_id) + 1 if family_of(config).counts_from_padding else 0


def own_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """Return the names of the fields that a family's configuration adds to transformers' general ones."""
    general = {field.name for field in fields(PreTrainedConfig)}
    return [field.name for field in fields(config_class) if field.name not in general]


def check_config(config: PreTrainedConfig, source: str) -> None:
    """Raise InputError unless ``config``, read from ``source``, is a plain encoder of a supported family."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{source} is of model_type {config.model_type!r}; the types that work are {', '.join(FAMILIES)}"
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise InputError(f"{source} is set up as a decoder (is_decoder, add_cross_attention); expected an encoder")
    if (kind := getattr(config, "position_embedding_type", "absolute")) != "absolute":
        raise InputError(f"{source} has position_embedding_type {kind!r}; only 'absolute' is supported")
    if family_of(config).counts_from_padding and config.pad_token_id is None:
        raise InputError(f"{source} has no pad_token_id, from which {config.model_type} counts its positions")
