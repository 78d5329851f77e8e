"""A node that dies in the middle of a run on `[min, max]` workers: the run goes on with those that are left."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster
from runs import changed, command, digests, has_got_to, losses, records, wait_for

# Ray notices a dead node after 1.5 s instead of 30 s, and its first, vain attempt with the old number of workers ends
# after 10 s instead of 60 s.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}


def refuse_workers_larger_than_a_node(settings: dict[str, Any], cluster: Cluster, tmp_path: Path) -> None:
    """The nodes have 2 + 1 + 1 slots, enough for two workers of 1.5 and a data task together, but not one by one."""
    large = changed(settings, run__name="large", runtime__resources_per_worker={"CPU": 1.5}, runtime__data_cpus=1)
    arguments, environment = command(large, tmp_path / "large", cluster.address)
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)

    assert result.returncode == 2
    assert "the cluster's nodes have room for 1 workers of 1.5 CPU each, and 2 are asked for" in result.stderr


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with slots for the data tasks, and two nodes with room for one training worker each."""
    for name, value in IMPATIENT.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, resources={"trainer": 1})
    yield cluster
    cluster.shutdown()


def test_the_loss_of_a_node_changes_rounding_only(
    reference: tuple[dict[str, Any], Path], cluster: Cluster, tmp_path: Path
):
    settings, expected = reference
    refuse_workers_larger_than_a_node(settings, cluster, tmp_path)
    folder = Path(settings["run"]["storage_path"]) / "node_lost"
    elastic = changed(
        settings,
        run__name="node_lost",
        runtime__num_workers=[1, 2],
        runtime__resources_per_worker={"CPU": 1, "trainer": 1},
    )
    arguments, environment = command(elastic, tmp_path, cluster.address)
    driver = subprocess.Popen(arguments, env=environment | IMPATIENT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: has_got_to(folder, 12))
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    output, _ = driver.communicate(timeout=240)

    assert driver.returncode == 0, output
    assert "resuming from checkpoint_" in output
    assert "finished: the student is in" in output
    assert records(folder)[-1]["run/restarts"] >= 1
    assert digests(folder) == digests(expected)
    np.testing.assert_allclose(losses(folder), losses(expected), atol=1e-4)
