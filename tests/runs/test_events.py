"""The line between driver and workers, also when its middle or its end is lost."""

from queue import Empty

import pytest
import ray
from runs import wait_for

from distil_ray.runs.events import Line

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def line():
    line = Line()
    yield line
    line.close()


@pytest.fixture
def worker(line):
    """An actor that works for a run."""

    class Worker:  # within the function, so that it travels with its code
        def is_stop_wanted(self) -> bool:
            return line.is_stop_wanted()

    worker = ray.remote(Worker).options(num_cpus=0).remote()
    yield worker
    ray.kill(worker)


def lose(line: Line) -> None:
    """Kill the process in the middle, as the kernel does when memory runs out."""
    ray.kill(line._exchange, no_restart=False)


def received(line: Line) -> list[object]:
    try:
        return [line.get(timeout=0.2)]
    except Empty:
        return []


def test_events_arrive_and_a_request_to_stop_is_heard(line, worker):
    line.line("a")
    line.record({"step": 1})
    events = [line.get(timeout=10), line.get(timeout=10)]
    assert sorted(events, key=str) == [("line", "a"), ("record", {"step": 1})]  # Ray may let one overtake the other
    with pytest.raises(Empty):
        line.get(timeout=0.1)
    assert not ray.get(worker.is_stop_wanted.remote())
    assert line.want_stop()
    assert ray.get(worker.is_stop_wanted.remote())


def test_nobody_hears_before_there_is_a_worker_and_after_it_is_lost(line, worker):
    assert not line.want_stop()
    assert ray.get(worker.is_stop_wanted.remote())
    assert line.want_stop()
    ray.kill(worker)
    wait_for(lambda: not line.want_stop())


def test_a_line_that_is_lost_ends_nothing_and_comes_back(line, worker):
    assert not ray.get(worker.is_stop_wanted.remote())
    lose(line)
    line.line("lost, or not")
    assert not ray.get(worker.is_stop_wanted.remote())

    def is_back() -> bool:
        line.line("again")
        return ("line", "again") in received(line)

    wait_for(is_back)
    ray.get(worker.is_stop_wanted.remote())
    assert line.want_stop()
    assert ray.get(worker.is_stop_wanted.remote())


def test_a_request_to_stop_outlives_the_line(line, worker):
    ray.get(worker.is_stop_wanted.remote())
    assert line.want_stop()
    lose(line)

    def is_known_again() -> bool:
        received(line)
        return ray.get(worker.is_stop_wanted.remote())

    wait_for(is_known_again)
