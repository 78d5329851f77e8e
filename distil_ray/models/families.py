"""The supported families of models, and what differs between them: a further family is one more entry.

Shapes: B rows, T tokens per row, N selected positions, D width, E width of the embeddings (D but for ELECTRA).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from distil_ray.errors import InputError


def _attribute(path: str) -> Callable[[Any, float], None]:
    """A function that sets an attribute of what is in a layer, by its path below the layer."""
    owner, _, name = path.rpartition(".")
    return lambda layer, value: setattr(layer.get_submodule(owner), name, value)


_BERT_PROJECTIONS = ("attention.self.query", "attention.self.key", "attention.self.value")
_BERT_DROPOUT = _attribute("attention.self.dropout.p")


@dataclasses.dataclass(frozen=True)
class Family:
    """What this package has to know of a family, by transformers' ``model_type``.

    "Below a layer" is a path from one of its layers on, as of `nn.Module.get_submodule`.

    Attributes:
        transform: the MLM head up to its decoder, ``(model, hidden [N, D]) -> [N, E]``; None: the published models have
            no head that can be used.
        dense: in the MLM head, the module by whose matrix, D x E, `transform` multiplies; None: it has none.
        layers: where the encoder has its list of layers.
        projections: below a layer, the modules that give queries, keys and values, or the one that gives all three.
        position_projections: below a layer, those that give queries and keys of relative positions.
        attention_output: below a layer, the module that reads what the heads return.
        feed_forward: below a layer, the modules, one or two, that give the neurons.
        feed_forward_output: below a layer, the module that reads them.
        shared_heads: in the encoder, the module with a number for each head, of all layers.
        is_rotary: whether queries and keys are turned by angles that depend on the place in a head.
        attention: the fastest of transformers' implementations that the family has.
        window_field: the configuration's name for the whole width of the window of layers with local attention.
        num_relative_keys: the relative positions with which each query is multiplied, beside the row's T keys.
        needs_mask: whether, without an attention mask, the encoder looks for padding, and the device is waited for.
        first_position: that of a row's first token; None: it is ``pad_token_id + 1``.
        embedding_field: the configuration's name for E, if it has one.
        feed_forward_field: the configuration's name for the width of the feed-forward layers.
        is_gated: whether these have three matrices, and not two.
        attention_dropout_field: the configuration's name for the dropout of attention probabilities.
        set_attention_dropout: gives it to a layer.
        per_layer_fields: lists in the configuration with one entry per layer.
        undeclared_fields: what the models read from their configuration, and its class does not declare.
        is_first_layer_special: whether no other layer can take the place of the first one, or the reverse.
        transformers: the earliest version that was tried on an export.
    """

    transform: Callable[[Any, Tensor], Tensor] | None
    dense: str | None
    layers: str = "encoder.layer"
    projections: tuple[str, ...] = _BERT_PROJECTIONS
    position_projections: tuple[str, ...] = ()
    attention_output: str = "attention.output.dense"
    feed_forward: tuple[str, ...] = ("intermediate.dense",)
    feed_forward_output: str = "output.dense"
    shared_heads: str | None = None
    is_rotary: bool = False
    attention: Literal["sdpa", "eager"] = "sdpa"
    window_field: str | None = None
    num_relative_keys: Callable[[Any], int] = lambda config: 0
    needs_mask: bool = False
    first_position: int | None = 0
    embedding_field: str = "hidden_size"
    feed_forward_field: str = "intermediate_size"
    is_gated: bool = False
    attention_dropout_field: str = "attention_probs_dropout_prob"
    set_attention_dropout: Callable[[Any, float], None] = _BERT_DROPOUT
    per_layer_fields: tuple[str, ...] = ()
    undeclared_fields: tuple[str, ...] = ()
    is_first_layer_special: bool = False
    transformers: str = "4.57"


# ------------------------------------------------------------------------------------------------ what they do


def _bert_transform(model: Any, hidden: Tensor) -> Tensor:
    transformed: Tensor = model.cls.predictions.transform(hidden)
    return transformed


def _roberta_transform(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    transformed: Tensor = head.layer_norm(F.gelu(head.dense(hidden)))
    return transformed


def _distilbert_transform(model: Any, hidden: Tensor) -> Tensor:
    transformed: Tensor = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    return transformed


def _set_modernbert_dropout(layer: Any, probability: float) -> None:
    layer.attn.attention_dropout = probability
    # The attention's output has the same field. Without dropout, this is an Identity.
    layer.attn.out_drop = nn.Dropout(probability).train(layer.training)


def _deberta_relative_keys(config: Any) -> int:
    if not config.relative_attention:
        return 0
    span = getattr(config, "position_buckets", -1)
    if span <= 0:
        span = config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings
    return 2 * span * len({"c2p", "p2c"} & set(config.pos_att_type or ()))


# ------------------------------------------------------------------------------------------------ the families

_BERT = Family(_bert_transform, "cls.predictions.transform.dense")
_ROBERTA = Family(_roberta_transform, "lm_head.dense", first_position=None)

FAMILIES = {
    "bert": _BERT,
    "distilbert": Family(
        _distilbert_transform,
        "vocab_transform",
        layers="transformer.layer",
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        feed_forward=("ffn.lin1",),
        feed_forward_output="ffn.lin2",
        feed_forward_field="hidden_dim",
        attention_dropout_field="attention_dropout",
        set_attention_dropout=_attribute("attention.dropout.p"),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "data2vec-text": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "ernie": _BERT,
    "electra": Family(
        lambda model, hidden: model.generator_predictions(hidden),
        "generator_predictions.dense",
        embedding_field="embedding_size",
    ),
    "mpnet": Family(
        _roberta_transform,
        "lm_head.dense",
        projections=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_output="attention.attn.o",
        shared_heads="encoder.relative_attention_bias",
        attention="eager",
        first_position=2,  # whatever the configuration says of padding
        set_attention_dropout=_attribute("attention.attn.dropout.p"),
    ),
    "modernbert": Family(
        lambda model, hidden: model.head(hidden),
        "head.dense",
        layers="layers",
        projections=("attn.Wqkv",),
        attention_output="attn.Wo",
        feed_forward=("mlp.Wi",),
        feed_forward_output="mlp.Wo",
        is_rotary=True,
        window_field="local_attention",
        is_gated=True,
        attention_dropout_field="attention_dropout",
        set_attention_dropout=_set_modernbert_dropout,
        per_layer_fields=("layer_types",),
        is_first_layer_special=True,  # the norm before its attention is that of the embeddings
        transformers="5.3",  # 5.0 and earlier know no `layer_types`: to them, every third layer is global
    ),
    "eurobert": Family(
        lambda model, hidden: hidden,
        None,
        layers="layers",
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_output="self_attn.o_proj",
        feed_forward=("mlp.gate_proj", "mlp.up_proj"),
        feed_forward_output="mlp.down_proj",
        is_rotary=True,
        is_gated=True,
        attention_dropout_field="attention_dropout",
        set_attention_dropout=_attribute("self_attn.attention_dropout"),
        transformers="5.3",  # 5.0 and earlier have no such class
    ),
    "deberta-v2": Family(
        None,
        None,
        projections=tuple(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
        position_projections=("attention.self.pos_query_proj", "attention.self.pos_key_proj"),
        attention="eager",
        num_relative_keys=_deberta_relative_keys,
        needs_mask=True,
        embedding_field="embedding_size",
        undeclared_fields=(
            *("attention_head_size", "conv_act", "conv_groups", "conv_kernel_size", "embedding_size"),
            *("norm_rel_ebd", "pooler_hidden_size", "position_buckets", "share_att_key"),
        ),
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a configuration that `check_config` has let pass."""
    return FAMILIES[config.model_type]


# ------------------------------------------------------------------------------------------------ configurations


def first_position(config: PreTrainedConfig) -> int:
    """Return the position of a row's first token."""
    position = family_of(config).first_position
    return config.pad_token_id + 1 if position is None else position


def head_width(config: PreTrainedConfig) -> int:
    """Return the width of one head of attention."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def num_key_heads(config: PreTrainedConfig) -> int:
    """Return how many heads keys and values have: fewer than queries, if several of theirs share one."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def embedding_width(config: PreTrainedConfig) -> int:
    """Return the width E of the embeddings, and of what the MLM head gives its decoder."""
    return int(getattr(config, family_of(config).embedding_field, config.hidden_size))


def own_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """Return the names of the fields that a family's configuration adds to those of all configurations."""
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    declared = [field.name for field in dataclasses.fields(config_class) if field.name not in general]
    return [*declared, *FAMILIES[config_class.model_type].undeclared_fields]


def check_config(config: PreTrainedConfig, source: str, *, needs_head: bool = False) -> None:
    """Raise InputError unless ``config``, read from ``source``, is a plain encoder of a supported family.

    Args:
        needs_head: for a use that takes the MLM head, too.
    """
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{source} is of model_type {config.model_type!r}; the types that work are {', '.join(FAMILIES)}"
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise InputError(f"{source} is set up as a decoder (is_decoder, add_cross_attention); expected an encoder")
    kind = getattr(config, "position_embedding_type", "absolute")
    if kind != "absolute":
        raise InputError(f"{source} has position_embedding_type {kind!r}; only 'absolute' is supported")
    if family_of(config).first_position is None and config.pad_token_id is None:
        raise InputError(f"{source} has no pad_token_id, from which {config.model_type} counts its positions")
    if needs_head and family_of(config).transform is None:
        with_head = ", ".join(name for name, family in FAMILIES.items() if family.transform is not None)
        raise InputError(
            f"{source} is of model_type {config.model_type!r}, whose published models have no masked-language-"
            "modelling head that transformers can load (transformers issue 22790); expected a type with one "
            f"({with_head}), or a use of the encoder alone"
        )


# ------------------------------------------------------------------------------------------------ parts of a model


def has_head(model: PreTrainedModel) -> bool:
    """Return whether a model has an MLM head, and is not a bare encoder."""
    return model.base_model is not model


def is_tied(model: PreTrainedModel) -> bool:
    """Return whether the head, if any, shares the embeddings; the configuration may say so of weights that differ."""
    if not has_head(model):
        return True
    head: nn.Module = model.get_output_embeddings()
    return head.weight is model.get_input_embeddings().weight


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a model with any head or none."""
    layers = model.base_model.get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def in_layer(name: str, stack: str) -> tuple[str | None, str]:
    """Return which of a stack's layers a weight belongs to, None for none, and its name in there."""
    prefix = f"{stack}."
    if not name.startswith(prefix):
        return None, name
    layer, _, rest = name.removeprefix(prefix).partition(".")
    return layer, rest


def projections_of(model: PreTrainedModel, layer: int) -> list[nn.Module]:
    """Return the modules of a layer whose outputs `split_projections` takes, in its order.

    DeBERTa may call them again in the same pass, on relative positions: a hook's first call has the row's tokens.
    """
    module = layers_of(model)[layer]
    return [module.get_submodule(path) for path in family_of(model.config).projections]


def split_projections(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each [B, T, width], from the outputs of `projections_of`'s modules.

    Heads lie side by side in the width. Where several heads of queries share one of keys, keys and values are narrower.
    """
    queries, keys, values = outputs[0].chunk(3, dim=-1) if len(outputs) == 1 else outputs
    return queries, keys, values
