"""How much each setting mattered: fANOVA (Hutter et al., ICML 2014), by Optuna."""

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from distil_ray.config import shown
from distil_ray.search.settings import Plan
from distil_ray.search.suggest import new_study
from distil_ray.search.trials import Trial, value_at

MIN_TRIALS = 8


def importances(plan: Plan, trials: list[Trial], step: int | None) -> dict[str, float]:
    """Shares of the objective's variance at ``step`` that a forest of trees puts down to each setting, largest first.

    Empty with fewer than `MIN_TRIALS` trials, or if the objective or all settings were the same everywhere.
    """
    rows = [
        (plan.values(trial.settings), value)
        for trial in trials
        if (value := value_at(trial, step)) is not None and math.isfinite(value)
    ]
    distributions = {
        key: found
        for key in plan.space.keys
        if (found := _distribution([values[key] for values, _ in rows])) is not None
    }
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
