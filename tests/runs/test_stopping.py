"""Signals while a run is launched: noted by the handler, acted on by a thread."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from distil_ray.runs import stopping
from distil_ray.runs.stopping import Stopping


class Workers:
    """What the driver sees of the workers."""

    def __init__(self, *, are_there: bool) -> None:
        self.are_there = are_there
        self.num_asked = 0
        self.lines = []
        self.threads = set()

    def want_stop(self) -> bool:
        self.num_asked += 1
        self.threads.add(threading.current_thread())
        return self.are_there

    def post_text(self, text: str) -> None:
        self.lines.append(text)


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_the_workers_and_the_run_ends_by_itself(number):
    workers = Workers(are_there=True)
    before = signal.getsignal(number)
    stop = Stopping(workers)
    with stop.handled():
        os.kill(os.getpid(), number)
        wait_for(lambda: workers.lines)

    assert workers.lines[0].startswith("stopping: the step is finished and saved first")
    assert stop.signal_number == number
    assert signal.getsignal(number) is before
    assert threading.main_thread() not in workers.threads  # which may be in the middle of anything


def interrupted(workers, body):
    """Whether a run that does this is ended by KeyboardInterrupt."""
    try:
        with Stopping(workers).handled():
            body()
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_the_run_at_once(number):
    workers = Workers(are_there=True)

    def body():
        os.kill(os.getpid(), number)
        wait_for(lambda: workers.lines)
        os.kill(os.getpid(), number)
        time.sleep(30)

    assert interrupted(workers, body)


def test_without_workers_the_first_signal_ends_the_run_at_once():
    def body():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    assert interrupted(Workers(are_there=False), body)


def test_workers_that_are_lost_after_the_signal_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(stopping, "_CHECK_SECONDS", 0.05)
    workers = Workers(are_there=True)

    def body():
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: workers.num_asked > 3)
        workers.are_there = False
        time.sleep(30)

    assert interrupted(workers, body)


def test_what_fails_because_the_run_is_ended_is_no_failure():
    def body():
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            raise RuntimeError("its controller is gone") from None

    assert interrupted(Workers(are_there=False), body)


def test_a_failure_without_a_signal_is_one():
    def body():
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        interrupted(Workers(are_there=True), body)


def test_what_nohup_ignores_stays_ignored():
    script = (
        "import os, signal, time\n"
        "from distil_ray.runs.stopping import Stopping\n"
        "class Workers:\n"
        "    def want_stop(self): return False\n"
        "with Stopping(Workers()).handled():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    time.sleep(0.5)\n"
        "print('still there')"
    )
    ran = subprocess.run(["nohup", sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "still there\n", ran.stderr
