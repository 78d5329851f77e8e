"""How a command ends before it is done: the exit status, and the reason in one line."""

import difflib
import re
import signal
from collections.abc import Iterable


class InputError(ValueError):
    """A user's mistake: bad configuration or bad input. Ends a command with exit status 2.

    The message names what was given, what was expected and what to do; no traceback is shown.
    """


class RunError(RuntimeError):
    """A run that started and failed. Ends a command with exit status 1."""


class DivergedError(RunError):
    """A run that diverged; with the same settings, it would do so again."""


class OutageError(RunError):
    """Storage or a Hub that did not answer in the time allowed. The same command may work later."""


class Stopped(Exception):
    """A run that a signal has ended. Ends a command with exit status 128 + the signal's number, as shells have it."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(f"{message} ({signal.Signals(signal_number).name})")
        self.signal_number = signal_number


_REMOTE_TRACEBACK = "Traceback (most recent call last)"
_FRAME = re.compile(r"\s|\x1b|ray::|File \"|The above exception|During handling of")
_EXIT_DETAIL = "Worker exit detail: "
_MAX_REASON_CHARACTERS = 1000


def reason_of(error: BaseException) -> str:
    """Why something failed, on one line: the message of the innermost error, or at least its type.

    Errors of a remote process arrive as a traceback in one text; the message after its last frame is the reason. An
    error that only announces a list ("…:") is followed by what it announces. Of a process that ended, Ray tells much
    about what it was before it says why.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):  # what Ray wraps an error of a task in
        return reason_of(cause)
    text = str(error).strip()
    if _REMOTE_TRACEBACK in text:
        lines = text.rpartition(_REMOTE_TRACEBACK)[2].splitlines()[1:]
        text = "\n".join(line for line in lines if not _FRAME.match(line)) or text
    line = " ".join(text.split())
    _, ended, detail = line.rpartition(_EXIT_DETAIL)
    line = f"its process ended: {detail}" if ended else line
    return line[:_MAX_REASON_CHARACTERS] or type(error).__name__


def first_of(items: list[str], limit: int, what: str) -> list[str]:
    """Return the first ``limit`` items, and in place of the others how many they are."""
    return items if len(items) <= limit else [*items[:limit], f"and {len(items) - limit} more {what}"]


def did_you_mean(given: str, known: Iterable[str], limit: int = 1) -> str:
    """Return the most similar names in parentheses, to follow the one that is wrong; empty if none is similar."""
    nearest = difflib.get_close_matches(given, list(known), n=limit)
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""
