"""What ends a run early: Ctrl-C, a lost terminal (SIGHUP), and SIGTERM as `ray job stop` sends it."""

import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REPEAT_SECONDS = 0.5
_CHECK_SECONDS, _NUM_FAILED_CHECKS = 5.0, 2
"""A run whose workers are found gone this many times in a row is not waited for. (Once, they may just have saved.)"""


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Let SIGTERM do after the block, in which Ray is started or joined, what it did before.

    Ray takes it twice: in C++, to print a stack, and in Python, to exit; within `ray.wait` that is with status 1.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class Workers(Protocol):
    """The driver's connection to the workers, such as an `EventQueue`."""

    def want_stop(self) -> bool:
        """Ask for the end of the run; return whether a worker is there that will see to it."""

    def post_text(self, text: str) -> None:
        """Pass on a line for the user."""


class Stopping:
    """The first signal asks the workers to save and end; a second one, or one without workers, ends the run at once.

    Attributes:
        signal_number: of the last signal.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        # A handler may run in the middle of anything that the main thread does, so it only notes the signal here, where
        # a thread takes it up. Of all queues this one may be used in a handler.
        self._received: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._is_over = self._is_interrupted = self._is_done = False
        self.signal_number = int(signal.SIGINT)

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
            if self._is_over:  # a consequence of the run's end
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
        num_failed_checks = 0 if self._workers.want_stop() else _NUM_FAILED_CHECKS
        if not num_failed_checks:
            self._workers.post_text(
                "stopping: the step is finished and saved first; a second signal does not wait for that"
            )
        while num_failed_checks < _NUM_FAILED_CHECKS:
            try:
                if self._received.get(timeout=_CHECK_SECONDS) is None:
                    return
                break
            except queue.Empty:
                num_failed_checks = 0 if self._workers.want_stop() else num_failed_checks + 1
        self._is_over = True
        while not (self._is_interrupted or self._is_done):  # one just before a system call may have no effect
            signal.pthread_kill(threading.main_thread().ident or 0, self.signal_number)
            time.sleep(_REPEAT_SECONDS)
