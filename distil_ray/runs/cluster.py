"""The Ray cluster of a run: join or start one, check that the run fits, and say what it waits for."""

import logging
import math
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import ray

from distil_ray.config import Config
from distil_ray.errors import InputError, RunError
from distil_ray.runs.ray_internals import autoscaling_state
from distil_ray.runs.stopping import keeping_sigterm

_NODE_TYPE_LABEL = "ray.io/node-group"
_AUTOSCALER_SECONDS = 15.0  # until the autoscaler of a cluster that was started for this run has reported
_NO_PORT = 1
"""Of the dashboard of a Ray without one. Ray notes the port all the same, and Ray Train asks there whether its
controller lives: at the usual port, another Ray's dashboard would say that it does not, and the workers be ended."""
_CONNECT_SECONDS = 10.0  # until a head that can be reached has answered

_CGROUP = Path("/sys/fs/cgroup")

DRIVER_CPUS = 0.01
"""CPU slots of a run's driver that another command starts as an actor. It is idle while the run trains, and many may
wait for their turn: with whole slots they could leave none for the workers. With none at all, Ray could place it on a
head on which no work belongs."""

SYSTEM_CONFIG = {"idle_worker_killing_time_threshold_ms": 60_000}
"""Of a Ray that is started here. It would else end processes that idle for a second, if there are more than CPU slots:
blocks are cut without one, so most tasks would start a process anew, which takes longer than to make a group's rows."""


def connect(cpu_slots: float, *, dashboard: bool = False) -> str:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), or else start a Ray on this machine.

    Meanwhile a thread loads transformers, which takes about as long and is what every command needs next.

    A Ray started here gets logical CPU slots for all that the command needs, ``cpu_slots``, however few cores there
    are, so that a run's workers and its data tasks cannot starve each other. One that is already running
    here is never used: it may belong to another command, and end with it. Returns a line that says which it was.

    Args:
        dashboard: whether a Ray started here has one, which takes some seconds of processor time to start. Without
            it, Ray Train cannot clean up after a driver that is killed; the Ray of a single driver ends with that.

    Raises:
        InputError: there is no cluster at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return "using the Ray that this process is connected to"
    with keeping_sigterm(), _loading_transformers():
        return _join_or_start(cpu_slots, dashboard)


@contextmanager
def _loading_transformers() -> Iterator[None]:
    def load() -> None:
        with suppress(Exception):  # who needs it will load it again, and can say what is wrong
            import_module("distil_ray.models.loading")

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        yield
    finally:  # a thread that is still at it when Python ends may end the process with another status
        thread.join()


def _join_or_start(cpu_slots: float, dashboard: bool) -> str:
    # What matters to the user comes by the run's own events; Ray's log files keep the rest.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if address is not None:
        try:
            _check_reachable(address)
            context: Any = ray.init(address=address, **quiet)
        except (OSError, ValueError) as error:
            raise InputError(
                f"RAY_ADDRESS: cannot reach a Ray cluster at {address!r}: {error}; start one with "
                "`ray start --head`, or unset RAY_ADDRESS to run on this machine alone"
            ) from error
        return f"joined the Ray cluster at {context.address_info['gcs_address']}"
    num_cpus = math.ceil(max(usable_cpus(), cpu_slots))
    # Ray Train's watch for nodes that are drained is a process of its own, and here is one node, which is not.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A worker trains in a thread; a thread's own heap could not keep large blocks: see models.host_memory.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # In this thread: Linux ends Ray's processes with the one that has started them.
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_port=None if dashboard else _NO_PORT,
        _system_config=SYSTEM_CONFIG,
        **quiet,
    )
    return f"started Ray on this machine with {num_cpus} CPU slots"


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT, for which Ray would wait for minutes; let other addresses pass."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def usable_cpus() -> int:
    """CPU cores that this process may use: those of its container and its affinity, not all that the host has."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for quota, period in _cgroup_quotas():
        count = min(count, quota / period)
    return max(math.ceil(count), 1)


def _cgroup_quotas() -> Iterator[tuple[float, float]]:
    """Microseconds of CPU time per period, of control groups version 2 and 1."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((_CGROUP / file).read_text() for file in files).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # not there, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota, period


def worker_resources(config: Config) -> dict[str, float]:
    """Ray resources of one training worker."""
    defaults = {"GPU": 1.0} if config.runtime.use_gpu else {"CPU": 1.0}
    return defaults | dict(config.runtime.resources_per_worker or {})


def slots_needed(config: Config, num_workers: int | None = None, driver_cpus: float = 0.0) -> dict[str, float]:
    """Resources of the workers (of the fewest, if elastic), of the data tasks and of the driver together."""
    num_workers = num_workers or config.runtime.min_workers
    total = {name: amount * num_workers for name, amount in worker_resources(config).items()}
    return total | {"CPU": total.get("CPU", 0.0) + config.runtime.data_cpus + driver_cpus}


def amounts(resources: Mapping[str, float]) -> str:
    """Ray resources in words: "2 GPU, 1 CPU"."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def check_fits(config: Config, driver_cpus: float = 0.0) -> list[str]:
    """Compare what the run needs with what the cluster has.

    Returns:
        A line on what is missing yet, if there is an autoscaler, which alone knows whether it can add that.

    Raises:
        InputError: the run could never be placed; says what is asked for and what is there.
    """
    shortage, remedy = _shortage(config, driver_cpus)
    if shortage and not has_autoscaler(_AUTOSCALER_SECONDS):
        raise InputError(f"{shortage}; {remedy}")
    return [f"waits for an autoscaler: {shortage}"] if shortage else []


def _shortage(config: Config, driver_cpus: float) -> tuple[str, str]:
    """What is missing, and what could be done about it; empty if nothing is."""
    runtime, available = config.runtime, ray.cluster_resources()
    needed = slots_needed(config, driver_cpus=driver_cpus)
    if any(available.get(name, 0.0) < amount for name, amount in needed.items()):
        there = {name: available.get(name, 0.0) for name in needed}
        return (
            f"runtime.num_workers: {runtime.min_workers} workers and runtime.data_cpus = {runtime.data_cpus} need "
            f"{amounts(needed)} in all{f', with {driver_cpus:g} CPU for a driver' if driver_cpus else ''}, "
            f"the cluster has {amounts(there)}"
        ), "ask for fewer workers or data_cpus, or add nodes"
    places = worker_places(worker_resources(config))
    if places < runtime.min_workers:
        return (
            f"runtime.resources_per_worker: the cluster's nodes have room for {places:g} workers of "
            f"{amounts(worker_resources(config))} each, and {runtime.min_workers} are asked for"
        ), "ask for less per worker, or add larger nodes"
    label = runtime.data_label
    if label and not any(_carries(node, label) for node in ray.nodes()):
        shown = ", ".join(f"{key}={value}" for key, value in label.items())
        missing = f"runtime.data_label: no node of the cluster carries the label {shown}"
        return missing, f"start nodes with `ray start --labels {shown}`, or leave the key out"
    return "", ""


def missing_now(config: Config) -> str:
    """What the workers (the fewest, if elastic) lack at the moment; empty if there is room for them.

    Asks for nothing, so that no autoscaler starts nodes.
    """
    worker, num_workers = worker_resources(config), config.runtime.min_workers
    needed = {name: amount * num_workers for name, amount in worker.items()}
    free = {name: ray.available_resources().get(name, 0.0) for name in needed}
    if worker_places(worker) >= num_workers and all(free[name] >= amount for name, amount in needed.items()):
        return ""
    return f"{num_workers} workers need {amounts(needed)} now, and {amounts(free)} are free"


def has_autoscaler(patience_seconds: float = 0.0) -> bool:
    """Whether an autoscaler may add nodes to the cluster.

    Nodes that carry the name of their type do not suffice: those of a cluster of fixed size may, as in Kubernetes. The
    autoscaler itself must have reported to Ray, for which one that has just been started gets ``patience_seconds``.
    """
    if not any(is_autoscaled(node["Labels"]) for node in ray.nodes()):
        return False
    from ray.autoscaler.v2.sdk import get_cluster_status  # not by commands that only look at a cluster of fixed size

    end = time.monotonic() + patience_seconds
    while True:
        version = get_cluster_status(ray.get_runtime_context().gcs_address).stats.autoscaler_version
        if version not in (None, "0") or time.monotonic() >= end:
            return version not in (None, "0")
        time.sleep(1)


def is_autoscaled(labels: Mapping[str, str]) -> bool:
    """Whether a node carries the name of its type, as every node does that an autoscaler has started."""
    return _NODE_TYPE_LABEL in labels


def runs_at_once(config: Config) -> int:
    """How many such runs the cluster holds now side by side, each with its driver, data tasks and all its workers.

    Where not even one has all its workers, an elastic one makes do with fewer.
    """
    runtime = config.runtime
    available: Mapping[str, float] = ray.cluster_resources()
    needed = slots_needed(config, runtime.max_workers, DRIVER_CPUS)
    limits = [available.get(name, 0.0) // amount for name, amount in needed.items()]
    limits.append(worker_places(worker_resources(config)) // runtime.max_workers)
    if runtime.data_label:
        labelled = (node["Resources"] for node in ray.nodes() if _carries(node, runtime.data_label))
        limits.append(sum(resources.get("CPU", 0.0) for resources in labelled) // runtime.data_cpus)
    return max(int(min(limits)), 1)


def worker_places(worker: Mapping[str, float]) -> float:
    """How many workers with these resources the nodes have room for, if nothing else runs."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return math.fsum(min(resources.get(name, 0.0) // amount for name, amount in worker.items()) for resources in nodes)


def describe_resources(config: Config) -> str:
    """A line with what the run asks for and what there is."""
    available: Mapping[str, float] = ray.cluster_resources()
    asked = ", ".join(
        f"{amount:g} of {available.get(name, 0.0):g} {name}" for name, amount in slots_needed(config).items()
    )
    memory = available.get("object_store_memory", 0.0) / 1e9
    more = ", to which its autoscaler may add" if has_autoscaler() else ""
    return f"cluster: takes {asked}{more}; object store {memory:.1f} GB"


def gpu_types() -> list[str]:
    """What Ray calls the GPUs of the cluster's nodes, such as A100."""
    prefix = "accelerator_type:"
    resources = (node["Resources"] for node in ray.nodes() if node["Alive"] and "GPU" in node["Resources"])
    return sorted({name.removeprefix(prefix) for one in resources for name in one if name.startswith(prefix)})


def _carries(node: Mapping[str, Any], label: Mapping[str, str]) -> bool:
    return bool(node["Alive"]) and has_label(node["Labels"], label)


def has_label(labels: Mapping[str, str], label: Mapping[str, str] | None) -> bool:
    """Whether a node with these labels may run what asks for a label; without one, every node may."""
    return not label or label.items() <= labels.items()


def assigned_device() -> Any:
    """The GPU that Ray has given to this task or actor, else the CPU."""
    import torch  # not by the driver, which only asks for room

    return torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")


_POLL_SECONDS = 5.0


@contextmanager
def reporting_nodes(tell: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, report nodes that the autoscaler starts, fails to start or could never start."""
    if not has_autoscaler():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(tell, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=_POLL_SECONDS)


def _watch(tell: Callable[[str], None], done: threading.Event) -> None:
    told: set[str] = set()
    while not done.wait(_POLL_SECONDS):
        try:
            lines = describe(autoscaling_state())
        except RunError as error:  # of another version of Ray; the run does not need these lines
            tell(str(error))
            return
        except Exception:  # the run itself will notice if the cluster is gone
            continue
        for line in lines:
            if line not in told:
                told.add(line)
                tell(line)


def describe(state: Any) -> list[str]:
    """What the autoscaler does about the nodes that it was asked for; ``state``: its `AutoscalingState`."""
    starting = Counter(instance.ray_node_type_name for instance in state.pending_instances)
    for request in state.pending_instance_requests:
        starting[request.ray_node_type_name] += request.count
    lines = [f"autoscaler: {count} × {name} is starting" for name, count in starting.items()]
    lines += [
        f"autoscaler: {failed.count} × {failed.ray_node_type_name} could not be started: {failed.reason}"
        for failed in state.failed_instance_requests
    ]
    wanted = [_bundle(request) for request in state.infeasible_resource_requests]
    for gang in state.infeasible_gang_resource_requests:
        counts = Counter(_bundle(request) for request in gang.requests)
        wanted.append(" and ".join(f"{count} × {bundle}" for bundle, count in counts.items()))
    lines += [
        f"autoscaler: the cluster's node types cannot provide {bundle}; ask for less in runtime, or raise "
        "max_workers of a node type that has it"
        for bundle in dict.fromkeys(wanted)
    ]
    return lines


def _bundle(request: Any) -> str:
    bundle: Mapping[str, float] = request.resources_bundle
    labels = {
        constraint.label_key: ", ".join(constraint.label_values)
        for selector in request.label_selectors
        for constraint in selector.label_constraints
    }
    where = "".join(f" on nodes with {key}={value}" for key, value in labels.items())
    return f"({amounts(dict(sorted(bundle.items())))}{where})"
