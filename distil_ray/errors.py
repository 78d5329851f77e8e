"""The two ways in which a command ends badly, and the exit status of each."""


class InputError(ValueError):
    """A user's mistake: bad configuration or bad input. Ends a command with exit status 2.

    The message names what was given, what was expected and what to do; no traceback is shown.
    """


class RunError(RuntimeError):
    """A run that started and failed. Ends a command with exit status 1."""


class DivergedError(RunError):
    """A run whose numbers made it fail: done again with the same settings, it would fail again."""
