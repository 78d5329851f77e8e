"""Stopping early: Ray's ASHA, told after a restart what happened before it."""

from types import SimpleNamespace

import pytest

from distil_ray.studies.settings import Search
from distil_ray.studies.trials import FIRST_TRIAL
from distil_ray.studies.tuner import _Asha, _replay, _scheduler

METRIC = "eval/mlm_loss"


def trial(name: str, tune_id: str = "") -> SimpleNamespace:
    """What of Tune's trials the scheduler looks at; Tune gives another id after each restart."""
    return SimpleNamespace(trial_id=tune_id or name, config={"trial": name})


def asha(direction: str = "min", **values) -> _Asha:
    return _Asha(Search(space={}, **values), direction)


def decide(scheduler: _Asha, name: str, progress: float, value: float, tune_id: str = "") -> str:
    return scheduler.on_trial_result(None, trial(name, tune_id), {"run/progress": progress, METRIC: value})


def joined(scheduler: _Asha, *names: str) -> _Asha:
    for name in names:
        scheduler.on_trial_add(None, trial(name))
    return scheduler


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_a_trial_behind_the_median_is_stopped(direction, sign):
    scheduler = joined(asha(direction), "trial-001", "trial-002", "trial-003")

    assert decide(scheduler, "trial-001", 0.25, sign * 3.0) == "CONTINUE"
    assert decide(scheduler, "trial-002", 0.20, sign * 9.0) == "CONTINUE"  # in its grace
    assert decide(scheduler, "trial-002", 0.25, sign * 5.0) == "STOP"
    assert decide(scheduler, "trial-003", 0.25, sign * 2.0) == "CONTINUE"


def test_looks_are_at_growing_steps_and_not_at_the_end():
    scheduler = joined(asha(), "trial-001", "trial-002")
    for progress, action in (
        (0.25, "CONTINUE"),
        (0.3, "CONTINUE"),
        (0.5, "STOP"),
        (0.75, "CONTINUE"),
        (1.0, "CONTINUE"),
    ):
        decide(scheduler, "trial-001", progress, 2.0)
        value = 1.0 if progress < 0.5 else 9.0
        assert decide(scheduler, "trial-002", progress, value) == action


def test_grace_and_reduction_are_as_set():
    scheduler = joined(asha(grace_fraction=0.1, reduction_factor=4), "trial-001", "trial-002", "trial-003")
    for name, value in (("trial-001", 1.0), ("trial-002", 2.0)):
        decide(scheduler, name, 0.1, value)
    # The best quarter of 1 and 2 goes on: what is below 1.25.
    assert decide(scheduler, "trial-003", 0.1, 1.3) == "STOP"

    scheduler = joined(asha(grace_fraction=0.1, reduction_factor=2), "trial-001", "trial-002", "trial-003")
    for name, value in (("trial-001", 1.0), ("trial-002", 2.0)):
        decide(scheduler, name, 0.1, value)
    assert decide(scheduler, "trial-003", 0.1, 1.3) == "CONTINUE"


def test_the_first_trial_runs_to_its_end():
    scheduler = joined(asha(), FIRST_TRIAL, "trial-001")

    decide(scheduler, "trial-001", 0.25, 1.0)
    assert decide(scheduler, FIRST_TRIAL, 0.25, 9.0) == "CONTINUE"


def test_without_a_scheduler_nothing_is_stopped():
    scheduler = _scheduler(Search(space={}, scheduler="none"), "min")
    for name, value in (("trial-001", 1.0), ("trial-002", 9.0)):
        scheduler.on_trial_add(None, trial(name))
        assert decide(scheduler, name, 0.5, value) == "CONTINUE"


class Kept(dict):
    """Trials by name, with the status that they come to have."""

    def __iter__(self):
        return iter(self.values())

    def settle(self, name: str, *, is_stopped: bool = False):
        assert is_stopped
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


def told(trials: Kept) -> tuple[_Asha, list[str]]:
    scheduler, lines = asha(), []
    _replay(scheduler, trials, SimpleNamespace(settled=lambda trial: lines.append(trial.name)))
    return scheduler, lines


def test_a_restart_changes_no_decision():
    scheduler, _ = told(kept(trial_001=[(0.25, 3.0, 1.0)], trial_002=[(0.25, 2.0, 2.0)]))
    for name in ("trial-002", "trial-003"):
        scheduler.on_trial_add(None, trial(name, f"new-{name}"))

    # The trial that goes on is the one that was there before, under whatever id.
    assert decide(scheduler, "trial-002", 0.3, 9.0, "new-trial-002") == "CONTINUE"
    assert decide(scheduler, "trial-003", 0.25, 2.9, "new-trial-003") == "STOP"  # the median of 3 and 2 is 2.5


def test_a_trial_that_was_to_be_stopped_when_the_search_was_killed_is_stopped():
    trials = kept(trial_001=[(0.25, 3.0, 1.0)], trial_002=[(0.25, 5.0, 2.0)], trial_003=[(0.25, 2.0, 3.0)])

    _, lines = told(trials)

    assert lines == ["trial-002"]
    assert [trial.status for trial in trials] == ["open", "stopped", "open"]


def test_what_happened_first_counts_first():
    trials = kept(trial_001=[(0.25, 3.0, 9.0)], trial_002=[(0.25, 5.0, 2.0)])

    assert told(trials)[1] == []  # when the worse one was looked at, it was alone
