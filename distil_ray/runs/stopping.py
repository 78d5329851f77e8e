"""What ends a run early: Ctrl-C, a lost terminal (SIGHUP), SIGTERM as `ray job stop` sends it, a departing node."""

import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.train.v2._internal.execution.context import get_train_context

from distil_ray.runs.events import Line

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ABORT_SECONDS = 2.0
_REPEAT_SECONDS = 0.5
_LOOK_SECONDS, _NUM_VAIN_LOOKS = 5.0, 2
"""A run whose workers are found to be gone so often in a row is not waited for. (Once, they may just have saved.)"""


class Stopping:
    """The first signal asks the workers to save and end; a second one, or one without workers, ends the run at once.

    Attributes:
        signal_number: of the last signal.
        controller: Ray Train's actor, once there is one.
    """

    def __init__(self, events: Line) -> None:
        self._events = events
        # A handler may run in the middle of anything that the main thread does, so it only notes the signal here, where
        # a thread takes it up. Of all queues this one may be used in a handler.
        self._received: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._is_over = self._is_interrupted = self._is_done = False
        self.signal_number = int(signal.SIGINT)
        self.controller: Any = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals while the block runs. (In the main thread; another one, as in an actor, gets none.)

        A signal that the parent process has this one ignore, as `nohup` does, stays ignored.

        Raises:
            KeyboardInterrupt: the run must end at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        taken = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in taken:
            signal.signal(number, self._note)
        thread = threading.Thread(target=self._act, daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            if self._is_over:  # whatever the end of the run made fail
                raise KeyboardInterrupt from None
            raise
        finally:
            self._is_done = True
            self._received.put(None)
            thread.join()
            for number, handler in taken.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self._is_over and not self._is_done:
            self._is_interrupted = True
            raise KeyboardInterrupt
        self.signal_number = number
        self._received.put(number)

    def _act(self) -> None:
        """What signals lead to, in a thread of its own."""
        if self._received.get() is None:
            return
        num_vain_looks = 0 if self._events.want_stop() else _NUM_VAIN_LOOKS
        if not num_vain_looks:
            self._events.line("stopping: the step is finished and saved first; a second signal does not wait for that")
        while num_vain_looks < _NUM_VAIN_LOOKS:
            try:
                if self._received.get(timeout=_LOOK_SECONDS) is None:
                    return
                break
            except queue.Empty:
                num_vain_looks = 0 if self._events.want_stop() else num_vain_looks + 1
        self._is_over = True
        if self.controller is not None:
            with suppress(ray.exceptions.RayError):  # it ends itself, but not while it waits for nodes
                ray.get(self.controller.abort.remote(), timeout=_ABORT_SECONDS)
        while not (self._is_interrupted or self._is_done):  # once may be in vain, just before a system call
            signal.pthread_kill(threading.main_thread().ident or 0, self.signal_number)
            time.sleep(_REPEAT_SECONDS)


LEAVE_SECONDS = 15.0
"""Before a node's end: time to finish a step, to save and to leave. Until then it is trained on as before."""


class Departures:
    """What this worker knows of drained nodes, its own or another worker's.

    `ray.train.get_preemption_info` tells the same, but has all workers wait for each other each time.
    """

    def __init__(self) -> None:
        self._known: object = None

    def are_news(self) -> bool:
        """Whether there is an announcement that this method has not told of yet."""
        before, self._known = self._known, get_train_context().preemption_context.preemption_info
        return self._known != before

    def are_imminent(self) -> bool:
        """Whether it is time to leave; at once if no time of the end is known."""
        info = get_train_context().preemption_context.preemption_info
        return info is not None and (info.deadline_ms or 0) / 1000 - time.time() < LEAVE_SECONDS
