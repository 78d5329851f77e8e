"""What the person at the terminal sees: a progress bar with the time left, or plain lines where there is none."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # imported late: few commands draw, and `--help` never does
    from rich.console import Console as Terminal
    from rich.progress import Progress


class Inbox(Protocol):
    """Where a run's events come from, such as an `EventQueue`."""

    def get(self, *, timeout: float) -> Any:
        """Return the next (kind, content), or raise `queue.Empty` if none comes within ``timeout`` seconds."""


class Console:
    """Prints a run's messages. Lines go to standard output; the bar, on a terminal only, to standard error."""

    def __init__(self) -> None:
        self._terminal: Terminal | None = None  # while something is drawn on it
        self._bar: Progress | None = None

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
        from rich.progress import BarColumn, Progress, TextColumn

        self._terminal = Terminal(stderr=True, highlight=False, markup=False)
        columns = TextColumn("{task.percentage:5.1f}%"), BarColumn(None), TextColumn("{task.description}", markup=False)
        try:
            with Progress(*columns, console=self._terminal, redirect_stdout=False, expand=True) as self._bar:
                self._bar.add_task("", total=1.0)
                yield
        finally:
            self._terminal = self._bar = None

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
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=content["run/progress"], description=_format_briefly(content))
        if self._bar is None or any(name.startswith("eval/") for name in content):
            self.line(format_record(content))


_HELD_OUT = {
    "eval/mlm_loss": ("mlm_loss", ".4f"),
    "eval/mlm_accuracy": ("accuracy", ".1%"),
    "eval/kl_to_teacher": ("kl_to_teacher", ".4f"),
    "eval/teacher_agreement": ("agreement", ".1%"),
    "eval/relation_loss": ("relation_loss", ".4f"),
    "eval/hidden_loss": ("hidden_loss", ".4f"),
}  # by metric: how a line calls and writes it


def format_record(record: Mapping[str, Any]) -> str:
    """One line of text for one record."""
    parts = [f"step {record['step']:>6,}  {record['run/progress']:6.1%}"]
    if "train/loss" in record:
        terms = "  ".join(
            f"{name.removeprefix('train/loss_')} {_number(value)}"
            for name, value in record.items()
            if name.startswith("train/loss_")
        )
        parts.append(f"loss {_number(record['train/loss'])} ({terms})")
        parts.append(_speed(record))
    held_out = [
        f"{label} {record[name]:{form}}" for name, (label, form) in _HELD_OUT.items() if record.get(name) is not None
    ]
    if held_out:
        parts.append(f"held out: {', '.join(held_out)}")
    return "  ".join([*parts, *_time_left(record)])


def _format_briefly(record: Mapping[str, Any]) -> str:
    """What fits beside a bar."""
    parts = [f"step {record['step']:,}", *_time_left(record)]
    if "train/loss" in record:
        parts += [f"loss {_number(record['train/loss'])}", _speed(record)]
    return "  ".join(parts)


def _speed(record: Mapping[str, Any]) -> str:
    return f"{record['perf/tokens_per_second']:,.0f} tokens/s"


def _time_left(record: Mapping[str, Any]) -> list[str]:
    is_known = record.get("eta_seconds") and record["run/progress"] < 1
    return [f"{format_seconds(record['eta_seconds'])} left"] if is_known else []


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def format_seconds(seconds: float) -> str:
    """90061 -> 25:01:01."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
