"""The way of messages from workers and data tasks to the driver. Imports little: every data task loads it."""

from collections.abc import Mapping
from typing import Any

from ray.util.queue import Queue


class QueueEvents:
    """`reporter.Events` over a Ray queue: (kind, content), without waiting for the queue's actor."""

    def __init__(self, queue: Queue) -> None:
        self._actor: Any = queue.actor

    def line(self, text: str) -> None:
        """Pass on a line of text."""
        self._actor.put_nowait.remote(("line", text))

    def record(self, record: Mapping[str, Any]) -> None:
        """Pass on metrics."""
        self._actor.put_nowait.remote(("record", record))
