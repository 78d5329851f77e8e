"""The configurations of a search and of an ablation: a run's with one more section, checked before anything starts.

Imports little: a mistake is found before anything heavy is loaded.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from distil_ray.config import (
    Config,
    ConfigError,
    Given,
    Section,
    dump_yaml,
    learned,
    load_settings,
    parse_config,
    parse_section,
    shown,
    to_settings,
    with_settings,
)
from distil_ray.studies.space import Space, parse_space

Metric = Literal[
    "eval/mlm_loss",
    "eval/kl_to_teacher",
    "eval/mlm_accuracy",
    "eval/teacher_agreement",
    "eval/relation_loss",
    "eval/hidden_loss",
]
Direction = Literal["min", "max"]
DIRECTIONS: dict[Metric, Direction] = {
    "eval/mlm_loss": "min",
    "eval/kl_to_teacher": "min",
    "eval/mlm_accuracy": "max",
    "eval/teacher_agreement": "max",
    "eval/relation_loss": "min",
    "eval/hidden_loss": "min",
}
_NEED_NO_TEACHER = ("eval/mlm_loss", "eval/mlm_accuracy")
_INSIDE = ("eval/relation_loss", "eval/hidden_loss")

DEFAULT_NUM_TRIALS = 16
SEARCH_FILE = "search.yaml"
TRIALS_FOLDER = "trials"
ABLATION_RUNS_FOLDER = "runs"

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Study = TypeVar("Study", bound=Section)
Value = TypeVar("Value")


def _parse_study(
    settings: Mapping[str, Any], study: type[Study], problems: list[str]
) -> tuple[Config | None, Study | None]:
    """Check the configuration of a run that has the sections of ``study`` in addition; what is wrong goes to
    ``problems``.
    """
    own = {name: settings.get(name) or {} for name in study.model_fields}
    rest = {name: section for name, section in settings.items() if name not in own}
    config = _collect(problems, parse_config, rest)
    return config, _collect(problems, partial(parse_section, study), own)


def _collect(
    problems: list[str], parse: Callable[[Mapping[str, Any]], Value], settings: Mapping[str, Any], place: str = ""
) -> Value | None:
    """What ``parse`` makes of settings; None if they are faulty: then the list gets each problem, after ``place``."""
    try:
        return parse(settings)
    except ConfigError as error:
        problems += [f"{place}{problem}" for problem in error.problems]
    return None


# ------------------------------------------------------------------------------------------------------- a search


def _objective(given: Any) -> Any:
    if isinstance(given, str) and given.startswith("train/"):
        raise ValueError(
            f"given {shown(given)}, which depends on the loss weights and the temperature themselves: it would be best "
            f"where they make it small; expected a held-out metric, {' or '.join(get_args(Metric))}"
        )
    return given


_EXCHANGES = (
    "its trials would have to take over each other's weights, which has no effect when each trial is a training run "
    "with its own workers"
)
_PAUSES = "it pauses trials, whose workers would stay reserved"
_UNFIT_SCHEDULERS = {"pbt": _EXCHANGES, "pb2": _EXCHANGES, "hyperband": _PAUSES, "bohb": _PAUSES}


def _scheduler(given: Any) -> Any:
    reason = _UNFIT_SCHEDULERS.get(str(given).lower())
    if reason:
        raise ValueError(f"given {shown(given)}, which cannot be used: {reason}; expected asha or none")
    return given


class Search(Section):
    """What is tried, for how long, and what counts as better; the other sections are the starting point."""

    space: dict[str, Any]
    """Key of a setting: its rule. {uniform|loguniform: [low, high]}, {randint: [low, high]} without high,
    {choice|grid: [values]}; or any name: {simplex: [keys]}, weights that sum to 1 (below 0.05: 0)."""
    num_trials: Annotated[int, Field(ge=1)] | None = None
    """Number of trials, the first with the unchanged settings; null: 16, or each combination of a grid once."""
    metric: Annotated[Metric, BeforeValidator(_objective)] = "eval/mlm_loss"
    """Held-out figure to improve: losses and divergences downwards, accuracy and agreement upwards."""
    searcher: Literal["optuna", "random"] = "optuna"
    """Where settings come from: Optuna's TPE (multivariate), or random sampling; a grid needs random."""
    startup_trials: Annotated[int, Field(ge=1)] = 8
    """Trials with random settings before TPE begins."""
    scheduler: Annotated[Literal["asha", "none"], BeforeValidator(_scheduler)] = "asha"
    """asha stops trials early that fall short of others (arXiv 1810.05934); none runs every trial to its end."""
    grace_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of its steps that every trial takes before ASHA may stop it."""
    reduction_factor: Annotated[float, Field(gt=1)] = 2.0
    """ASHA keeps one in this many trials at each comparison; the steps before each grow by the same factor."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of trials at a time; null: as many as the cluster has room for."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often a failed trial is tried again."""
    seed: Seed = 0
    """Seed of the settings that are tried; data and weights of all trials are seeded by run.seed."""


class SearchConfig(Section):
    """What the configuration of a search has in addition to a run's."""

    search: Search


@dataclass(frozen=True)
class SearchPlan:
    """A search, checked and complete.

    Attributes:
        config: of a run with the unchanged settings.
    """

    search: Search
    space: Space
    config: Config

    @cached_property
    def base(self) -> dict[str, Any]:
        """`config` as a mapping of sections; its paths are absolute, as it is read again in other folders."""
        return to_settings(self.config)

    @property
    def direction(self) -> Direction:
        """Whether a smaller or a larger objective is better."""
        return DIRECTIONS[self.search.metric]

    @property
    def num_trials(self) -> int:
        combinations = self.space.num_combinations
        return self.search.num_trials or (1 + combinations if combinations > 1 else DEFAULT_NUM_TRIALS)

    @property
    def folder(self) -> str:
        """Path or URL of the search's folder."""
        return self.config.run.folder

    @property
    def trials_folder(self) -> str:
        """Path or URL of the folder that the trials' runs are in."""
        return f"{self.folder}/{TRIALS_FOLDER}"

    def identity(self) -> dict[str, Any]:
        """What two commands must have in common to belong to the same search, by dotted key."""
        names = ("space", "metric", "searcher", "startup_trials", "scheduler", "grace_fraction", "reduction_factor")
        settings = self.search.model_dump(mode="json", include={*names, "seed"})
        return learned(self.config) | {f"search.{name}": value for name, value in settings.items()}

    def values(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's value of each key of the space; weights of a simplex as shares of their sum."""
        values = {key: settings[key] if key in settings else _value_at(self.base, key) for key in self.space.keys}
        for simplex in self.space.simplexes():
            total = sum(values[key] or 0.0 for key in simplex.keys)
            values |= {key: (values[key] or 0.0) / (total or 1.0) for key in simplex.keys}
        return values

    def describe(self, settings: Mapping[str, Any]) -> str:
        """The same in words."""
        return ", ".join(f"{short(key)} {brief(value)}" for key, value in self.values(settings).items())

    def to_yaml(self) -> str:
        """The complete configuration of the search, which reads back as an equal one."""
        return dump_yaml({**self.base, "search": self.search.model_dump(mode="json")})

    def trial_config(self, name: str, settings: Mapping[str, Any]) -> Config:
        """The configuration of a trial's run.

        Raises:
            InputError: these settings do not go together.
        """
        place = {"run.name": name, "run.storage_path": self.trials_folder}
        return parse_config(with_settings(self.base, {**settings, **place}))


def short(key: str) -> str:
    """distill.temperature -> temperature."""
    return key.rpartition(".")[2]


def brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value_at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def load_search(files: Sequence[Given], overrides: Sequence[str] = ()) -> SearchPlan:
    """Read the configuration of a search from YAML files and dotted settings, as `load_config` reads a run's.

    Raises:
        InputError: with one line per problem, all problems at once.
    """
    return plan_of(load_settings(files, overrides))


def plan_of(settings: Mapping[str, Any]) -> SearchPlan:
    """Check the configuration of a search given as a mapping of sections.

    Raises:
        InputError: with one line per problem, all problems at once.
    """
    problems: list[str] = []
    config, study = _parse_study(settings, SearchConfig, problems)
    if study is None:
        raise ConfigError(problems)
    search = study.search
    space, space_problems = parse_space(search.space)
    problems += space_problems
    problems += [f"search.space.{key}: cannot be searched, as {why}" for key in space.keys if (why := _fixed(key))]
    if config is None or problems:
        raise ConfigError(problems)
    plan = SearchPlan(search, space, config)
    problems += dict.fromkeys([*_unfit_values(plan), *_across(plan)])
    if problems:
        raise ConfigError(problems)
    return plan


_NO_EFFECT = "it does not change what is learned"
_OTHER_ROWS = "trials that learn from different rows could not be compared"
_FIXED = {
    "run": "all trials share their seed, so that they learn from the same rows in the same order",
    "teacher": "trials with different teachers could not be compared",
    "data": _OTHER_ROWS,
    "student.tokenizer": _OTHER_ROWS,
    "student.path": _OTHER_ROWS,
    "optim.num_steps": "the longer trials would win",
    "optim.num_epochs": "the longer trials would win",
    "optim.global_batch_size": "trials whose steps have different rows could not be compared",
    "optim.max_skipped_updates": _NO_EFFECT,
    "eval": _NO_EFFECT,
    "metrics": _NO_EFFECT,
    "checkpoint": _NO_EFFECT,
    "runtime": _NO_EFFECT,
    "search": "it is not a setting of a trial",
}


def _fixed(key: str) -> str | None:
    """Why a setting cannot be searched, if so."""
    if "." not in key:
        return f"it is not a setting; expected a key such as distill.temperature, given {shown(key)}"
    names = key.split(".")
    return _FIXED.get(names[0]) or _FIXED.get(".".join(names[:2]))


def _unfit_values(plan: SearchPlan) -> Iterator[str]:
    """Problems with values at the edges of the space, which the configuration refuses."""
    for rule in plan.space.rules:
        for example in rule.examples():
            problems: list[str] = []
            _collect(problems, parse_config, with_settings(plan.base, example), "search.space: ")
            yield from problems


def _across(plan: SearchPlan) -> Iterator[str]:
    search, config = plan.search, plan.config
    if config.data.eval_sources is None and config.data.eval_fraction == 0:
        yield (
            f"search.metric: given {shown(search.metric)} without held-out text; expected data.eval_fraction above 0, "
            "or data.eval_sources"
        )
    if search.metric not in _NEED_NO_TEACHER and config.teacher is None:
        yield f"search.metric: given {shown(search.metric)} without a teacher; expected eval/mlm_loss or a teacher.path"
    heads = [config.student.head, None if search.metric in _NEED_NO_TEACHER else config.teacher and config.teacher.head]
    if "none" in heads and search.metric not in _INSIDE:
        yield (
            f"search.metric: given {shown(search.metric)}, which is about predictions, without a head that makes them "
            f"(student.head, teacher.head); expected {' or '.join(_INSIDE)}"
        )
    key = search.metric.replace("/", ".")
    if search.metric in _INSIDE and not getattr(config.eval, key[5:]):
        yield f"search.metric: given {shown(search.metric)}, which not every trial evaluates; expected {key}: true"
    grids = plan.space.num_combinations
    if grids > 1 and search.searcher == "optuna":
        yield "search.searcher: given optuna with a grid, which TPE cannot follow; expected random, or no grid"
    elif grids > 1 and (plan.num_trials - 1) % grids:
        yield (
            f"search.num_trials: given {plan.num_trials}, expected 1 (the unchanged settings) and a multiple of "
            f"the grid's {grids} combinations, such as {1 + grids * max(round((plan.num_trials - 1) / grids), 1)}"
        )
    steps = config.optim.num_steps
    if steps == 0:
        yield "optim.num_steps: given 0, after which all trials are as they start; expected at least 1"
    if search.scheduler == "asha" and steps and config.eval.every_steps > search.grace_fraction * steps:
        first = search.grace_fraction * steps
        yield (
            f"eval.every_steps: given {config.eval.every_steps}, but ASHA first compares a trial after {first:g} steps "
            f"(search.grace_fraction {search.grace_fraction:g} of optim.num_steps {steps}); expected at most "
            f"{max(int(first), 1)}, or search.scheduler none"
        )


# ---------------------------------------------------------------------------------------------------- an ablation

_ABLATED = ("distill", "student", "optim")


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"given {shown(list(seeds))}, expected different seeds")
    return seeds


class Ablation(Section):
    """Variants of a run that differ from the first in a setting or two, over seeds."""

    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=2)]
    """Name of a variant: {key: value}, the settings it changes; the others are compared with the first."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Strict(False), AfterValidator(_distinct)] = (1, 2, 3)
    """Values of run.seed: each variant is run with each of them, all variants on the same batches."""


class AblationConfig(Section):
    """What the configuration of an ablation has in addition to a run's."""

    ablation: Ablation


@dataclass(frozen=True)
class AblationPlan:
    """An ablation, checked and complete.

    Attributes:
        config: of a run with the unchanged settings.
        runs: by variant and seed, in the order in which they are run, one at a time.
    """

    config: Config
    variants: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, int], Config]

    @property
    def folder(self) -> str:
        """Path or URL of the folder for runs and report."""
        return self.config.run.folder


def load_ablation(files: Sequence[str], overrides: Sequence[str], only: Collection[str] = ()) -> AblationPlan:
    """Read the configuration of an ablation from YAML files and dotted settings, as `load_config` reads a run's.

    Args:
        only: names of variants; the others are left out. None of them: all are run.

    Raises:
        InputError: with one line per problem.
    """
    problems: list[str] = []
    config, study = _parse_study(load_settings(files, overrides), AblationConfig, problems)
    if study is not None:
        problems += _unfit_keys(study.ablation)
        problems += _unknown_variants(study.ablation, only)
    if config is None or study is None or problems:
        raise ConfigError(problems)
    ablation, base = study.ablation, to_settings(config)
    variants = {name: changes for name, changes in ablation.variants.items() if not only or name in only}
    folder = f"{config.run.folder}/{ABLATION_RUNS_FOLDER}"
    runs: dict[tuple[str, int], Config] = {}
    for seed in ablation.seeds:
        for name, changes in variants.items():
            place = {"run.name": f"{name}-seed-{seed}", "run.storage_path": folder, "run.seed": seed}
            settings = with_settings(base, {**changes, **place})
            run = _collect(problems, parse_config, settings, f"ablation.variants.{name}: ")
            if run is not None:
                runs[name, seed] = run
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return AblationPlan(config, variants, ablation.seeds, runs)


def _unknown_variants(ablation: Ablation, only: Collection[str]) -> Iterator[str]:
    for name in only:
        if name not in ablation.variants:
            yield f"--variants: given {name}, expected names of ablation.variants: {', '.join(ablation.variants)}"


def _unfit_keys(ablation: Ablation) -> Iterator[str]:
    for name, changes in ablation.variants.items():
        for key in changes:
            if key.partition(".")[0] not in _ABLATED or "." not in key:
                yield (
                    f"ablation.variants.{name}: given {shown(key)}, expected a key of {', '.join(_ABLATED)}, such as "
                    "distill.alpha_ce; everything else is the same for all variants, so that they can be compared"
                )
