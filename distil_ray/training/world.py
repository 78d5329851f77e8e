"""What surrounds a worker's training loop, passed in by its caller: Ray Train, or plain processes.

Imports no Ray.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from distil_ray.data.batch import Arrays
from distil_ray.runs.storage import RunFolder

T = TypeVar("T")

LEAVE_SECONDS = 15.0
"""Before a node's end: time to finish at most two steps, to save and to leave. Until then training continues."""


class Events(Protocol):
    """A worker's connection to the driver. Nothing here waits for the driver, and nothing fails without it."""

    def post_text(self, text: str) -> None:
        """Pass on a line of text."""

    def post_record(self, record: Mapping[str, Any]) -> None:
        """Pass on metrics."""

    def noted(self, topic: str) -> Mapping[Any, Any]:
        """Return what is noted under a topic, by key; empty if that cannot be found out."""

    def is_stop_wanted(self) -> bool:
        """Whether the driver wants the run to save and end."""


class PreemptionWatch:
    """What this worker knows about nodes that are about to be taken away, its own or another worker's.

    ``latest`` returns the newest announcement, which has a ``deadline_ms`` (None: not known), or None without one.
    """

    def __init__(self, latest: Callable[[], Any] = lambda: None) -> None:
        self._latest = latest
        self._seen: Any = None

    def is_new(self) -> bool:
        """Whether there is an announcement that this method has not reported yet."""
        before, self._seen = self._seen, self._latest()
        return bool(self._seen != before)

    def is_imminent(self) -> bool:
        """Whether it is time to leave; at once if the deadline is not known."""
        info = self._latest()
        return info is not None and (info.deadline_ms or 0) / 1000 - time.time() < LEAVE_SECONDS


@dataclass(frozen=True)
class World:
    """One worker's surroundings.

    Attributes:
        group: for what is not on the device; None: the default group.
        folder: the run's; it refuses to change once the lease is lost, and waits outages out.
        blocks: this worker's share of the blocks after the last checkpoint: those j with j mod world_size = rank.
        report: takes the numbers of an evaluation, on all workers.
    """

    rank: int
    world_size: int
    device: torch.device
    folder: RunFolder
    blocks: Iterable[Arrays]
    events: Events
    group: dist.ProcessGroup | None = None
    report: Callable[[dict[str, Any]], None] = lambda metrics: None
    preemption: PreemptionWatch = field(default_factory=PreemptionWatch)

    @property
    def is_main(self) -> bool:
        """Whether this worker writes the run's files."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each worker passes, by rank. A collective call."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def share(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Rank 0's tensors, on every worker's device; what the others pass does not count. A collective call."""
        own = dict(tensors or {})
        outline = self.gather({name: (tensor.shape, tensor.dtype) for name, tensor in own.items()})[0]
        shared = {}
        for name, (shape, dtype) in outline.items():
            if self.is_main:
                shared[name] = own[name].to(self.device)
            else:
                shared[name] = torch.empty(shape, dtype=dtype, device=self.device)
            if self.world_size > 1:
                dist.broadcast(shared[name], src=0)
        return shared
