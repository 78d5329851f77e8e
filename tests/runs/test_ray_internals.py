"""Private interfaces of Ray that we rest on: each is as it was, or a sentence says which version is needed."""

import subprocess
import sys

import pytest
import ray
from ray.train.v2.api.preemption import PreemptionInfo

from distil_ray.errors import RunError
from distil_ray.runs import ray_internals


def test_a_worker_is_told_of_preemptions(monkeypatch):
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    preemption_context = PreemptionContext()
    worker = type("TrainContext", (), {"preemption_context": preemption_context})
    assert "preemption_context" in context.TrainContext.__annotations__
    monkeypatch.setattr(context, "_train_context", worker)
    assert ray_internals.newest_preemption() is None
    info = PreemptionInfo(deadline_ms=5, preempted_node_to_ranks={"a": [0]})
    preemption_context.preemption_info = info
    assert ray_internals.newest_preemption() == info


def test_the_autoscaler_is_asked_for_what_it_reported(ray_cluster):
    state = ray_internals.autoscaling_state()
    for name in ("pending_instances", "pending_instance_requests", "failed_instance_requests"):
        assert list(getattr(state, name)) == []
    for name in ("infeasible_resource_requests", "infeasible_gang_resource_requests"):
        assert list(getattr(state, name)) == []


def test_train_passes_on_the_address_of_ray(monkeypatch):
    from ray.train.v2._internal import constants

    monkeypatch.setattr(constants, "ENV_VARS_TO_PROPAGATE", set(constants.ENV_VARS_TO_PROPAGATE) - {"RAY_ADDRESS"})
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "RAY_ADDRESS" not in constants.get_env_vars_to_propagate()
    ray_internals.pass_ray_address_to_train()
    assert constants.get_env_vars_to_propagate()["RAY_ADDRESS"] == "10.0.0.1:6379"


def test_a_changed_ray_gives_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.constants", None)
    with pytest.raises(RunError, match=rf"does not work with Ray {ray.__version__} .*install it again with"):
        ray_internals.pass_ray_address_to_train()


def test_ray_says_nothing_of_many_processes():
    """A public setting, which Ray reads when it is imported."""
    script = (
        "import distil_ray.runs.cluster\n"
        "from ray._private.ray_logging import stdout_deduplicator as logs\n"
        "print(bool(logs.skip_re.search('WARNING: 12 PYTHON worker processes have been started on node: 1')))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "True"
