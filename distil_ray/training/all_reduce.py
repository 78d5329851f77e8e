"""How fast a group of workers adds up a gradient, measured with torch.distributed alone."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

_NUM_WARM_UPS, _NUM_TIMED = 2, 5
_BYTES_PER_NUMBER = 4  # gradients are fp32


@dataclass(frozen=True)
class AllReduce:
    """What a group of workers took.

    Attributes:
        num_elements: of the gradient.
        seconds: mean of one all-reduce, on the first worker.
        backend: of torch.distributed: nccl or gloo.
        network: what NCCL calls the one between its nodes, such as Socket (TCP); empty where it has not said.
    """

    num_elements: int
    num_workers: int
    num_nodes: int
    seconds: float
    backend: str
    network: str = ""

    @property
    def num_bytes(self) -> int:
        """Of the gradient."""
        return self.num_elements * _BYTES_PER_NUMBER

    @property
    def bus_bandwidth(self) -> float:
        """In bytes a second, as nccl-tests define it: ``2 (n - 1) / n * bytes / seconds`` with n workers.

        It compares with the bandwidth of the slowest link, however many workers there are
        (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
        """
        return 2 * (self.num_workers - 1) / self.num_workers * self.num_bytes / self.seconds


def measure(num_elements: int, node_rank: int, device: torch.device) -> AllReduce:
    """Time it; all workers of the default group call this at once, each with the number of its node."""
    with _nccl_log() as read_log:
        num_nodes = torch.tensor([node_rank + 1], device=device)
        dist.all_reduce(num_nodes, op=dist.ReduceOp.MAX)
        gradient = torch.zeros(num_elements, device=device)
        _seconds_each(gradient, _NUM_WARM_UPS)
        seconds = _seconds_each(gradient, _NUM_TIMED)
        network = network_in(read_log())
    return AllReduce(num_elements, dist.get_world_size(), int(num_nodes), seconds, dist.get_backend(), network)


def _seconds_each(tensor: torch.Tensor, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        dist.all_reduce(tensor)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return (time.perf_counter() - start) / count


@contextmanager
def _nccl_log() -> Iterator[Callable[[], str]]:
    """Have NCCL, which no call of torch asks for its network, write down what it chooses when it forms its group.

    The text is printed at the end: Ray keeps what a worker prints in its own logs.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nccl.log"
        file.touch()
        os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(file)}
        yield file.read_text
        sys.stdout.write(file.read_text())


def network_in(log: str) -> str:
    """The network that NCCL says it uses, in the words that 2.8 and 2.32 have for it alike; empty if none."""
    found = re.search(r"NCCL INFO Using network (.+)", log)
    return found[1].strip() if found else ""
