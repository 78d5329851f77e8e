"""Stopping trials early: asynchronous successive halving (ASHA, arXiv 1810.05934)."""

import numpy as np

from distil_ray.studies.settings import Direction, Search
from distil_ray.studies.trials import FIRST_TRIAL

_END = 1 - 1e-9  # no rung at the end, where a trial is about to export its student


class Asha:
    """Compares trials at rungs, which are growing shares of their steps; one in ``reduction_factor`` survives each.

    The first trial, with the unchanged settings, is never stopped, so that the best one can be compared with it.
    """

    def __init__(self, search: Search, direction: Direction) -> None:
        self._sign = 1.0 if direction == "max" else -1.0
        self._percentile = 100 * (1 - 1 / search.reduction_factor)
        self._rungs: dict[float, dict[str, float]] = {}  # rewards by trial
        rung = search.grace_fraction
        while rung <= _END:
            self._rungs[rung] = {}
            rung *= search.reduction_factor

    def stops(self, name: str, progress: float, value: float) -> bool:
        """Note the objective of a trial at ``progress`` in [0, 1]; return whether the trial should be stopped."""
        reached = [rung for rung in self._rungs if rung <= progress]
        if not reached or name in self._rungs[reached[-1]]:
            return False
        others = self._rungs[reached[-1]]
        reward = self._sign * value
        falls_short = bool(others) and reward < np.nanpercentile(list(others.values()), self._percentile)
        others[name] = reward
        return falls_short and name != FIRST_TRIAL
