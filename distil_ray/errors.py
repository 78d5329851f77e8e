"""The ways in which a command ends before it is done, and the exit status of each."""

import signal


class InputError(ValueError):
    """A user's mistake: bad configuration or bad input. Ends a command with exit status 2.

    The message names what was given, what was expected and what to do; no traceback is shown.
    """


class RunError(RuntimeError):
    """A run that started and failed. Ends a command with exit status 1."""


class DivergedError(RunError):
    """A run whose numbers made it fail: done again with the same settings, it would fail again."""


class Stopped(Exception):
    """A run that a signal has ended. Ends a command with exit status 128 + the signal's number, as shells have it."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(f"{message} ({signal.Signals(signal_number).name})")
        self.signal_number = signal_number
