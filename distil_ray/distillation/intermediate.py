"""Losses on what layers inside teacher and student return, taken by hooks: relations and hidden states.

Shapes: B rows, T tokens per row, D width of the student, D' of the teacher.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distil_ray.distillation.losses import cosine_loss, mse_loss
from distil_ray.distillation.relations import relation_loss
from distil_ray.errors import InputError
from distil_ray.models.families import layers_of, projections_of, split_projections

IntermediateTerm = Literal["relations", "hidden"]
HiddenLoss = Literal["mse", "cosine"]

MAX_HEADS = 48
"""Relation heads where their number is left open: what MiniLMv2 takes for models of the width of BERT-base."""


@dataclass(frozen=True)
class Relations:
    """What the relation loss compares with the student's last layer.

    Attributes:
        layer: of the teacher, counted from 0.
        num_heads: relation heads.
    """

    layer: int
    num_heads: int


@dataclass(frozen=True)
class HiddenStates:
    """Which hidden states are compared, and how.

    Attributes:
        layers: the teacher's layer for each of the student's, counted from 0. What goes into the first layers, the
            embeddings, is compared in any case.
    """

    layers: tuple[int, ...]
    loss: HiddenLoss


def choose_relations(
    teacher: PreTrainedModel, student: PreTrainedModel, layer: int | None, num_heads: int | None
) -> Relations:
    """Fill in what is left open: the teacher's last layer, and the most heads up to MAX_HEADS that divide all widths.

    Raises:
        InputError: there is no such layer, or a width is not a multiple of the number of heads.
    """
    num_layers = len(layers_of(teacher))
    layer = num_layers - 1 if layer is None else layer
    if layer >= num_layers:
        raise InputError(
            f"distill.relation_layer: given {layer}, but the teacher has {num_layers} layers; expected 0 to "
            f"{num_layers - 1}"
        )
    widths = {"teacher": _projected_widths(teacher, layer), "student": _projected_widths(student, -1)}
    every = {*widths["teacher"], *widths["student"]}
    common = [heads for heads in range(1, min(every) + 1) if all(width % heads == 0 for width in every)]
    if num_heads is None:
        return Relations(layer, max(heads for heads in common if heads <= MAX_HEADS))
    if num_heads not in common:
        described = " and ".join(f"{width} (the {role}'s)" for role, own in widths.items() for width in sorted(own))
        raise InputError(
            f"distill.relation_heads: given {num_heads}, which does not divide queries, keys and values of widths "
            f"{described}; expected one of {', '.join(map(str, common))}"
        )
    return Relations(layer, num_heads)


def choose_hidden_states(
    teacher: PreTrainedModel, student: PreTrainedModel, layers: Literal["uniform"] | Sequence[int], loss: HiddenLoss
) -> HiddenStates:
    """Spell out the map of layers: ``uniform`` gives layer i of M the teacher's (i + 1) N / M - 1 (TinyBERT, Jiao et
    al. 2020, arXiv 1909.10351, section 3.2), rounded half up.

    Raises:
        InputError: the map does not have one layer of the teacher for each of the student's, in increasing order.
    """
    num_student, num_teacher = len(layers_of(student)), len(layers_of(teacher))
    if layers == "uniform":
        if num_student > num_teacher:
            raise InputError(
                f"distill.hidden_layers: the student has {num_student} layers, more than the teacher's {num_teacher}; "
                "expected at most as many, so that each of them has one of the teacher's to follow"
            )
        ends = ((2 * i * num_teacher + num_student) // (2 * num_student) for i in range(1, num_student + 1))
        return HiddenStates(tuple(end - 1 for end in ends), loss)
    given = tuple(map(int, layers))
    if len(given) != num_student:
        raise InputError(
            f"distill.hidden_layers: given {len(given)} layers, but the student has {num_student}; expected one of the "
            "teacher's layers for each of the student's"
        )
    if outside := [layer for layer in given if layer >= num_teacher]:
        raise InputError(f"distill.hidden_layers: the teacher has no layers {outside}; expected 0 to {num_teacher - 1}")
    return HiddenStates(given, loss)


def _projected_widths(model: PreTrainedModel, layer: int) -> set[int]:
    """The widths of queries, keys and values."""
    projections = (module for module in projections_of(model, layer) if isinstance(module, nn.Linear))
    return {part.shape[-1] for part in split_projections([torch.empty(0, one.out_features) for one in projections])}


class IntermediateLosses(nn.Module):
    """Compares what is inside two models. Its parameters, if any, map the student's hidden states to the teacher's
    width.

    Around each forward pass of both models: `begin` before, `sums` after. Outside of that, nothing is kept.

    Args:
        relations, hidden_states: what to compare; None leaves that loss out.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        relations: Relations | None,
        hidden_states: HiddenStates | None,
    ) -> None:
        super().__init__()
        self._relations, self._hidden_states = relations, hidden_states
        own, others = _Taps(), _Taps()
        if relations is not None:
            own.tap_projections(student, -1)
            others.tap_projections(teacher, relations.layer)
        self.projections = nn.ModuleList()
        if hidden_states is not None:
            own.tap_states(student, range(len(layers_of(student))))
            others.tap_states(teacher, hidden_states.layers)
            self.projections.extend(_projections(student, teacher, 1 + len(hidden_states.layers)))
        self._taps = own, others

    @property
    def terms(self) -> tuple[IntermediateTerm, ...]:
        """What it can compute."""
        is_there: dict[IntermediateTerm, object] = {"relations": self._relations, "hidden": self._hidden_states}
        return tuple(term for term, one in is_there.items() if one is not None)

    def begin(self) -> None:
        """Keep what the models return from now on."""
        for taps in self._taps:
            taps.is_open = True

    def sums(self, terms: Collection[str]) -> dict[IntermediateTerm, Tensor]:
        """Return those of ``terms`` that it can, summed over the tokens since `begin`, as fp32 scalars.

        Relations: see `relation_loss`. Hidden states: the mean over the compared pairs, of the squared difference's
        mean over the width, or of 1 - cosine.
        """
        (own_vectors, own_states), (vectors, states) = (taps.take() for taps in self._taps)
        found: dict[IntermediateTerm, Tensor] = {}
        if self._relations is not None and "relations" in terms:
            found["relations"] = relation_loss(
                split_projections(own_vectors), split_projections(vectors), self._relations.num_heads
            )
        if self._hidden_states is not None and "hidden" in terms:
            if len(self.projections):
                own_states = [layer(state) for layer, state in zip(self.projections, own_states, strict=True)]
            compare = mse_loss if self._hidden_states.loss == "mse" else cosine_loss
            losses = [compare(own, other) for own, other in zip(own_states, states, strict=True)]
            found["hidden"] = torch.stack(losses).mean()
        return found


def _projections(student: PreTrainedModel, teacher: PreTrainedModel, count: int) -> Iterator[nn.Linear]:
    """Linear maps [D, D'] of as many hidden states; none where the widths are equal.

    They begin as the identity on the dimensions that both have, the first ones unless the student says which of the
    teacher's it has kept: what `init: teacher` has copied is compared with what it is copied from, and nothing depends
    on a random state.
    """
    own, other = student.config.hidden_size, teacher.config.hidden_size
    kept = getattr(student, "kept_dimensions", None)
    for _ in range(count if own != other else 0):
        layer = nn.Linear(own, other, bias=False, device=student.device)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(other, own) if kept is None else torch.eye(other)[:, kept.cpu()])
        yield layer


class _Taps:
    """Keeps what modules of one model return while it is open."""

    def __init__(self) -> None:
        self.is_open = False
        self._vectors: dict[int, Tensor] = {}
        self._states: dict[int, Tensor] = {}

    def tap_projections(self, model: PreTrainedModel, layer: int) -> None:
        """Keep the vectors that a layer's attention compares and adds up."""
        for place, module in enumerate(projections_of(model, layer)):
            _keep_output(module, self, self._vectors, place)

    def tap_states(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        """Keep what goes into the first layer, and what comes out of each of ``layers``."""
        first = layers_of(model)[0]

        def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if self.is_open:
                self._states[0] = args[0] if args else kwargs["hidden_states"]

        first.register_forward_pre_hook(keep_input, with_kwargs=True)
        for place, layer in enumerate(layers, start=1):
            _keep_output(layers_of(model)[layer], self, self._states, place)

    def take(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return what was kept, in the order of the taps, and close."""
        taken = [[kept[place] for place in sorted(kept)] for kept in (self._vectors, self._states)]
        self._vectors.clear()
        self._states.clear()
        self.is_open = False
        return taken[0], taken[1]


def _keep_output(module: nn.Module, taps: _Taps, kept: dict[int, Tensor], place: int) -> None:
    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if taps.is_open and place not in kept:
            kept[place] = output[0] if isinstance(output, tuple) else output

    module.register_forward_hook(keep)
