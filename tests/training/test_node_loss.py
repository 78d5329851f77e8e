"""Nodes that go in the middle of a run on `[min, max]` workers, announced or not: it goes on with the others."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster
from runs import changed, command, digests, has_got_to, losses, records, wait_for

# Ray notices a dead node after 1.5 s instead of 30 s, and its first, vain attempt with the old number of workers ends
# after 5 s instead of 20 s. Ray Train learns of a drained node after 0.5 s instead of 5 s.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
}


pytestmark = pytest.mark.chaos


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


@contextmanager
def interruption_notice(seconds: int) -> Iterator[str]:
    """The instance metadata of a spot node that is to end in so many seconds; its URL."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    notice = {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.answer(200, "session-token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else "")

        def do_GET(self) -> None:
            is_known = self.headers["X-aws-ec2-metadata-token"] == "session-token"
            self.answer(200 if is_known else 401, json.dumps(notice))

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def announce_the_end(node: Any, address: str) -> str:
    """Let the watcher that runs beside Ray on a node learn that the node will end; what it said."""
    with interruption_notice(seconds=24) as url:
        watcher = ["-m", "distil_ray.drain", "--address", address, "--node-id", node.node_id, "--metadata-url", url]
        result = subprocess.run([sys.executable, *watcher], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def moved_at(output: Path) -> int | None:
    """The step at which the run has left a node, by its own words."""
    line = r"a node is leaving: step (\d+) is saved, the run continues without that node"
    found = re.search(line, output.read_text())
    return int(found[1]) if found else None


def test_nodes_that_go_change_rounding_only(reference: tuple[dict[str, Any], Path], cluster: Cluster, tmp_path: Path):
    settings, expected = reference
    refuse_workers_larger_than_a_node(settings, cluster, tmp_path)
    folder = Path(settings["run"]["storage_path"]) / "nodes_lost"
    elastic = changed(
        settings,
        run__name="nodes_lost",
        runtime__num_workers=[1, 2],
        runtime__resources_per_worker={"CPU": 1, "trainer": 1},
    )
    arguments, environment = command(elastic, tmp_path, cluster.address)
    first, second = list(cluster.worker_nodes)
    with (tmp_path / "output.txt").open("w+") as output:
        driver = subprocess.Popen(arguments, env=environment | IMPATIENT, stdout=output)
        wait_for(lambda: has_got_to(folder, 4))
        assert "seconds are left" in announce_the_end(first, cluster.address)
        wait_for(lambda: moved_at(tmp_path / "output.txt") is not None)
        cluster.remove_node(first)
        wait_for(lambda: has_got_to(folder, 4 + moved_at(tmp_path / "output.txt")))
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"trainer": 1})
        assert driver.wait(timeout=240) == 0, (tmp_path / "output.txt").read_text()
    said = (tmp_path / "output.txt").read_text()

    assert "resuming from checkpoint_" in said
    assert "finished: the student is in" in said
    assert records(folder)[-1]["run/restarts"] == 1  # moving is none: nothing is done twice
    assert digests(folder) == digests(expected)
    np.testing.assert_allclose(losses(folder), losses(expected), atol=1e-4)
