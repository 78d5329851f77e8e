"""What the person at the terminal sees: live figures below the messages, or plain lines where there is no terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any, Protocol

from distil_ray.runs.figures import format_record

if TYPE_CHECKING:  # imported late: few commands draw, and `--help` never does
    from rich.console import Console as Terminal

    from distil_ray.runs.live import LiveFigures


class Inbox(Protocol):
    """Where a run's events come from, such as an `EventQueue`."""

    def get(self, *, timeout: float) -> Any:
        """Return the next (kind, content), or raise `queue.Empty` if none comes within ``timeout`` seconds."""


class Console:
    """Prints a run's messages. Lines go to standard output; live figures, on a terminal only, to standard error."""

    def __init__(self) -> None:
        self._terminal: Terminal | None = None  # while something is drawn on it
        self._figures: LiveFigures | None = None

    def line(self, text: str) -> None:
        """Print one line, above what is drawn if that is on the same terminal."""
        if self._terminal is not None and sys.stdout.isatty():
            self._terminal.print(text, soft_wrap=True)
        else:
            print(text, flush=True)

    @contextmanager
    def following(self, events: Inbox) -> Iterator[None]:
        """Print what arrives in ``events`` while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._follow, args=(events, done), daemon=True)
        with self._display():
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join(timeout=10)

    @contextmanager
    def _display(self) -> Iterator[None]:
        """Show how far the run is, on a terminal."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console as Terminal
        from rich.live import Live

        from distil_ray.runs.live import LiveFigures

        self._terminal, self._figures = Terminal(stderr=True, highlight=False, markup=False), LiveFigures()
        try:
            with Live(self._figures, console=self._terminal, redirect_stdout=False):
                yield
        finally:
            self._terminal = self._figures = None

    def _follow(self, events: Inbox, done: threading.Event) -> None:
        while True:
            is_last_round = done.is_set()
            try:
                kind, content = events.get(timeout=0.5)
            except Empty:
                if is_last_round:
                    return
            except Exception:  # the queue's actor is gone, as after an interrupt: nothing more will come
                return
            else:
                self.show(kind, content)

    def show(self, kind: str, content: Any) -> None:
        """Print one event."""
        if kind == "line":
            self.line(content)
            return
        if self._figures is not None:
            self._figures.update(content)
        if self._figures is None or any(name.startswith("eval/") for name in content):
            self.line(format_record(content))
