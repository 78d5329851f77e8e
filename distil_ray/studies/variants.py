"""The configuration of an ablation: an ordinary configuration, and variants of it, each run with several seeds.

Imports little: a mistake in it is found before anything heavy is loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict

from distil_ray.config import (
    Config,
    ConfigError,
    Section,
    load_settings,
    parse_config,
    parse_section,
    shown,
    to_settings,
    with_settings,
)

RUNS_FOLDER = "runs"
_ABLATED = ("distill", "student", "optim")

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"given {shown(list(seeds))}, expected different seeds")
    return seeds


class Ablation(Section):
    """Runs that differ from a first one in a setting or two, over seeds."""

    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=2)]
    """Name: {key: value}, what a variant changes; the others are compared with the first."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Strict(False), AfterValidator(_distinct)] = (1, 2, 3)
    """Values of run.seed: each variant is run with each of them, on the same batches for all variants."""


class AblationConfig(Section):
    """The section that an ablation has more than a run."""

    ablation: Ablation


@dataclass(frozen=True)
class Plan:
    """An ablation, checked and complete.

    Attributes:
        config: of a run with the settings as they stand.
        runs: by variant and seed; one after the other they have the workers to themselves.
    """

    config: Config
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, int], Config]

    @property
    def folder(self) -> str:
        """Where runs and report lie."""
        return f"{self.config.run.storage_path}/{self.config.run.name}"


def load_ablation(files: Sequence[str], overrides: Sequence[str]) -> Plan:
    """Read the configuration of an ablation from YAML files and dotted settings, as `load_config` reads a run's.

    Raises:
        InputError: with one line a problem.
    """
    given = load_settings(files, overrides)
    section = {"ablation": given.pop("ablation", None) or {}}
    config = parse_config(given)
    ablation = parse_section(AblationConfig, section).ablation
    if problems := list(_unfit_keys(ablation)):
        raise ConfigError(problems)
    folder = f"{config.run.storage_path}/{config.run.name}/{RUNS_FOLDER}"
    runs: dict[tuple[str, int], Config] = {}
    problems = []
    for seed in ablation.seeds:
        for name, changes in ablation.variants.items():
            place = {"run.name": f"{name}-seed-{seed}", "run.storage_path": folder, "run.seed": seed}
            try:
                runs[name, seed] = parse_config(with_settings(to_settings(config), {**changes, **place}))
            except ConfigError as error:
                problems += [f"ablation.variants.{name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Plan(config, ablation.variants, ablation.seeds, runs)


def _unfit_keys(ablation: Ablation) -> Iterator[str]:
    for name, changes in ablation.variants.items():
        for key in changes:
            if key.partition(".")[0] not in _ABLATED or "." not in key:
                yield (
                    f"ablation.variants.{name}: given {shown(key)}, expected a key of {', '.join(_ABLATED)}, such as "
                    "distill.alpha_ce; the rest is the same for all variants, so that they can be compared"
                )
