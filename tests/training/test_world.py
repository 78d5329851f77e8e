"""A worker's surroundings: announcements of departing nodes, and what workers pass to each other."""

import time
from types import SimpleNamespace

import pytest
import torch
from processes import run_workers

from distil_ray.training.world import LEAVE_SECONDS, PreemptionWatch, World


def of_node(name: str, seconds: float | None) -> SimpleNamespace:
    deadline = None if seconds is None else int((time.time() + seconds) * 1000)
    return SimpleNamespace(deadline_ms=deadline, preempted_node_to_ranks={name: [0]})


def test_each_announcement_is_new_once():
    told = [None]
    watch = PreemptionWatch(lambda: told[-1])
    assert not watch.is_new()
    for name in ("a", "b"):
        told.append(of_node(name, 100))
        assert [watch.is_new(), watch.is_new()] == [True, False]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(LEAVE_SECONDS + 5, False), (LEAVE_SECONDS - 1, True), (-3, True), (None, True)]
)
def test_a_node_is_used_until_shortly_before_its_end(seconds, expected):
    assert not PreemptionWatch().is_imminent()
    assert PreemptionWatch(lambda: of_node("a", seconds)).is_imminent() is expected


def shared_by(rank, world_size):
    world = World(rank, world_size, torch.device("cpu"), None, (), None)
    own = {"weight": torch.full((2, 3), rank + 1.0), "step": torch.tensor(7), "half": torch.ones(1).bfloat16()}
    return [(name, tensor.dtype, tensor.tolist()) for name, tensor in world.share(None if rank else own).items()]


@pytest.mark.parametrize("world_size", [1, 3])
def test_tensors_of_the_first_worker_are_shared(world_size):
    expected = [
        ("weight", torch.float32, [[1.0] * 3] * 2),
        ("step", torch.int64, 7),
        ("half", torch.bfloat16, [1.0]),
    ]
    assert run_workers(shared_by, world_size) == [expected] * world_size
