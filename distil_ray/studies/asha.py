"""Stopping trials early: asynchronous successive halving (ASHA, arXiv 1810.05934)."""

import numpy as np

from distil_ray.studies.settings import Direction, Search
from distil_ray.studies.trials import FIRST_TRIAL

_END = 1 - 1e-9  # no rung at the end, where a trial is about to write its student


class Asha:
    """Compares trials at rungs, growing shares of their steps; at each, the best of every ``reduction_factor`` stays.

    The first trial, with the settings as they stand, is never stopped: the best one is to be compared with it.
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
        """Take in the objective of a trial at ``progress`` in [0, 1]; return whether the trial is to be stopped."""
        reached = [rung for rung in self._rungs if rung <= progress]
        if not reached or name in self._rungs[reached[-1]]:
            return False
        others = self._rungs[reached[-1]]
        reward = self._sign * value
        is_behind = bool(others) and reward < np.nanpercentile(list(others.values()), self._percentile)
        others[name] = reward
        return is_behind and name != FIRST_TRIAL
