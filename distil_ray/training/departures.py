"""Nodes that are about to be taken away, as Ray Train tells each worker."""

import time

from ray.train.v2._internal.execution.context import get_train_context

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
