"""A teacher made narrower: fewer dimensions of the hidden states, fewer or narrower heads, fewer neurons.

What is kept is what has the largest weights: of each dimension, head or neuron, the sum of the squares of all weights
that write or read it. That is magnitude pruning (Li et al. 2017, arXiv 1608.08710, section 3), with the weights that
would be dropped together counted together (DepGraph, Fang et al. 2023, arXiv 2301.12900). It needs no text, and the
same teacher gives the same student. What is kept stays in its order.

- The hidden states' dimensions are the same in the whole model, as the residual connections add them up; all of the
  teacher's layers count, with norms and embeddings. Nothing is rescaled: norms give each dimension a scale of its own.
- Heads are chosen layer by layer, except where all layers share a bias of each head (MPNet); heads of queries that
  share one of keys and values (EuroBERT) are kept or dropped together.
- Where heads become narrower, each keeps some dimensions of queries and keys, the same of both, and some of values and
  of what reads them. Softmax gets q·k / √d. So that it gets the teacher's scores less what the dropped dimensions added
  to them, and not √(d / d') times as much, queries and keys are multiplied by (d' / d)^¼ each. Rotary position
  embeddings turn a dimension by an angle that depends on its place in the head: there, heads cannot become narrower.
- Neurons of the feed-forward part are chosen layer by layer.

Shapes: D hidden states, H heads, G groups of heads with keys of their own (H but for grouped queries), d of one head,
F neurons; d' and so on are the student's.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from distil_ray.errors import InputError
from distil_ray.models.families import (
    Family,
    embedding_width,
    family_of,
    has_head,
    head_width,
    in_layer,
    is_tied,
    layers_of,
    num_key_heads,
)
from distil_ray.models.loading import initialize, initialize_encoder

Axis = Literal["hidden", "scores", "values", "neurons", "heads", "other"]
"""What lies along an axis of a weight. Scores: queries and keys; values: also what reads them; heads: a number each."""

_HEADS: tuple[Axis, Axis] = "scores", "values"


class Sizes(NamedTuple):
    """A student's sizes; None follows from the others, or is the teacher's."""

    hidden_size: int | None = None
    num_heads: int | None = None
    intermediate_size: int | None = None


def narrow(teacher: PreTrainedModel, sizes: Sizes, *, keeps_weights: bool) -> tuple[PreTrainedModel, Tensor | None]:
    """Return the teacher in fp32 with fewer dimensions, heads and neurons, and the D' dimensions of D that it keeps.

    Args:
        keeps_weights: whether it gets the teacher's; otherwise it has none (it is on torch's meta device), and None
            stands for the dimensions.

    With the teacher's own sizes, it is the teacher itself, and None.

    Raises:
        InputError: sizes that are larger than the teacher's, that no model of its family has, or that cannot be had by
            leaving out weights.
    """
    own = _sizes_of(teacher.config)
    if all(given in (None, one) for given, one in zip(sizes, own, strict=True)):
        return teacher, None
    config = _narrowed_config(teacher, sizes)
    if not keeps_weights:
        with torch.device("meta"):
            return _make(teacher, config), None
    _check_truncation(teacher.config, config)
    narrower = _make(teacher, config)
    weights, targets = teacher.state_dict(), narrower.state_dict()
    axes = {name: _axes(teacher, name, weight, targets[name]) for name, weight in weights.items()}
    choice = _choose(teacher, config, axes)
    scale = (head_width(config) / head_width(teacher.config)) ** 0.25
    with torch.no_grad():
        for name, weight in weights.items():
            layer, _ = _place(teacher, name)
            for axis, kind in enumerate(axes[name]):
                length = weight.shape[axis]
                if length != targets[name].shape[axis]:
                    num_parts, num_units = _num_parts(teacher.config, kind, length), _num_units(teacher.config, kind)
                    weight = _cut(weight, axis, num_parts, num_units, choice[_scope(layer, kind), kind])
            targets[name].copy_(weight * scale if axes[name][0] == "scores" and scale != 1 else weight)
    return narrower, choice[None, "hidden"].units


def _make(teacher: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    return (initialize if has_head(teacher) else initialize_encoder)(config, seed=0)


# ---------------------------------------------------------------------------------------------- sizes


def _sizes_of(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Those of `Sizes`."""
    return config.hidden_size, config.num_attention_heads, getattr(config, family_of(config).feed_forward_field)


def _narrowed_config(teacher: PreTrainedModel, sizes: Sizes) -> PreTrainedConfig:
    """Return the teacher's configuration with other sizes.

    Without ``num_heads``, a smaller hidden size keeps the width of a head; without ``intermediate_size``, the ratio of
    the two (rounded down).

    Raises:
        InputError: sizes that are larger than the teacher's, or that no model of its family has.
    """
    config = teacher.config
    own = _sizes_of(config)
    for name, given, most in zip(Sizes._fields, sizes, own, strict=True):
        if given is not None and given > most:
            raise InputError(f"student.{name}: given {given}, more than the teacher's {most}; expected at most that")
    hidden = sizes.hidden_size or config.hidden_size
    heads = sizes.num_heads or _num_heads(config, hidden)
    _check_heads(config, hidden, heads)

    narrowed = copy.deepcopy(config)
    narrowed.hidden_size, narrowed.num_attention_heads = hidden, heads
    neurons = sizes.intermediate_size or max(1, own[2] * hidden // config.hidden_size)
    setattr(narrowed, family_of(config).feed_forward_field, neurons)
    for name in ("embedding_size", "pooler_hidden_size"):  # where they are the hidden size, they stay that
        if getattr(config, name, None) == config.hidden_size:
            setattr(narrowed, name, hidden)
    if getattr(config, "num_key_value_heads", None) is not None:
        narrowed.num_key_value_heads = heads * num_key_heads(config) // config.num_attention_heads
    if getattr(config, "attention_head_size", None) is not None:
        narrowed.attention_head_size = hidden // heads
    narrowed.tie_word_embeddings = is_tied(teacher)
    return narrowed


def _num_heads(config: PreTrainedConfig, hidden_size: int) -> int:
    """As many as there are, or as have room at their width."""
    if hidden_size == config.hidden_size:
        return int(config.num_attention_heads)
    heads, rest = divmod(hidden_size, head_width(config))
    if rest or not heads:
        raise InputError(
            f"student.hidden_size: given {hidden_size}, which is no multiple of {head_width(config)}, the width of the "
            "teacher's heads; expected a multiple, or student.num_heads, too"
        )
    return heads


def _check_heads(config: PreTrainedConfig, hidden_size: int, num_heads: int) -> None:
    """Raise InputError unless a model of the family can have this many heads."""
    if not _states_head_width(config) and hidden_size % num_heads:
        raise InputError(
            f"student.num_heads: {num_heads} heads do not divide the hidden size {hidden_size}; expected a divisor"
        )
    per_group = config.num_attention_heads // num_key_heads(config)
    if num_heads % per_group:
        raise InputError(
            f"student.num_heads: given {num_heads}, but {per_group} of the teacher's heads share one of keys and "
            f"values; expected a multiple of {per_group}"
        )


def _states_head_width(config: PreTrainedConfig) -> bool:
    """Whether the width of a head is a setting of its own, and not the hidden size divided by the heads."""
    return getattr(config, "head_dim", None) is not None


def _check_truncation(teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
    """Raise InputError unless a model of the sizes of ``student`` can be had by leaving out weights."""
    width, own = head_width(student), head_width(teacher)
    described = (
        f"the student's {student.num_attention_heads} heads are {width} wide, the teacher's {own} "
        "(student.hidden_size, student.num_heads)"
    )
    if width > own:
        raise InputError(f"{described}; expected at most that, or student.init random")
    if width < own and family_of(teacher).is_rotary:
        raise InputError(
            f"{described}; expected the same, as the rotary position embeddings of {teacher.model_type} give each "
            "place in a head its frequency, or student.init random"
        )
    if student.hidden_size == teacher.hidden_size:
        return
    if embedding_width(teacher) != teacher.hidden_size and embedding_width(student) == student.hidden_size:
        raise InputError(
            f"student.hidden_size: given {student.hidden_size}, the width of the teacher's embeddings, with which "
            f"{teacher.model_type} has no matrix behind them; expected another, or student.init random"
        )
    if getattr(teacher, "conv_kernel_size", 0) > 0 and getattr(teacher, "conv_groups", 1) > 1:
        raise InputError(
            f"student.hidden_size: given {student.hidden_size}, but the teacher's convolution has groups of dimensions "
            "(conv_groups), which dropped ones would tear apart; expected null, or student.init random"
        )


# ---------------------------------------------------------------------------------------------- axes


def _layer_axes(family: Family) -> dict[str, tuple[Axis, Axis]]:
    """What lies along the two axes of a layer's matrices, by their modules below the layer; the others' are hidden."""
    axes: dict[str, tuple[Axis, Axis]] = {}
    for path in (*family.projections[:2], *family.position_projections):
        axes[path] = "scores", "hidden"
    for path in family.projections[2:]:
        axes[path] = "values", "hidden"
    for path in family.feed_forward:
        axes[path] = "neurons", "hidden"
    axes[family.attention_output] = "hidden", "values"
    axes[family.feed_forward_output] = "hidden", "neurons"
    return axes


def _place(model: PreTrainedModel, name: str) -> tuple[str | None, str]:
    """The layer a weight belongs to, None for none, and its name in there, or in the encoder."""
    name = name.removeprefix(f"{model.base_model_prefix}." if has_head(model) else "")
    return in_layer(name, family_of(model.config).layers)


def _axes(model: PreTrainedModel, name: str, weight: Tensor, target: Tensor) -> tuple[Axis, ...]:
    """What lies along each axis of a weight, of which ``target`` is the student's."""
    family = family_of(model.config)
    layer, rest = _place(model, name)
    path = rest.rpartition(".")[0]
    if layer is not None:
        return _layer_axes(family).get(path, ("hidden", "hidden"))[: weight.ndim]
    if path == family.shared_heads:
        return "other", "heads"
    return tuple("hidden" if old != new else "other" for old, new in zip(weight.shape, target.shape, strict=True))


def _scope(layer: str | None, kind: Axis) -> str | None:
    """Within what something is chosen: a layer, or the whole model (None)."""
    return None if kind == "hidden" else layer


def _num_units(config: PreTrainedConfig, kind: Axis) -> int:
    """How many there are to choose from."""
    if kind in _HEADS:
        return num_key_heads(config)
    sizes = {"hidden": config.hidden_size, "heads": config.num_attention_heads}
    return int(sizes.get(kind) or getattr(config, family_of(config).feed_forward_field))


def _num_parts(config: PreTrainedConfig, kind: Axis, length: int) -> int:
    """How many matrices are one along an axis, each of which has all units: fused projections, gates."""
    if kind in _HEADS:
        return 3 if kind == "scores" and len(family_of(config).projections) == 1 else 1
    return length // _num_units(config, kind)


# ---------------------------------------------------------------------------------------------- choices


class _Kept(NamedTuple):
    """What is kept along an axis that has n of N units, and in each w of its r places.

    Attributes:
        units: [n] int64, in increasing order.
        places: [n, w] int64; None: all.
    """

    units: Tensor
    places: Tensor | None = None


_Choice = dict[tuple[str | None, Axis], _Kept]
"""What is kept, by `_scope` and axis."""


def _cut(weight: Tensor, axis: int, num_parts: int, num_units: int, kept: _Kept) -> Tensor:
    """Return what is kept of a weight."""
    rest = weight.shape[axis] // (num_parts * num_units)
    units = torch.arange(num_parts)[:, None] * num_units + kept.units
    places = torch.arange(rest) if kept.places is None else kept.places
    return weight.index_select(axis, (units[:, :, None] * rest + places).flatten())


def _choose(teacher: PreTrainedModel, config: PreTrainedConfig, axes: Mapping[str, tuple[Axis, ...]]) -> _Choice:
    """Keep what has the largest weights."""
    squares = _squares(teacher, axes)
    choice: _Choice = {}
    for scope, kind in squares:
        if kind in ("hidden", "neurons"):
            total = torch.stack(squares[scope, kind]).sum(0).flatten()
            choice[scope, kind] = _Kept(_largest(total, _num_units(config, kind)))
    groups = _largest(_of_groups(teacher, squares), num_key_heads(config))
    is_narrower = head_width(config) < head_width(teacher.config)
    for layer, kept in enumerate(groups):
        for kind in _HEADS:
            places = None
            if is_narrower:
                places = _largest(torch.stack(squares[str(layer), kind]).sum(0)[kept], head_width(config))
            choice[str(layer), kind] = _Kept(kept, places)
    choice[None, "heads"] = _Kept(groups[0])
    return choice


def _squares(
    teacher: PreTrainedModel, axes: Mapping[str, tuple[Axis, ...]]
) -> dict[tuple[str | None, Axis], list[Tensor]]:
    """Of each weight (tied ones once), the sums of squares [N, r] by unit and place, of all its axes."""
    squares: dict[tuple[str | None, Axis], list[Tensor]] = defaultdict(list)
    for name, weight in teacher.named_parameters():
        for axis, kind in enumerate(axes[name]):
            if kind not in ("other", "heads"):
                length = weight.shape[axis]
                sums = weight.detach().square().movedim(axis, 0).reshape(length, -1).sum(1, dtype=torch.float64)
                shape = _num_parts(teacher.config, kind, length), _num_units(teacher.config, kind), -1
                squares[_scope(_place(teacher, name)[0], kind), kind].append(sums.reshape(shape).sum(0))
    return squares


def _of_groups(teacher: PreTrainedModel, squares: Mapping[tuple[str | None, Axis], Sequence[Tensor]]) -> Tensor:
    """The sums [L, G] of each layer's groups of heads; where layers share a bias of each, the same for all."""
    totals = torch.stack(
        [
            torch.stack([one.sum(1) for kind in _HEADS for one in squares[str(layer), kind]]).sum(0)
            for layer in range(len(layers_of(teacher)))
        ]
    )
    return totals if family_of(teacher.config).shared_heads is None else totals.sum(0).expand_as(totals)


def _largest(totals: Tensor, num_kept: int) -> Tensor:
    """The places of the largest along the last axis, the first of equal ones, in increasing order."""
    return totals.sort(descending=True, stable=True).indices[..., :num_kept].sort().values
