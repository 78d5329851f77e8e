"""A cluster as `ray up` makes one, with nodes on this machine: autoscaled, labelled, behind a token; and jobs on it."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from runs import changed, digests, wait_for

ROOT = Path(__file__).parents[2]
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # as Ray's provider has them
_STORE = {"object_store_memory": 200_000_000}


pytestmark = pytest.mark.slow

NUM_STEPS = 150  # of a job: far more than are done while `ray job stop` starts


class Head(NamedTuple):
    """A running cluster: the dashboard's address, and the environment of a command with its token."""

    url: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def autoscaling(gcs_port: int) -> dict[str, Any]:
    """Node types as in cluster/aws.yaml, from Ray's provider of nodes that are processes of this machine."""
    types = {
        HEAD_TYPE: {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 2} | _STORE, "labels": {"ray-subcluster": "data"}, "max_workers": 1},
        "gpu": {"resources": {"CPU": 2, "trainer": 2} | _STORE, "labels": {"role": "training"}, "max_workers": 1},
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "here",
        "max_workers": 2,
        "idle_timeout_minutes": 0.25,
        "upscaling_speed": 100.0,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": f"127.0.0.1:{gcs_port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {name: {"node_config": {}, "min_workers": 0} | one for name, one in types.items()},
        "head_node_type": HEAD_TYPE,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
    } | {f"{name}_commands": [] for name in commands}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head without slots that may start a node of two types each. In a short path: sockets lie below it."""
    folder = Path("/tmp") / f"dr-{secrets.token_hex(3)}"
    folder.mkdir()
    token, gcs_port, dashboard_port = folder / "token", free_port(), free_port()
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    (folder / "autoscaling.yaml").write_text(yaml.safe_dump(autoscaling(gcs_port)))
    url = f"http://127.0.0.1:{dashboard_port}"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    outside |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_API_SERVER_ADDRESS": url}
    inside = outside | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    command = f"ray start --head --port={gcs_port} --dashboard-port={dashboard_port} --dashboard-host=127.0.0.1"
    command += f" --autoscaling-config={folder}/autoscaling.yaml --temp-dir={folder} --disable-usage-stats"
    command += f" --dashboard-agent-listen-port={free_port()} --num-cpus=0 --object-store-memory=200000000"
    of_the_head = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
        "RAY_enable_autoscaler_v2": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }
    subprocess.run(command.split(), env=inside | of_the_head, check=True, capture_output=True, timeout=60)
    yield Head(url, inside)
    subprocess.run(["pkill", "-9", "-f", f"{folder}/"], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def ray(head: Head, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ray's command line, where the project is checked out."""
    return subprocess.run(
        ["ray", *arguments], cwd=ROOT, env=head.environment | environment, capture_output=True, text=True, timeout=240
    )


def submit(head: Head, name: str, *arguments: str) -> None:
    """Submit a job as the README says."""
    job = ("job", "submit", "--submission-id", name, "--working-dir", ".", "--no-wait", "--")

    def is_taken() -> bool:
        submitted = ray(head, *job, "python", "-m", "distil_ray.train", *arguments)
        assert submitted.returncode == 0 or "No available agent" in submitted.stderr, submitted.stderr
        return submitted.returncode == 0

    wait_for(is_taken)  # the head takes jobs some seconds after it has started


def fetch(head: Head, path: str) -> Any:
    """What the dashboard answers to somebody with the token."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head.url}/api/{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def listed(head: Head, kind: str) -> list[dict[str, Any]]:
    answer = fetch(head, f"v0/{kind}?detail=1&limit=10000")
    return list(answer["data"]["result"]["result"])


def end_of(head: Head, name: str) -> str:
    """How a job ended, when it has."""
    wait_for(lambda: fetch(head, f"jobs/{name}")["status"] not in ("PENDING", "RUNNING"))
    return str(fetch(head, f"jobs/{name}")["status"])


def log_of(head: Head, name: str) -> str:
    return str(fetch(head, f"jobs/{name}/logs")["logs"])


def roles(head: Head, *, with_dead: bool = False) -> dict[str, str]:
    """What each node is for, by its id."""
    found = [node for node in listed(head, "nodes") if with_dead or node["state"] == "ALIVE"]
    return {node["node_id"]: node["labels"].get("role", node["labels"].get("ray-subcluster", "head")) for node in found}


def test_without_the_token_no_job_is_taken(head):
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = ray(head, "job", "submit", "--", "true", **environment)
        assert refused.returncode != 0
        assert re.search("401|403|[Uu]nauth|[Ff]orbidden|authentication", refused.stderr + refused.stdout)
    assert fetch(head, "jobs/") == []


def test_a_job_with_a_bad_configuration_fails(head):
    submit(head, "bad", "run.name=bad", "optim.learning_rat=1")

    assert end_of(head, "bad") == "FAILED"
    assert "did you mean optim.learning_rate?" in log_of(head, "bad")


def test_a_job_gets_its_nodes_is_stopped_and_goes_on_and_the_nodes_leave(reference, head, tmp_path):
    settings, expected = reference
    settings = changed(
        settings,
        run__name="job",
        teacher__path=str(expected / "export"),
        optim__num_steps=NUM_STEPS,
        eval__every_steps=NUM_STEPS,
        checkpoint__every_steps=NUM_STEPS,  # none but that of the stop
        runtime__resources_per_worker={"CPU": 1, "trainer": 1},
        runtime__data_label={"ray-subcluster": "data"},
    )
    del settings["student"], settings["distill"]
    folder = Path(settings["run"]["storage_path"]) / "job"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    assert list(roles(head).values()) == ["head"]

    submit(head, "first", "--config", str(tmp_path / "job.yaml"))
    wait_for(lambda: "\nstep     10 " in log_of(head, "first"))
    there = roles(head)
    assert ray(head, "job", "stop", "first").returncode == 0

    assert end_of(head, "first") == "STOPPED"
    (checkpoint,) = folder.glob("checkpoint_*")
    stopped_at = int(checkpoint.name[-9:])
    assert 10 <= stopped_at < NUM_STEPS
    assert (checkpoint / "complete.json").exists()
    log = log_of(head, "first")
    assert f"stopped: step {stopped_at} is saved; the same command resumes from {checkpoint.name} (SIGTERM)" in log
    assert (
        "waits for an autoscaler: runtime.num_workers: 2 workers and runtime.data_cpus = 2 need 4 CPU, 2 trainer" in log
    )
    assert "autoscaler: 1 × gpu is starting" in log or "autoscaler: 1 × cpu is starting" in log

    assert sorted(there.values()) == ["data", "head", "training"]
    ever = roles(head, with_dead=True)  # a node that was idle for a while may have gone and come again
    workers = [actor for actor in listed(head, "actors") if actor["class_name"] == "RayTrainWorker"]
    assert [ever[worker["node_id"]] for worker in workers] == ["training", "training"]
    tasks = [task for task in listed(head, "tasks") if re.search("make_group|make_unit|Repartition", task["name"])]
    assert {ever[task["node_id"]] for task in tasks if task["node_id"]} == {"data"}

    other = ("num_workers=1", "micro_batch_size=8", "data_cpus=1")
    submit(head, "second", "--config", str(tmp_path / "job.yaml"), *(f"runtime.{setting}" for setting in other))

    assert end_of(head, "second") == "SUCCEEDED"
    assert json.loads((folder / "export" / "config.json").read_text())["n_layers"] == 1
    assert digests(folder).startswith(digests(expected))
    restarts = [json.loads(line) for line in (folder / "restarts.jsonl").read_text().splitlines()]
    assert [restart["step"] for restart in restarts] == [stopped_at]
    wait_for(lambda: list(roles(head).values()) == ["head"])
