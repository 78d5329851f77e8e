"""Everything that uses private interfaces of Ray, where there is no public one; each is imported when it is needed.

`tests/runs/test_ray_internals.py` fails when a version of Ray has changed one of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from distil_ray.errors import RunError


@contextmanager
def _private(purpose: str) -> Iterator[None]:
    """Say which version of Ray is needed where the installed one has changed.

    Raises:
        RunError: it has.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise RunError(
            f"{purpose} does not work with Ray {ray.__version__} ({error}); expected a version that this release has "
            "been tested with: install it again with `pip install distil-ray`, on all nodes"
        ) from error


def newest_preemption() -> Any:
    """What Ray Train has announced to this worker of drained nodes: a `PreemptionInfo`, or None.

    `ray.train.get_preemption_info` returns the same, but waits for all workers each time. They ask while they wait for
    rows, at different times.
    """
    with _private("the watch for departing nodes"):
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info


def autoscaling_state() -> Any:
    """What the autoscaler has reported: its `AutoscalingState`.

    The public `ray.autoscaler.v2.sdk.get_cluster_status` does not say which requests can never be met.
    """
    with _private("the report on the autoscaler"):
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

        client = GcsClient(address=ray.get_runtime_context().gcs_address)
        return GetClusterStatusReply.FromString(client.get_cluster_status()).autoscaling_state


def pass_ray_address_to_train() -> None:
    """Have Ray Train pass RAY_ADDRESS to its controller and what that starts, see `placement.ray_address_for_train`."""
    with _private("freeing the slots of a killed run"):
        from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

        ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
