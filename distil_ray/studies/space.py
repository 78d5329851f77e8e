"""What a search tries: rules by key -> parameters that a sampler draws -> settings of a run.

A *point* maps each parameter's name to its raw value, as Optuna takes it. Grids have no parameters:
their combinations are tried in order. Each rule varies one setting or a group of them, its ``keys``: it has
``distributions`` of its parameters, the ``settings`` at a point, the ``point`` of settings (None if the rule does not
allow them), and ``examples`` at the edges (if these are valid, all settings are).
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from distil_ray.config import shown

Point = dict[str, Any]
Settings = dict[str, Any]  # by dotted key

# A weight of a simplex below this becomes 0: otherwise no trial would ever leave out one of the losses.
ZERO_BELOW = 0.05
_SIGNIFICANT_DIGITS = 4
_WEIGHT_DIGITS = 3


@dataclass(frozen=True)
class Range:
    """``uniform``, ``loguniform`` and ``randint``."""

    key: str
    distribution: FloatDistribution | IntDistribution

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def distributions(self) -> dict[str, BaseDistribution]:
        return {self.key: self.distribution}

    def settings(self, point: Point) -> Settings:
        value, (low, high) = point[self.key], (self.distribution.low, self.distribution.high)
        if isinstance(self.distribution, FloatDistribution):
            value = min(max(float(f"{value:.{_SIGNIFICANT_DIGITS}g}"), low), high)
        return {self.key: value}

    def point(self, settings: Mapping[str, Any]) -> Point | None:
        value: Any = settings.get(self.key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {self.key: value} if is_number and self.distribution.low <= value <= self.distribution.high else None

    def examples(self) -> Iterator[Settings]:
        yield {self.key: self.distribution.low}
        yield {self.key: self.distribution.high}


@dataclass(frozen=True)
class Choice:
    """``choice``: one of some values, of any type."""

    key: str
    values: tuple[Any, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def distributions(self) -> dict[str, BaseDistribution]:
        return {self.key: CategoricalDistribution(range(len(self.values)))}

    def settings(self, point: Point) -> Settings:
        return {self.key: self.values[point[self.key]]}

    def point(self, settings: Mapping[str, Any]) -> Point | None:
        value = settings.get(self.key)
        return {self.key: self.values.index(value)} if value in self.values else None

    def examples(self) -> Iterator[Settings]:
        yield from ({self.key: value} for value in self.values)


class Grid(Choice):
    """``grid``: like a choice, but all values are tried in order."""

    def distributions(self) -> dict[str, BaseDistribution]:
        return {}

    def point(self, settings: Mapping[str, Any]) -> Point | None:
        return {} if settings.get(self.key) in self.values else None


@dataclass(frozen=True)
class Simplex:
    """``simplex``: weights that sum to 1, uniformly distributed; those below `ZERO_BELOW` become 0.

    The parameters are independent and uniform on [0, 1]. Each breaks its part off the rest of a stick of length 1: with
    n parts still to come, its share of the rest is distributed as Beta(1, n), here by inversion.
    """

    name: str
    members: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.members

    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: FloatDistribution(0.0, 1.0) for name in self._parameters}

    @property
    def _parameters(self) -> tuple[str, ...]:
        return tuple(f"{self.name}[{i}]" for i in range(len(self.members) - 1))

    def weights(self, point: Point) -> list[float]:
        """The weights at a point, before small ones become 0."""
        rest, weights = 1.0, []
        for i, name in enumerate(self._parameters):
            part = rest * (1 - (1 - point[name]) ** (1 / (len(self.members) - 1 - i)))
            weights.append(part)
            rest -= part
        return [*weights, rest]

    def settings(self, point: Point) -> Settings:
        kept = [weight if weight >= ZERO_BELOW else 0.0 for weight in self.weights(point)]
        rounded = [round(weight / sum(kept), _WEIGHT_DIGITS) for weight in kept]
        largest = rounded.index(max(rounded))
        rounded[largest] = round(rounded[largest] + 1 - sum(rounded), _WEIGHT_DIGITS)  # so that the sum is 1
        return dict(zip(self.members, rounded, strict=True))

    def point(self, settings: Mapping[str, Any]) -> Point | None:
        weights: list[Any] = [settings.get(key) for key in self.members]
        if any(not isinstance(weight, int | float) or weight < 0 for weight in weights):
            return None
        rest, point = float(sum(weights)), {}
        if rest == 0:
            return None
        for i, name in enumerate(self._parameters):
            left = max(1 - weights[i] / rest, 0.0) if rest > 0 else 1.0
            point[name] = 1 - left ** (len(self.members) - 1 - i)
            rest -= weights[i]
        return point

    def examples(self) -> Iterator[Settings]:
        for corner in self.members:
            yield {key: float(key == corner) for key in self.members}
        yield {key: 1 / len(self.members) for key in self.members}


Rule = Range | Choice | Simplex


@dataclass(frozen=True)
class Space:
    """All rules of a search."""

    rules: tuple[Rule, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that are varied, in the order given."""
        return tuple(key for rule in self.rules for key in rule.keys)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: found for rule in self.rules for name, found in rule.distributions().items()}

    @property
    def num_combinations(self) -> int:
        """Of the grids' values; 1 without a grid."""
        return math.prod(len(grid.values) for grid in self._grids)

    @property
    def _grids(self) -> list[Grid]:
        return [rule for rule in self.rules if isinstance(rule, Grid)]

    def settings(self, point: Point, combination: int) -> Settings:
        """The values at a point, with the grids' values of that combination (counted modulo their number)."""
        point = dict(point)
        for grid in reversed(self._grids):  # the last one changes fastest
            combination, point[grid.key] = divmod(combination, len(grid.values))
        return {key: value for rule in self.rules for key, value in rule.settings(point).items()}

    def point(self, settings: Mapping[str, Any]) -> Point | None:
        """The point with these values; None if the space does not hold it."""
        found: Point = {}
        for rule in self.rules:
            point = rule.point(settings)
            if point is None:
                return None
            found |= point
        return found

    def simplexes(self) -> list[Simplex]:
        return [rule for rule in self.rules if isinstance(rule, Simplex)]


# ------------------------------------------------------------------------------------------------ reading


def parse_space(given: Mapping[str, Any]) -> tuple[Space, list[str]]:
    """Return the valid rules, and one line for each rule that is not."""
    rules: list[Rule] = []
    problems = [] if given else ["search.space: given nothing, expected at least one key with a rule"]
    for name, content in given.items():
        try:
            rules.append(_parse_rule(str(name), content))
        except ValueError as error:
            problems.append(f"search.space.{name}: {error}")
    keys = [key for rule in rules for key in rule.keys]
    problems += [
        f"search.space: {key} is varied by {keys.count(key)} rules, expected one"
        for key in dict.fromkeys(keys)
        if keys.count(key) > 1
    ]
    return Space(tuple(rules)), problems


def _parse_rule(name: str, content: Any) -> Rule:
    if not isinstance(content, Mapping) or len(content) != 1:
        raise ValueError(f"given {shown(content)}, expected one rule, such as {{uniform: [1, 4]}}")
    ((kind, argument),) = content.items()
    if kind not in _KINDS:
        near = difflib.get_close_matches(str(kind), _KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(_KINDS)}"
        raise ValueError(f"unknown rule {kind}, {hint}")
    if not isinstance(argument, Sequence) or isinstance(argument, str) or not argument:
        raise ValueError(f"given {kind}: {shown(argument)}, expected a list")
    return _KINDS[kind](name, list(argument))


def _uniform(key: str, limits: list[Any]) -> Range:
    low, high = _limits("uniform", limits)
    return Range(key, FloatDistribution(float(low), float(high)))


def _loguniform(key: str, limits: list[Any]) -> Range:
    low, high = _limits("loguniform", limits)
    if low <= 0:
        raise ValueError(f"given loguniform: {shown(limits)}, expected numbers above 0")
    return Range(key, FloatDistribution(float(low), float(high), log=True))


def _randint(key: str, limits: list[Any]) -> Range:
    low, high = _limits("randint", limits)
    if not isinstance(low, int) or not isinstance(high, int):
        raise ValueError(f"given randint: {shown(limits)}, expected two integers")
    return Range(key, IntDistribution(low, high - 1))


def _simplex(name: str, keys: list[Any]) -> Simplex:
    if len(keys) < 2 or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise ValueError(f"given simplex: {shown(keys)}, expected a list of at least two different keys")
    return Simplex(name, tuple(keys))


def _limits(kind: str, limits: list[Any]) -> tuple[float, float]:
    are_numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in limits)
    if len(limits) != 2 or not are_numbers or limits[0] >= limits[1]:
        raise ValueError(f"given {kind}: {shown(limits)}, expected [low, high] with low below high")
    return limits[0], limits[1]


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    doubled = [value for value in values if values.count(value) > 1]
    if doubled:
        raise ValueError(f"given {shown(doubled[0])} more than once, expected different values")
    return tuple(values)


_KINDS: dict[str, Callable[[str, list[Any]], Rule]] = {
    "choice": lambda key, values: Choice(key, _distinct(values)),
    "uniform": _uniform,
    "loguniform": _loguniform,
    "randint": _randint,
    "grid": lambda key, values: Grid(key, _distinct(values)),
    "simplex": _simplex,
}
