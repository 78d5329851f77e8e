"""Events between a run's driver and the processes that work for it. Imports little: every data task loads it.

The run does not depend on it: while the actor in the middle is gone, until Ray restarts it, events are lost and no
request to stop arrives; nothing else happens.
"""

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from queue import Empty
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWER_SECONDS = 10.0
_PROCESS, _NUMBERS = uuid.uuid4().hex, count()  # of the notes sent from here


class _Note(NamedTuple):
    process: str
    number: int
    content: Any


class EventQueue:
    """Carries what happens to the driver, and its request to stop to the workers."""

    def __init__(self) -> None:
        """Begin in the driver. The queue is on this node, which must outlive all others."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Exchange)
        self._exchange: Any = actor.options(num_cpus=0, scheduling_strategy=here, max_restarts=-1).remote()
        self._wants_stop = self._is_introduced = False

    # The workers' end

    def send(self, kind: str, content: Any) -> None:
        """Pass on an event, without waiting."""
        self._exchange.put.remote((kind, content))

    def post_text(self, text: str) -> None:
        """Pass on a line of text."""
        self.send("line", text)

    def post_record(self, record: Mapping[str, Any]) -> None:
        """Pass on metrics."""
        self.send("record", record)

    def note(self, topic: str, key: Any, content: Any) -> None:
        """Keep something under a topic, for `noted`; what is there under the same key is replaced.

        Calls of an asynchronous actor may overtake each other: of a process' own, the last one counts.
        """
        self._exchange.note.remote(topic, key, _Note(_PROCESS, next(_NUMBERS), content))

    def noted(self, topic: str) -> dict[Any, Any]:
        """Return what is kept under a topic, by key."""
        with suppress(ray.exceptions.RayError):
            notes: dict[Any, Any] = ray.get(self._exchange.noted.remote(topic), timeout=_ANSWER_SECONDS)
            return notes
        return {}

    def is_stop_wanted(self) -> bool:
        """Whether the driver wants the run to save and end; a round trip of about a millisecond. Asked by an actor."""
        with suppress(ray.exceptions.RayError):
            if self._is_introduced and (answer := self._ask(None)) is not None:
                return answer
            self._is_introduced = True
            return bool(self._ask(ray.get_runtime_context().current_actor))
        return False

    def _ask(self, worker: Any) -> bool | None:
        answer: bool | None = ray.get(self._exchange.is_stop_wanted.remote(worker), timeout=_ANSWER_SECONDS)
        return answer

    # The driver's end

    def get(self, *, timeout: float) -> tuple[str, Any]:
        """Return the next event, or raise `queue.Empty` if none comes within ``timeout`` seconds."""
        try:
            event = ray.get(self._exchange.get.remote(timeout, self._wants_stop), timeout=timeout + _ANSWER_SECONDS)
        except ray.exceptions.RayError:
            time.sleep(timeout)
            event = None
        if event is None:
            raise Empty
        kind, content = event
        return kind, content

    def want_stop(self) -> bool:
        """Ask for the end of the run; return whether a worker is there that will see to it."""
        self._wants_stop = True
        with suppress(ray.exceptions.RayError):
            return bool(ray.get(self._exchange.want_stop.remote(), timeout=2 * _ANSWER_SECONDS))
        return False

    def close(self) -> None:
        """End the queue."""
        ray.kill(self._exchange)


class _Exchange:
    """The actor in the middle. Started again after its process is lost, it knows neither events nor workers."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._is_stop_wanted = False
        self._worker: Any = None  # the newest actor that has asked whether to stop
        self._notes: dict[str, dict[Any, _Note]] = {}

    async def put(self, event: tuple[str, Any]) -> None:
        self._events.put_nowait(event)

    async def get(self, timeout: float, is_stop_wanted: bool) -> tuple[str, Any] | None:
        self._is_stop_wanted |= is_stop_wanted
        try:
            return await asyncio.wait_for(self._events.get(), timeout)
        except TimeoutError:
            return None

    async def note(self, topic: str, key: Any, note: _Note) -> None:
        notes = self._notes.setdefault(topic, {})
        known = notes.get(key)
        if known is None or known.process != note.process or known.number < note.number:
            notes[key] = note

    async def noted(self, topic: str) -> dict[Any, Any]:
        return {key: note.content for key, note in self._notes.get(topic, {}).items()}

    async def is_stop_wanted(self, worker: Any) -> bool | None:
        """None: the caller must say who it is."""
        if worker is not None:
            self._worker = worker
        return None if self._worker is None else self._is_stop_wanted

    async def want_stop(self) -> bool:
        self._is_stop_wanted = True
        if self._worker is None:
            return False
        try:
            await asyncio.wait_for(self._worker.__ray_ready__.remote(), _ANSWER_SECONDS)
        except TimeoutError:  # it is busy
            return True
        except ray.exceptions.RayError:  # it has ended
            return False
        return True
