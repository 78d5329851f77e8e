"""Calls in several processes at once, each with the resources of one of a run's workers."""

from collections.abc import Callable
from typing import Any, TypeVar

import ray

from distil_ray.config import Config
from distil_ray.errors import RunError, reason_of
from distil_ray.runs.cluster import amounts, worker_places, worker_resources

Result = TypeVar("Result")

_PATIENCE_SECONDS = 300.0  # for room on a busy cluster, and for what is prepared


def call_side_by_side(
    config: Config, prepare: Callable[[], Callable[[], Result]], *, memory_bytes: float
) -> list[Result]:
    """Prepare a call in as many processes as the run has workers, or the cluster has room for; call all at once.

    Args:
        prepare: returns what is called, for its results, when all processes are prepared.
        memory_bytes: of each process.

    Raises:
        RunError: there is room for none of them, or a process fails or waits too long.
    """
    needs = worker_resources(config) | {"memory": memory_bytes}
    num_processes = min(config.runtime.max_workers, int(worker_places(needs)))
    if not num_processes:
        raise RunError(f"no node has room for {amounts(needs)}")
    options: dict[str, Any] = {"num_cpus": needs.pop("CPU"), "memory": int(needs.pop("memory")), "resources": needs}
    remote: Any = ray.remote(_Process).options(**options)
    processes = [remote.remote(prepare) for _ in range(num_processes)]
    try:
        ray.get([process.is_ready.remote() for process in processes], timeout=_PATIENCE_SECONDS)
        results: list[Result] = ray.get([process.call.remote() for process in processes], timeout=_PATIENCE_SECONDS)
    except ray.exceptions.RayError as error:
        raise RunError(reason_of(error)) from error
    finally:
        for process in processes:
            ray.kill(process)
    return results


class _Process:
    def __init__(self, prepare: Callable[[], Callable[[], Any]]) -> None:
        self._call = prepare()

    def is_ready(self) -> bool:
        return True

    def call(self) -> Any:
        return self._call()
