"""Events between driver and workers, also when the actor in the middle or a worker is lost."""

import asyncio
from queue import Empty

import pytest
import ray
from runs import wait_for

from distil_ray.runs.events import EventQueue, _Exchange, _Note

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def events():
    events = EventQueue()
    yield events
    events.close()


@pytest.fixture
def worker(events):
    """An actor that works for a run."""

    class Worker:  # within the function, so that it travels with its code
        def is_stop_wanted(self) -> bool:
            return events.is_stop_wanted()

    worker = ray.remote(Worker).options(num_cpus=0).remote()
    yield worker
    ray.kill(worker)


def lose(events: EventQueue) -> None:
    """Kill the process in the middle, as the kernel does when memory runs out."""
    ray.kill(events._exchange, no_restart=False)


def received(events: EventQueue) -> list[object]:
    try:
        return [events.get(timeout=0.2)]
    except Empty:
        return []


def test_events_arrive_and_a_request_to_stop_is_heard(events, worker):
    events.post_text("a")
    events.post_record({"step": 1})
    arrived = [events.get(timeout=10), events.get(timeout=10)]
    assert sorted(arrived, key=str) == [("line", "a"), ("record", {"step": 1})]  # Ray may let one overtake the other
    with pytest.raises(Empty):
        events.get(timeout=0.1)
    assert not ray.get(worker.is_stop_wanted.remote())
    assert events.want_stop()
    assert ray.get(worker.is_stop_wanted.remote())


def test_nobody_hears_before_there_is_a_worker_and_after_it_is_lost(events, worker):
    assert not events.want_stop()
    assert ray.get(worker.is_stop_wanted.remote())
    assert events.want_stop()
    ray.kill(worker)
    wait_for(lambda: not events.want_stop())


def test_a_queue_that_is_lost_ends_nothing_and_comes_back(events, worker):
    assert not ray.get(worker.is_stop_wanted.remote())
    lose(events)
    events.post_text("lost, or not")
    assert not ray.get(worker.is_stop_wanted.remote())

    def is_back() -> bool:
        events.post_text("again")
        return ("line", "again") in received(events)

    wait_for(is_back)
    ray.get(worker.is_stop_wanted.remote())
    assert events.want_stop()
    assert ray.get(worker.is_stop_wanted.remote())


def test_a_request_to_stop_outlives_the_queue(events, worker):
    ray.get(worker.is_stop_wanted.remote())
    assert events.want_stop()
    lose(events)

    def is_known_again() -> bool:
        received(events)
        return ray.get(worker.is_stop_wanted.remote())

    wait_for(is_known_again)


def test_of_notes_that_overtake_each_other_the_one_sent_last_is_kept():
    async def noted(*notes):
        exchange = _Exchange()
        for note in notes:
            await exchange.note("share", "job", note)
        return await exchange.noted("share")

    first, second, third = _Note("a", 1, "first"), _Note("a", 2, "second"), _Note("b", 0, "third")
    assert asyncio.run(noted(first, second)) == asyncio.run(noted(second, first)) == {"job": "second"}
    assert asyncio.run(noted(second, third)) == {"job": "third"}  # of a process that begins anew


def test_a_note_goes_to_those_who_ask_for_its_topic(events):
    events.note("share", "job", 0.5)
    wait_for(lambda: events.noted("share") == {"job": 0.5})
    assert events.noted("start") == {}
