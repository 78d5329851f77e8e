"""Stopping early: decisions at growing steps, the same when a search is resumed."""

from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from distil_ray.studies.asha import Asha
from distil_ray.studies.settings import Search
from distil_ray.studies.trials import FIRST_TRIAL
from distil_ray.studies.tuner import _scheduler, replay


def asha(direction: str = "min", **values) -> Asha:
    return Asha(Search(space={}, **values), direction)


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_a_trial_behind_the_median_is_stopped(direction, sign):
    scheduler = asha(direction)

    assert not scheduler.stops("trial-001", 0.25, sign * 3.0)
    assert not scheduler.stops("trial-002", 0.20, sign * 9.0)  # in its grace
    assert scheduler.stops("trial-002", 0.25, sign * 5.0)
    assert not scheduler.stops("trial-003", 0.25, sign * 2.0)


def test_looks_are_at_growing_steps_and_not_at_the_end():
    scheduler = asha()
    for progress, is_stopped in (
        (0.25, False),
        (0.3, False),
        (0.5, True),
        (0.75, False),
        (1.0, False),
    ):
        scheduler.stops("trial-001", progress, 2.0)
        value = 1.0 if progress < 0.5 else 9.0
        assert scheduler.stops("trial-002", progress, value) == is_stopped


def test_grace_and_reduction_are_as_set():
    scheduler = asha(grace_fraction=0.1, reduction_factor=4)
    for name, value in (("trial-001", 1.0), ("trial-002", 2.0)):
        scheduler.stops(name, 0.1, value)
    # The best quarter of 1 and 2 stays: what is below 1.25.
    assert scheduler.stops("trial-003", 0.1, 1.3)

    scheduler = asha(grace_fraction=0.1, reduction_factor=2)
    for name, value in (("trial-001", 1.0), ("trial-002", 2.0)):
        scheduler.stops(name, 0.1, value)
    assert not scheduler.stops("trial-003", 0.1, 1.3)


def test_the_first_trial_runs_to_its_end():
    scheduler = asha()

    scheduler.stops("trial-001", 0.25, 1.0)
    assert not scheduler.stops(FIRST_TRIAL, 0.25, 9.0)


@pytest.mark.parametrize("direction", ["min", "max"])
def test_decisions_are_those_of_rays_asha(direction):
    search = Search(space={}, grace_fraction=0.1, reduction_factor=3)
    own = Asha(search, direction)
    rays = AsyncHyperBandScheduler(
        time_attr="progress",
        metric="value",
        mode=direction,
        grace_period=search.grace_fraction,
        max_t=1 - 1e-9,
        reduction_factor=search.reduction_factor,
        stop_last_trials=False,
    )
    trials = [SimpleNamespace(trial_id=f"trial-{number:03d}") for number in range(1, 60)]
    for trial in trials:
        rays.on_trial_add(None, trial)
    generator = np.random.default_rng(0)
    decisions = []
    for progress in (0.05, 0.1, 0.2, 0.31, 0.5, 0.95, 1.0):
        for trial in generator.permutation(trials):
            value = float(generator.normal())
            action = rays.on_trial_result(None, trial, {"progress": progress, "value": value})
            decisions.append(own.stops(trial.trial_id, progress, value))
            assert decisions[-1] == (action == "STOP")
    assert {True, False} == set(decisions)


class Kept(dict):
    """Trials by name, with the status that they come to have."""

    def __iter__(self):
        return iter(self.values())

    def settle(self, name: str):
        self[name].status = "stopped"
        return self[name]


def kept(**scores) -> Kept:
    """Open trials with scores (progress, value, time)."""
    trials = Kept()
    for name, listed in scores.items():
        name = name.replace("_", "-")
        found = tuple(SimpleNamespace(progress=p, value=v, time=t) for p, v, t in listed)
        trials[name] = SimpleNamespace(name=name, status="open", scores=found)
    return trials


def test_without_a_scheduler_nothing_is_stopped():
    plan = SimpleNamespace(search=Search(space={}, scheduler="none"), direction="min")
    scheduler = _scheduler(plan, kept(trial_001=[(0.25, 3.0, 1.0)], trial_002=[(0.25, 5.0, 2.0)]), None)
    assert type(scheduler) is FIFOScheduler


def test_tune_is_told_to_stop_a_trial_by_its_own_name():
    plan = SimpleNamespace(search=Search(space={}), direction="min")
    scheduler = _scheduler(plan, kept(trial_001=[(0.25, 3.0, 1.0)]), None)
    trial = SimpleNamespace(trial_id="0a1b", config={"trial": "trial-002"})
    assert scheduler.on_trial_result(None, trial, {"train/loss": 1.0}) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial, {"run/progress": 0.25, plan.search.metric: 5.0}) == "STOP"


def told(trials: Kept) -> tuple[Asha, list[str]]:
    scheduler, lines = asha(), []
    replay(scheduler, trials, SimpleNamespace(settled=lambda trial: lines.append(trial.name)))
    return scheduler, lines


def test_a_restart_changes_no_decision():
    scheduler, _ = told(kept(trial_001=[(0.25, 3.0, 1.0)], trial_002=[(0.25, 2.0, 2.0)]))

    assert not scheduler.stops("trial-002", 0.3, 9.0)
    assert scheduler.stops("trial-003", 0.25, 2.9)  # the median of 3 and 2 is 2.5


def test_a_trial_that_was_to_be_stopped_when_the_search_was_killed_is_stopped():
    trials = kept(trial_001=[(0.25, 3.0, 1.0)], trial_002=[(0.25, 5.0, 2.0)], trial_003=[(0.25, 2.0, 3.0)])

    _, lines = told(trials)

    assert lines == ["trial-002"]
    assert [trial.status for trial in trials] == ["open", "stopped", "open"]


def test_what_happened_first_counts_first():
    trials = kept(trial_001=[(0.25, 3.0, 9.0)], trial_002=[(0.25, 5.0, 2.0)])

    assert told(trials)[1] == []  # when the worse one was looked at, it was alone
