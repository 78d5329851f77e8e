"""A student from a teacher: some of its layers, and everything around them.

The recipe is DistilBERT's (Sanh et al. 2019, arXiv 1910.01108, section 3), except that the whole MLM head is
copied, and that the teacher's token-type-0 vector is added to the position embeddings and not dropped: with
all layers kept, the student's outputs are the teacher's.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, PreTrainedConfig, PreTrainedModel

from distil_ray.errors import InputError
from distil_ray.models.families import (
    check_config,
    family_of,
    has_head,
    in_layer,
    is_tied,
    layers_of,
    own_fields,
)
from distil_ray.models.loading import initialize, initialize_encoder
from distil_ray.models.narrowing import Sizes, narrow

Architecture = Literal["distilbert", "same"]
Init = Literal["teacher", "random"]
Head = Literal["new", "none"]

_AS_WIDE = Sizes()

# Written into DistilBERT's modules, where a BERT configuration can choose.
_DISTILBERT_LAYER_NORM_EPS = 1e-12

_BERT_TO_DISTILBERT = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.LayerNorm": "embeddings.LayerNorm",
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions.decoder": "vocab_projector",
}
_BERT_TO_DISTILBERT_LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def evenly_spaced(num_layers: int, num_kept: int) -> list[int]:
    """Return ``num_kept`` of the layers ``0 … num_layers - 1``, the first and the last among them.

    Distances are equal up to rounding (half up): [0, 2, 4, 7, 9, 11] for 6 of 12, DistilBERT's choice. One
    kept layer is the first.
    """
    gaps = max(num_kept - 1, 1)
    return [(2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(num_kept)]


def select_layers(num_teacher_layers: int, layers: int | Sequence[int] | None) -> list[int]:
    """Return the teacher layers that the student takes over, in the student's order.

    Args:
        num_teacher_layers: how many there are to choose from.
        layers: a list of them, counted from 0; or how many, evenly spaced; or None for half (rounded up).

    Raises:
        InputError: no layer, more layers than there are, one that does not exist, or one listed twice.
    """
    if layers is None:
        layers = (num_teacher_layers + 1) // 2
    if isinstance(layers, int):
        if not 1 <= layers <= num_teacher_layers:
            raise InputError(f"the student asks for {layers} layers; expected 1 to {num_teacher_layers}, the teacher's")
        return evenly_spaced(num_teacher_layers, layers)
    if not layers:
        raise InputError("the student's list of teacher layers is empty; expected at least one layer")
    outside = [layer for layer in layers if not 0 <= layer < num_teacher_layers]
    if outside:
        raise InputError(f"teacher layers {outside} do not exist; expected 0 to {num_teacher_layers - 1}")
    if len(set(layers)) != len(layers):
        raise InputError(f"the student's teacher layers {list(layers)} name a layer twice; expected each at most once")
    return list(layers)


def build_student(
    teacher: PreTrainedModel,
    *,
    layers: int | Sequence[int] | None,
    architecture: Architecture | None,
    init: Init,
    seed: int,
    head: Head | None = None,
    sizes: Sizes = _AS_WIDE,
) -> PreTrainedModel:
    """Return an fp32 student with its own weights.

    If it is narrower than the teacher of its weights, a buffer ``kept_dimensions`` [D'] says which dimensions of the
    teacher's hidden states are its own; it is not saved.

    Args:
        teacher: of any supported family, with an MLM head or without.
        layers: see :func:`select_layers`.
        architecture: ``distilbert`` turns a BERT teacher into a DistilBERT student (no token types); ``same``
            keeps the teacher's class; None is ``distilbert`` for a BERT teacher and ``same`` for any other.
        init: ``teacher`` copies the layers, the embeddings and the MLM head; ``random`` draws all of them.
        seed: of the random weights.
        head: the student's MLM head; None: the teacher's, or one like it; ``new``: see `grow_head`; ``none``: it has
            none, and is a bare encoder.
        sizes: where they are smaller than the teacher's, see `narrow`.

    Raises:
        InputError: layers that do not exist or cannot begin a student, a teacher that DistilBERT cannot represent, one
            without the head that the student should have, or sizes that it cannot be narrowed to.
    """
    check_config(teacher.config, "the teacher", needs_head=head != "none")
    if head is None and not has_head(teacher):
        raise InputError(
            "the teacher has no masked-language-modelling head for the student to copy; set student.head to new, "
            "for one that is trained from the start, or to none, for an encoder without"
        )
    teacher, dimensions = narrow(teacher, sizes, keeps_weights=init == "teacher")
    student = _build(teacher, layers, architecture, init, seed, with_head=head is None)
    student = grow_head(student, seed) if head == "new" else student
    if dimensions is not None:
        student.register_buffer("kept_dimensions", dimensions, persistent=False)
    return student


def _build(
    teacher: PreTrainedModel,
    layers: int | Sequence[int] | None,
    architecture: Architecture | None,
    init: Init,
    seed: int,
    *,
    with_head: bool,
) -> PreTrainedModel:
    """Return a student as wide as the teacher, with a head like the teacher's or none."""
    kept = select_layers(teacher.config.num_hidden_layers, layers)
    if family_of(teacher.config).is_first_layer_special and kept[0] != 0:
        raise InputError(
            f"the student's teacher layers {kept} begin with {kept[0]}; expected 0 first, since the first layer of "
            f"{teacher.config.model_type} models has other parts than the rest"
        )
    if architecture is None:
        architecture = "distilbert" if teacher.config.model_type == "bert" else "same"
    converts = architecture == "distilbert" and teacher.config.model_type != "distilbert"
    config = _distilbert_config(teacher, len(kept)) if converts else _same_config(teacher, kept)
    student = initialize(config, seed) if with_head else initialize_encoder(config, seed)
    if init == "teacher":
        weights, own_head = _weights_of(teacher)
        weights = _keep_layers(weights, family_of(teacher.config).layers, kept)
        if converts:
            weights, own_head = _to_distilbert(weights), _renamed(own_head)
        _load(student, weights, own_head if with_head else {})
    return student


def grow_head(encoder: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return an fp32 masked language model of a bare encoder's weights, with a new head to begin with.

    Its decoder is the embeddings, its matrix the identity (cut off or filled up with zeros where it is not square), and
    all biases are 0: it predicts the pieces whose embeddings are like a position's hidden state.

    Args:
        seed: of whatever else the head of the family has.

    Raises:
        InputError: the family has no head.
    """
    check_config(encoder.config, "the encoder", needs_head=True)
    config = copy.deepcopy(encoder.config)
    config.tie_word_embeddings = True
    model = initialize(config, seed)
    _load(model, encoder.state_dict(), {})
    dense = family_of(config).dense
    if dense is not None:
        with torch.no_grad():
            nn.init.eye_(model.get_parameter(f"{dense}.weight"))
    return model


def set_attention_dropout(model: PreTrainedModel, probability: float) -> None:
    """Set the dropout of attention probabilities, in the configuration and in every layer."""
    family = family_of(model.config)
    setattr(model.config, family.attention_dropout_field, probability)
    for layer in layers_of(model):
        family.set_attention_dropout(layer, probability)


def _same_config(teacher: PreTrainedModel, kept: Sequence[int]) -> PreTrainedConfig:
    """The family's own fields and no more: settings of the caller such as output_hidden_states are left out."""
    config_class = type(teacher.config)
    names = [name for name in own_fields(config_class) if hasattr(teacher.config, name)]
    fields = {name: copy.deepcopy(getattr(teacher.config, name)) for name in names}
    for name in family_of(teacher.config).per_layer_fields:
        fields[name] = [fields[name][layer] for layer in kept]
    fields[config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return config_class(**{**fields, "tie_word_embeddings": is_tied(teacher)})


def _distilbert_config(teacher: PreTrainedModel, num_kept: int) -> DistilBertConfig:
    config = teacher.config
    if config.model_type != "bert":
        raise InputError(
            f"a {config.model_type} teacher cannot become a DistilBERT student; set the student's "
            "architecture to 'same'"
        )
    if config.layer_norm_eps != _DISTILBERT_LAYER_NORM_EPS:
        raise InputError(
            f"the teacher's layer_norm_eps is {config.layer_norm_eps}, DistilBERT's is always "
            f"{_DISTILBERT_LAYER_NORM_EPS}; set the student's architecture to 'same'"
        )
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        n_layers=num_kept,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=is_tied(teacher),
    )


def _weights_of(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the encoder, by their names in it, and those of the head by theirs in the model."""
    if not has_head(model):
        return dict(model.state_dict()), {}
    prefix = f"{model.base_model_prefix}."
    encoder = {name.removeprefix(prefix): one for name, one in model.state_dict().items() if name.startswith(prefix)}
    return encoder, {name: one for name, one in model.state_dict().items() if not name.startswith(prefix)}


def _load(model: PreTrainedModel, encoder: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
    """Give a model the weights of `_weights_of`; without a head's, it keeps its own."""
    prefix = f"{model.base_model_prefix}." if has_head(model) else ""
    own_head = head or _weights_of(model)[1]
    model.load_state_dict({f"{prefix}{name}": weight for name, weight in encoder.items()} | dict(own_head))


def _keep_layers(encoder: Mapping[str, Tensor], stack: str, kept: Sequence[int]) -> dict[str, Tensor]:
    """An encoder's weights without the layers that are not kept, the others renumbered."""
    student_layer = {str(layer): i for i, layer in enumerate(kept)}
    renamed = {}
    for name, weight in encoder.items():
        layer, rest = in_layer(name, stack)
        if layer is None:
            renamed[name] = weight
        elif layer in student_layer:
            renamed[f"{stack}.{student_layer[layer]}.{rest}"] = weight
    return renamed


def _to_distilbert(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a BertModel to DistilBertModel's, with token type 0 folded in."""
    renamed = _renamed(encoder)
    for name, weight in encoder.items():
        layer, rest = in_layer(name, "encoder.layer")
        if layer is not None:
            path, _, kind = rest.rpartition(".")
            renamed[f"transformer.layer.{layer}.{_BERT_TO_DISTILBERT_LAYER[path]}.{kind}"] = weight
    position = "embeddings.position_embeddings.weight"
    with torch.no_grad():
        renamed[position] = renamed[position] + encoder["embeddings.token_type_embeddings.weight"][0]
    return renamed


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what is in no layer of BERT's to what DistilBERT calls it; the rest is left out."""
    places = {name: name.rpartition(".") for name in weights}
    return {
        f"{_BERT_TO_DISTILBERT[path]}.{kind}": weights[name]
        for name, (path, _, kind) in places.items()
        if path in _BERT_TO_DISTILBERT
    }
