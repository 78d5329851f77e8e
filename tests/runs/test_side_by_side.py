"""Calls in processes with a worker's resources: at once, and what keeps them from being made."""

import os
import time

import pytest
from runtime_config import config

from distil_ray.errors import RunError
from distil_ray.runs.side_by_side import call_side_by_side

pytestmark = pytest.mark.usefixtures("ray_cluster")

MEMORY = 1e6


@pytest.fixture
def prepare():
    def prepared():  # local, so that it is sent by value
        at = time.time()

        def call():
            called = time.time()
            time.sleep(0.5)
            return os.getpid(), at, called

        return call

    return prepared


def test_all_are_called_once_all_are_prepared(prepare):
    results = call_side_by_side(config(num_workers=2), prepare, memory_bytes=MEMORY)
    pids, prepared, called = zip(*results, strict=True)
    assert len(set(pids)) == 2
    assert max(prepared) <= min(called)
    assert max(called) - min(called) < 0.5  # they overlap


def test_no_more_than_there_is_room_for(prepare):
    many = config(num_workers=4, resources_per_worker={"CPU": 3})
    assert len(call_side_by_side(many, prepare, memory_bytes=MEMORY)) == 2


@pytest.mark.parametrize(
    ("runtime", "memory_bytes"), [({"resources_per_worker": {"disk": 1}}, MEMORY), ({"num_workers": 2}, 1e15)]
)
def test_without_room_it_is_said(prepare, runtime, memory_bytes):
    with pytest.raises(RunError, match=r"no node has room for 1 CPU, .*memory"):
        call_side_by_side(config(**runtime), prepare, memory_bytes=memory_bytes)


def test_what_fails_is_said():
    def fails():
        raise ValueError("of no use")

    with pytest.raises(RunError, match="of no use"):
        call_side_by_side(config(), fails, memory_bytes=MEMORY)
