"""Room for a run's workers and its data tasks at once, and for one run after the other.

Ray Train reserves slots for the workers only. Runs that start side by side could therefore fill a cluster with workers
and leave no slot for anybody's data tasks, and all of them would wait forever. Here a run takes its turn among the runs
of the cluster, waits until all that it needs is free at once, and ends its turn when its workers have their places.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distil_ray.config import Config
from distil_ray.runs.cluster import amounts, has_label, worker_resources
from distil_ray.runs.ray_internals import pass_ray_address_to_train

_NAME, _NAMESPACE = "placement", "distil_ray"
_POLL_SECONDS = 1.0
_SILENT_SECONDS, _REPEAT_SECONDS = 5.0, 300.0

Tell = Callable[[str], None]


class Turn:
    """The right to place workers, which one run of the cluster has at a time. Can be sent to other processes."""

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    def end(self) -> None:
        """Let the next run place its workers; without effect the second time."""
        ray.kill(self._holder)


@contextmanager
def turn_with_room(config: Config, tell: Tell) -> Iterator[Turn]:
    """Wait for this run's turn and for room for its workers (the fewest, if elastic) and data tasks together.

    The turn ends with the block if not before, and with this process, however that ends.

    Args:
        tell: gets a line if there is something to wait for.
    """
    turn = Turn(_take_turn(tell))
    try:
        _wait_for_room(config, tell)
        yield turn
    finally:
        turn.end()


class _Holder:
    """An actor whose name only one can have. It ends with the process that made it."""


def _take_turn(tell: Tell) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    holder: Any = ray.remote(_Holder)
    notice = _Notice(tell)
    while True:
        try:
            options = {"name": _NAME, "namespace": _NAMESPACE, "num_cpus": 0, "scheduling_strategy": here}
            return holder.options(**options).remote()
        except ValueError:  # the name is taken
            notice.offer("waiting: another run is being placed on this cluster, which may have to wait for nodes")
            time.sleep(_POLL_SECONDS)


def _wait_for_room(config: Config, tell: Tell) -> None:
    """Reserve everything, which Ray does at once or not at all, and give it back for the run itself to take."""
    workers = [worker_resources(config)] * config.runtime.min_workers
    data = [{"CPU": 1.0}] * _num_data_slots(config)
    label = config.runtime.data_label
    with suppress(ValueError):  # there is none, usually; a trial that was killed while it waited has left one
        remove_placement_group(get_placement_group(_NAME))
    room = placement_group(
        [*workers, *data],
        name=_NAME,
        bundle_label_selector=[*[{}] * len(workers), *[dict(label)] * len(data)] if label else None,
    )
    needed: Counter[str] = Counter()  # of fractions, too
    for bundle in (*workers, *data):
        needed.update(bundle)
    notice = _Notice(tell)
    try:
        while not room.wait(_POLL_SECONDS):
            free = ray.available_resources()
            notice.offer(
                f"waiting for room on the cluster: {amounts(needed)} are needed at once for workers and data tasks, "
                f"{amounts({name: free.get(name, 0.0) for name in needed})} are free"
            )
    finally:
        remove_placement_group(room)


def _num_data_slots(config: Config) -> int:
    """Slots to wait for: those that the run may use, of those that are there; an autoscaler adds others later."""
    runtime = config.runtime
    nodes = [node for node in ray.nodes() if node["Alive"] and has_label(node["Labels"], runtime.data_label)]
    there = sum(node["Resources"].get("CPU", 0.0) for node in nodes)
    if not runtime.data_label:
        there -= worker_resources(config).get("CPU", 0.0) * runtime.min_workers
    return max(min(runtime.data_cpus, int(there)), 1)


class _Notice:
    """Passes a line on when the waiting begins to take time, and from time to time after that."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._next = time.monotonic() + _SILENT_SECONDS

    def offer(self, line: str) -> None:
        if time.monotonic() >= self._next:
            self._tell(line)
            self._next = time.monotonic() + _REPEAT_SECONDS


@contextmanager
def ray_address_for_train() -> Iterator[None]:
    """Within the block, let the helpers that Ray Train starts know which Ray is theirs.

    The one that frees the slots of a run whose controller was killed, as that of a trial that is stopped early, asks
    the state API for the controller. Without an address it looks for a Ray on the machine: where several run, it fails
    or asks another one, and the slots stay taken. Ray Train passes only certain variables on to its controller, and so
    to that helper.
    """
    pass_ray_address_to_train()
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = before
