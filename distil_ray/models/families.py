"""The supported families of models, and what differs between them: a further family is one more entry.

Shapes: N selected positions, D width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from distil_ray.errors import InputError


@dataclasses.dataclass(frozen=True)
class Family:
    """What this package has to know of a family, by transformers' ``model_type``.

    Attributes:
        transform: the MLM head up to its decoder, ``(model, hidden [N, D]) -> [N, D]``.
        feed_forward_field: the configuration's name for the width of the feed-forward layers.
        attention_dropout_field: the configuration's name for the dropout of attention probabilities.
        attention_dropout: where each layer has it, the end of the module's name.
        counts_after_padding: whether positions count from ``pad_token_id + 1``, not from 0.
    """

    transform: Callable[[Any, Tensor], Tensor]
    feed_forward_field: str = "intermediate_size"
    attention_dropout_field: str = "attention_probs_dropout_prob"
    attention_dropout: str = ".attention.self.dropout"
    counts_after_padding: bool = False
    layers: str = "encoder.layer"
    projections: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")


def _roberta_transform(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    transformed: Tensor = head.layer_norm(F.gelu(head.dense(hidden)))
    return transformed


def _distilbert_transform(model: Any, hidden: Tensor) -> Tensor:
    transformed: Tensor = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    return transformed


_ROBERTA = Family(_roberta_transform, counts_after_padding=True)

FAMILIES = {
    "bert": Family(lambda model, hidden: model.cls.predictions.transform(hidden)),
    "distilbert": Family(
        _distilbert_transform,
        feed_forward_field="hidden_dim",
        attention_dropout_field="attention_dropout",
        attention_dropout=".attention.dropout",
        layers="transformer.layer",
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a configuration that `check_config` has let pass."""
    return FAMILIES[config.model_type]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    layers = model.base_model.get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def split_projections(outputs: Sequence[Tensor], config: PreTrainedConfig) -> tuple[Tensor, ...]:
    return tuple(outputs)


def first_position(config: PreTrainedConfig) -> int:
    """Return the position of a row's first token."""
    return config.pad_token_id + 1 if family_of(config).counts_after_padding else 0


def own_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """Return the names of the fields that a family's configuration adds to those of all configurations."""
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return [field.name for field in dataclasses.fields(config_class) if field.name not in general]


def check_config(config: PreTrainedConfig, source: str) -> None:
    """Raise InputError unless ``config``, read from ``source``, is a plain encoder of a supported family."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{source} is of model_type {config.model_type!r}; the types that work are {', '.join(FAMILIES)}"
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise InputError(f"{source} is set up as a decoder (is_decoder, add_cross_attention); expected an encoder")
    kind = getattr(config, "position_embedding_type", "absolute")
    if kind != "absolute":
        raise InputError(f"{source} has position_embedding_type {kind!r}; only 'absolute' is supported")
    if family_of(config).counts_after_padding and config.pad_token_id is None:
        raise InputError(f"{source} has no pad_token_id, from which {config.model_type} counts its positions")
