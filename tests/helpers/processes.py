"""Real worker processes for tests of what several workers do together."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# A server that has these imported forks the processes, so that each starts at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["distil_ray.training.loop", "transformers.models.bert.modeling_bert"])

_TIMEOUT = timedelta(seconds=60)


def run_workers(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call ``function(rank, world_size, *arguments)`` in processes of one gloo group; return the results by rank."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(world_size, mp_context=CONTEXT) as pool:
        tasks = [
            pool.submit(_run, f"{folder}/group", function, rank, world_size, arguments) for rank in range(world_size)
        ]
        return [task.result() for task in tasks]


def _run(group_file: str, function: Callable[..., Any], rank: int, world_size: int, arguments: tuple[Any, ...]) -> Any:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    # Waits for the others, so that each process gets one task.
    dist.init_process_group(
        "gloo", init_method=f"file://{group_file}", rank=rank, world_size=world_size, timeout=_TIMEOUT
    )
    try:
        return function(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()
