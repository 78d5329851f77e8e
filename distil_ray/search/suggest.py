"""The trials so far -> the next point: a pure function, so that a search that goes on has no state to restore."""

import warnings
from collections.abc import Iterable

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from distil_ray.search.settings import Direction, Search
from distil_ray.search.space import Point, Space
from distil_ray.search.trials import Trial

_STATES = {
    "open": TrialState.RUNNING,
    "finished": TrialState.FAIL,  # unless it has an objective
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}


def suggest(space: Space, search: Search, direction: Direction, trials: Iterable[Trial], number: int) -> Point:
    """Return the point of trial ``number`` in the light of all trials before it.

    TPE (Bergstra et al. 2011; multivariate: Falkner et al. 2018) ranks trials that were stopped early behind all that
    went further, and takes those under way for bad ones, lest the same point be tried twice at a time.
    """
    study = new_study(direction, _sampler(search, number))
    for trial in trials:
        if trial.point is not None:
            study.add_trial(_frozen(trial, space))
    return dict(study.ask(space.distributions).params)


def new_study(direction: Direction, sampler: BaseSampler | None = None) -> optuna.Study:
    """An empty study in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each
    return optuna.create_study(direction=_DIRECTIONS[direction], sampler=sampler)


def _sampler(search: Search, number: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.searcher == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():  # both have been "experimental" for years
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
