"""Ctrl-C, and SIGTERM as `ray job stop` sends it, while a run is launched."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from distil_ray.training.events import Line

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ABORT_SECONDS = 2.0


class Stopping:
    """The first signal asks the workers to save and end; a second one, or one without workers, ends the run at once.

    Attributes:
        signal_number: of the last signal.
        controller: Ray Train's actor, once there is one.
    """

    def __init__(self, events: Line) -> None:
        self._events = events
        self._is_asked = False
        self.signal_number = int(signal.SIGINT)
        self.controller: Any = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals while the block runs. (In the main thread; another one, as in an actor, gets none.)

        Raises:
            KeyboardInterrupt: the run shall end at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        is_first, self._is_asked, self.signal_number = not self._is_asked, True, number
        if is_first and self._events.want_stop():
            self._events.line("stopping: the step is finished and saved first; a second signal does not wait for that")
            return
        if self.controller is not None:
            with suppress(ray.exceptions.RayError):  # it ends itself, but not while it waits for nodes
                ray.get(self.controller.abort.remote(), timeout=_ABORT_SECONDS)
        raise KeyboardInterrupt
