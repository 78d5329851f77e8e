"""The trials so far -> the next point, and how much each setting mattered.

Pure functions, so that a resumed search has no state to restore.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from distil_ray.config import shown
from distil_ray.studies.settings import Direction, Search, SearchPlan
from distil_ray.studies.space import Point, Space
from distil_ray.studies.trials import Trial, value_at

_STATES = {
    "open": TrialState.RUNNING,
    "finished": TrialState.FAIL,  # unless it has an objective
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}


def suggest(space: Space, search: Search, direction: Direction, trials: Iterable[Trial], number: int) -> Point:
    """Return the point of trial ``number``, given all trials before it.

    TPE (Bergstra et al. 2011; multivariate: Falkner et al. 2018) ranks trials that were stopped early below all that
    got further, and counts running ones as bad, so that no point is tried twice at the same time.
    """
    study = new_study(direction, _sampler(search, number))
    for trial in trials:
        if trial.point is not None:
            study.add_trial(_frozen(trial, space))
    return dict(study.ask(space.distributions).params)


def new_study(direction: Direction, sampler: BaseSampler | None = None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it logs each trial
    return optuna.create_study(direction=_DIRECTIONS[direction], sampler=sampler)


def _sampler(search: Search, number: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.searcher == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():  # both options have been "experimental" for years
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=search.startup_trials)


def _frozen(trial: Trial, space: Space) -> FrozenTrial:
    is_complete = trial.status == "finished" and trial.value is not None
    return create_trial(
        state=TrialState.COMPLETE if is_complete else _STATES[trial.status],
        value=trial.value if is_complete else None,
        params=trial.point,
        distributions=space.distributions,
        intermediate_values={score.step: score.value for score in trial.scores},
    )


MIN_TRIALS = 8


def importances(plan: SearchPlan, trials: list[Trial], step: int | None) -> dict[str, float]:
    """Shares of the objective's variance at ``step`` that a forest of trees attributes to each setting, largest first.

    Empty with fewer than `MIN_TRIALS` trials, or if the objective or all settings were the same in all of them.
    """
    rows: list[tuple[Mapping[str, Any], float]] = []
    for trial in trials:
        value = value_at(trial, step)
        if value is not None and math.isfinite(value):
            rows.append((plan.values(trial.settings), value))
    distributions: dict[str, BaseDistribution] = {}
    for key in plan.space.keys:
        distribution = _distribution([values[key] for values, _ in rows])
        if distribution is not None:
            distributions[key] = distribution
    if len(rows) < MIN_TRIALS or not distributions or len({value for _, value in rows}) < 2:
        return {}
    study = new_study(plan.direction)
    for values, value in rows:
        parameters = {
            key: values[key] if isinstance(found, FloatDistribution) else shown(values[key])
            for key, found in distributions.items()
        }
        study.add_trial(create_trial(value=value, params=parameters, distributions=distributions))
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))


def _distribution(values: list[Any]) -> BaseDistribution | None:
    """The range of the values seen; None if they are all the same."""
    if len({shown(value) for value in values}) < 2:
        return None
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution(sorted({shown(value) for value in values}))
