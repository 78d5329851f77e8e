"""What a run waits for while an autoscaler starts nodes, or cannot."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from distil_ray.training.cluster import has_autoscaler

_POLL_SECONDS = 5.0


@contextmanager
def telling_of_nodes(tell: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, tell of nodes that the autoscaler starts, fails to start or could never start."""
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
    # Of Ray's insides, so imported only where there is an autoscaler. Its public client leaves out what is infeasible.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    told: set[str] = set()
    while not done.wait(_POLL_SECONDS):
        try:
            reply = GetClusterStatusReply.FromString(client.get_cluster_status())
        except Exception:  # no more than news; the run itself will notice if the cluster is gone
            continue
        for line in describe(reply.autoscaling_state):
            if line not in told:
                told.add(line)
                tell(line)


def describe(state: Any) -> list[str]:
    """What the autoscaler does about the nodes that are asked of it, a line each; ``state``: its `AutoscalingState`."""
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
    amounts = ", ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()))
    labels = {
        constraint.label_key: ", ".join(constraint.label_values)
        for selector in request.label_selectors
        for constraint in selector.label_constraints
    }
    where = "".join(f" on nodes with {key}={value}" for key, value in labels.items())
    return f"({amounts}{where})"
