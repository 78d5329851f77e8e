"""Timing in turns. Imports nothing that is not in Python."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Key = TypeVar("Key")


def time_in_turns(
    functions: Mapping[Key, Callable[[int], object]], num_rounds: int, num_warmups: int = 0
) -> dict[Key, list[float]]:
    """Time each function once per round, so that other work on the machine slows all of them alike.

    Each round begins with another function (two take turns in being first), so that none always follows the same one.

    Args:
        functions: called with the number of the round, which counts the warm-ups, too.
        num_rounds: rounds that count.
        num_warmups: rounds before those, whose times are dropped.

    Returns:
        The seconds of each round, by function: values of the same round can be compared as pairs.
    """
    names = list(functions)
    seconds: dict[Key, list[float]] = {name: [] for name in names}
    for number in range(num_warmups + num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            functions[name](number)
            seconds[name].append(time.perf_counter() - began)
    return {name: values[num_warmups:] for name, values in seconds.items()}
