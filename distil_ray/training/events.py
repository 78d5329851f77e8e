"""The line between a run's driver and whatever works for it. Imports little: every data task loads it."""

import asyncio
from collections.abc import Mapping
from queue import Empty
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Line:
    """Both ends of the line: what happens goes to the driver, its request to stop to the workers."""

    def __init__(self) -> None:
        """Open a line to this process. It lies on this node: it must outlive any other."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Exchange)
        self._exchange: Any = actor.options(num_cpus=0, scheduling_strategy=here).remote()

    # The workers' end

    def send(self, kind: str, content: Any) -> None:
        """Pass on an event, without waiting."""
        self._exchange.put.remote((kind, content))

    def line(self, text: str) -> None:
        """Pass on a line of text."""
        self.send("line", text)

    def note(self, topic: str, key: Any, content: Any) -> None:
        """Keep something under a topic, for `noted`; what is there under the same key is replaced."""
        self._exchange.note.remote(topic, key, content)

    def noted(self, topic: str) -> dict[Any, Any]:
        """Return what is kept under a topic, by key."""
        notes: dict[Any, Any] = ray.get(self._exchange.noted.remote(topic))
        return notes

    def record(self, record: Mapping[str, Any]) -> None:
        """Pass on metrics."""
        self.send("record", record)

    def is_stop_wanted(self) -> bool:
        """Whether the driver wants the run to save and end; a round trip of about a millisecond."""
        return bool(ray.get(self._exchange.is_stop_wanted.remote()))

    # The driver's end

    def get(self, *, timeout: float) -> tuple[str, Any]:
        """Return the next event, or raise `queue.Empty` if none comes within ``timeout`` seconds."""
        event = ray.get(self._exchange.get.remote(timeout))
        if event is None:
            raise Empty
        kind, content = event
        return kind, content

    def want_stop(self) -> bool:
        """Ask for the end of the run; return whether a worker is there that will see to it."""
        return bool(ray.get(self._exchange.want_stop.remote()))

    def close(self) -> None:
        """Give the line up."""
        ray.kill(self._exchange)


class _Exchange:
    """The actor in the middle."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._is_stop_wanted = self._is_listened_to = False
        self._notes: dict[str, dict[Any, Any]] = {}

    async def put(self, event: tuple[str, Any]) -> None:
        self._events.put_nowait(event)

    async def get(self, timeout: float) -> tuple[str, Any] | None:
        try:
            return await asyncio.wait_for(self._events.get(), timeout)
        except TimeoutError:
            return None

    async def note(self, topic: str, key: Any, content: Any) -> None:
        self._notes.setdefault(topic, {})[key] = content

    async def noted(self, topic: str) -> dict[Any, Any]:
        return self._notes.get(topic, {})

    async def is_stop_wanted(self) -> bool:
        self._is_listened_to = True
        return self._is_stop_wanted

    async def want_stop(self) -> bool:
        self._is_stop_wanted = True
        return self._is_listened_to
