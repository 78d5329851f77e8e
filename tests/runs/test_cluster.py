"""What of a cluster a run needs, and how many runs it holds side by side."""

import re
import subprocess
import sys

import pytest
import ray
from google.protobuf.text_format import Parse
from ray.core.generated.autoscaler_pb2 import AutoscalingState
from runs import own_ray
from runtime_config import config

from distil_ray.errors import InputError
from distil_ray.runs import cluster
from distil_ray.runs.cluster import (
    DRIVER_CPUS,
    check_fits,
    connect,
    describe,
    has_autoscaler,
    runs_at_once,
    slots_needed,
)


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({}, {"CPU": 2.0}),
        ({"num_workers": 2, "data_cpus": 3}, {"CPU": 5.0}),
        ({"num_workers": [2, 4]}, {"CPU": 3.0}),
        ({"num_workers": 2, "use_gpu": True}, {"GPU": 2.0, "CPU": 1.0}),
        ({"num_workers": 2, "resources_per_worker": {"CPU": 3.0, "disk": 1.0}}, {"CPU": 7.0, "disk": 2.0}),
    ],
)
def test_slots(runtime, expected):
    assert slots_needed(config(**runtime)) == expected
    assert slots_needed(config(**runtime), driver_cpus=1) == expected | {"CPU": expected["CPU"] + 1}


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({}, 2),  # a worker, a data task and the little of a driver each
        ({"data_cpus": 2}, 1),
        ({"data_cpus": 4}, 1),
        ({"num_workers": 2}, 1),
        ({"num_workers": [1, 4]}, 1),
        ({"num_workers": [1, 12]}, 1),  # with fewer workers than it could have
        ({"resources_per_worker": {"CPU": 0.25}}, 4),
        ({"resources_per_worker": {"CPU": 0.25}, "num_workers": 4}, 2),
    ],
)
def test_runs_side_by_side_on_six_slots(ray_cluster, runtime, expected):
    assert runs_at_once(config(**runtime)) == expected


def test_nodes_that_carry_their_type_have_an_autoscaler_only_if_it_has_reported(ray_cluster, monkeypatch):
    """As in Kubernetes without one; `test_jobs.py` has a cluster with an autoscaler."""
    monkeypatch.setattr(cluster, "is_autoscaled", lambda labels: True)
    monkeypatch.setattr(cluster, "_AUTOSCALER_SECONDS", 1.5)

    assert not has_autoscaler()
    with pytest.raises(InputError, match="the cluster has 0 GPU"):
        check_fits(config(use_gpu=True))


def test_what_does_not_fit_is_said(ray_cluster):
    check_fits(config(num_workers=4), DRIVER_CPUS)
    with pytest.raises(
        InputError, match=r"6 workers and runtime.data_cpus = 1 need 7.01 CPU in all, with 0.01 CPU for a dri"
    ):
        check_fits(config(num_workers=6), DRIVER_CPUS)
    with pytest.raises(InputError, match=r"need 1 GPU, 1 CPU in all, the cluster has 0 GPU, 6 CPU; ask for fewer"):
        check_fits(config(use_gpu=True))


STATE = """
pending_instance_requests { ray_node_type_name: "gpu" count: 2 }
pending_instances { ray_node_type_name: "gpu" instance_id: "i-1" }
pending_instances { ray_node_type_name: "cpu" instance_id: "i-2" }
failed_instance_requests { ray_node_type_name: "gpu" count: 1 reason: "InsufficientInstanceCapacity" }
infeasible_resource_requests {
  resources_bundle { key: "CPU" value: 1 }
  label_selectors { label_constraints { label_key: "ray-subcluster" label_values: "data" } }
}
infeasible_gang_resource_requests {
  requests { resources_bundle { key: "GPU" value: 1 } resources_bundle { key: "CPU" value: 0.5 } }
  requests { resources_bundle { key: "CPU" value: 0.5 } resources_bundle { key: "GPU" value: 1 } }
}
"""


def test_nodes_that_come_fail_or_cannot_be():
    advice = "; ask for less in runtime, or raise max_workers of a node type that has it"
    assert describe(Parse(STATE, AutoscalingState())) == [
        "autoscaler: 3 × gpu is starting",
        "autoscaler: 1 × cpu is starting",
        "autoscaler: 1 × gpu could not be started: InsufficientInstanceCapacity",
        f"autoscaler: the cluster's node types cannot provide (1 CPU on nodes with ray-subcluster=data){advice}",
        f"autoscaler: the cluster's node types cannot provide 2 × (0.5 CPU, 1 GPU){advice}",
    ]


def test_an_autoscaler_without_work_is_silent():
    assert describe(AutoscalingState()) == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_said_at_once(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match=f"cannot reach a Ray cluster at '{re.escape(address)}'.*unset RAY_ADDRESS"):
        connect(1)


@pytest.mark.slow
def test_a_ray_that_is_started_here_starts_little_and_keeps_the_processes_of_tasks_without_a_slot(ray_cluster):
    """More than CPU slots: Ray would end those after a second. Meanwhile, transformers is loaded. Who asks for an actor
    is not answered by the dashboard of another Ray, `ray_cluster`."""
    script = """
import os, psutil, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import ray
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException
from distil_ray.runs.cluster import connect
print("transformers" in sys.modules)
connect(1)
print("transformers.modeling_utils" in sys.modules, bool(ray._private.worker._global_node.webui_url))
print(os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"])

@ray.remote(num_cpus=0)
def num_heaps():
    return os.environ["MALLOC_ARENA_MAX"]

print(ray.get(num_heaps.remote()))

@ray.remote(num_cpus=0)
def pid():
    time.sleep(2)
    return os.getpid()

try:
    print(get_actor("0" * 32, address=ray.get_runtime_context().gcs_address))
except RayStateApiException:
    print("nobody")

processes = ray.get([pid.remote() for _ in range(4)])
time.sleep(5)
print(all(map(psutil.pid_exists, processes)))
"""
    environment = own_ray()
    del environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"]  # of the tests
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True", "False", "0", "1", "nobody", "True"]
