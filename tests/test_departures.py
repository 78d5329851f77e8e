"""When a worker saves and leaves because of a node that is announced to go. (`test_node_loss.py` has real ones.)"""

import time
from types import SimpleNamespace

import pytest
from ray.train.v2.api.preemption import PreemptionInfo

from distil_ray.training import departures
from distil_ray.training.departures import LEAVE_SECONDS, Departures


@pytest.fixture
def told(monkeypatch):
    """What Ray Train tells this worker; the test sets it."""
    context = SimpleNamespace(preemption_info=None)
    monkeypatch.setattr(departures, "get_train_context", lambda: SimpleNamespace(preemption_context=context))
    return context


def of_node(name: str, seconds: float | None) -> PreemptionInfo:
    deadline = None if seconds is None else int((time.time() + seconds) * 1000)
    return PreemptionInfo(deadline_ms=deadline, preempted_node_to_ranks={name: [0]})


def test_each_announcement_is_news_once(told):
    known = Departures()
    assert not known.are_news()
    told.preemption_info = of_node("a", 100)
    assert [known.are_news(), known.are_news()] == [True, False]
    told.preemption_info = of_node("b", 100)
    assert [known.are_news(), known.are_news()] == [True, False]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(LEAVE_SECONDS + 5, False), (LEAVE_SECONDS - 1, True), (-3, True), (None, True)]
)
def test_a_node_is_used_until_shortly_before_its_end(told, seconds, expected):
    known = Departures()
    assert not known.are_imminent()
    told.preemption_info = of_node("a", seconds)
    assert known.are_imminent() is expected
