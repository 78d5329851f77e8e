"""A worker's surroundings: announcements of departing nodes."""

import time
from types import SimpleNamespace

import pytest

from distil_ray.training.world import LEAVE_SECONDS, PreemptionWatch


def of_node(name: str, seconds: float | None) -> SimpleNamespace:
    deadline = None if seconds is None else int((time.time() + seconds) * 1000)
    return SimpleNamespace(deadline_ms=deadline, preempted_node_to_ranks={name: [0]})


def test_each_announcement_is_new_once():
    told = [None]
    watch = PreemptionWatch(lambda: told[-1])
    assert not watch.is_new()
    for name in ("a", "b"):
        told.append(of_node(name, 100))
        assert [watch.is_new(), watch.is_new()] == [True, False]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(LEAVE_SECONDS + 5, False), (LEAVE_SECONDS - 1, True), (-3, True), (None, True)]
)
def test_a_node_is_used_until_shortly_before_its_end(seconds, expected):
    assert not PreemptionWatch().is_imminent()
    assert PreemptionWatch(lambda: of_node("a", seconds)).is_imminent() is expected
