"""A run whose driver and workers are killed at random moments, while the Hub and the storage fail for a while.

``make chaos KILLS=20 SECONDS=120`` is the long form. The run must come to the same batches and the same weights as one
that nobody disturbs.
"""

import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from conftest import write_text
from local_s3 import serving
from runs import changed, train_workers
from transformers import AutoTokenizer

pytest_plugins = ("local_hub", "local_s3")

NUM_KILLS = int(os.environ.get("CHAOS_KILLS", "1"))
OUTAGE_SECONDS = float(os.environ.get("CHAOS_OUTAGE_SECONDS", "10"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
TEACHER = Path(__file__).parent / "fixtures" / "begun_run" / "teacher"
STEPS_PER_KILL = 40  # a kill comes up to a second after a new checkpoint: some steps must be left for the end

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200 + 240 * NUM_KILLS + 4 * OUTAGE_SECONDS)]


@pytest.fixture
def storage(bucket: Any, server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket, and the endpoint that runs have for it, which can fail; this process has another one."""
    with serving() as (flaky_s3, url):
        own = boto3.resource("s3", endpoint_url=server).Bucket("runs")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield own, flaky_s3


def settings_of(name: str) -> dict[str, Any]:
    return {
        "run": {"name": name, "storage_path": "s3://runs/chaos"},
        "teacher": {"path": "org/teacher"},
        "data": {"sources": {"hub": "org/text"}, "max_seq_length": 16, "eval_fraction": 0.1},
        "optim": {"global_batch_size": 16, "num_steps": STEPS_PER_KILL * (NUM_KILLS + 2), "learning_rate": 1e-3},
        "eval": {"every_steps": 100, "num_rows": 32},
        "checkpoint": {"every_steps": 5},
        "runtime": {"num_workers": 2, "micro_batch_size": 4, "precision": "fp32", "data_cpus": 1, "max_failures": -1},
    }


class Supervisor:
    """Starts a run's command again until it is finished, as an init system or a person would."""

    def __init__(self, name: str, bucket: Any, folder: Path, **values: Any) -> None:
        self.name, self._bucket = name, bucket
        self._config, self._log = folder / f"{name}.yaml", folder / f"{name}.log"
        self._config.write_text(yaml.safe_dump(changed(settings_of(name), **values)))
        self.ends: Counter[int] = Counter()
        self.driver: subprocess.Popen[bytes] | None = None

    def key(self, name: str) -> str:
        return f"chaos/{self.name}/{name}"

    def read(self, name: str) -> bytes:
        return bytes(self._bucket.Object(self.key(name)).get()["Body"].read())

    def newest(self) -> int:
        """Step of the newest checkpoint that is committed."""
        keys = [one.key for one in self._bucket.objects.filter(Prefix=self.key("checkpoint_"))]
        return max((int(key.split("/")[-2][-9:]) for key in keys if key.endswith("complete.json")), default=0)

    def is_finished(self) -> bool:
        return any(self._bucket.objects.filter(Prefix=self.key("finished.json")))

    def tend(self) -> None:
        """Start the command if it is not running."""
        if self.driver is not None and self.driver.poll() is not None:
            self.ends[self.driver.returncode] += 1
            self.driver = None
        if self.driver is None and not self.is_finished():
            with self._log.open("ab") as log:
                command = [sys.executable, "-m", "distil_ray.train", "--config", str(self._config)]
                self.driver = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.tend()
            time.sleep(0.1)

    def log(self) -> str:
        return self._log.read_text()


def kill(supervisor: Supervisor, target: str) -> None:
    """Kill a worker, the driver, or both; workers are waited for, as they may just be starting again."""
    assert supervisor.driver is not None
    while target != "driver":
        supervisor.tend()
        if workers := train_workers(supervisor.driver.pid):
            random.choice(workers).kill()
            break
        time.sleep(0.1)
    if target != "worker":
        supervisor.driver.kill()
        supervisor.driver.wait()


def push_text_and_teacher(hub: Any, folder: Path) -> None:
    words = [word for word in AutoTokenizer.from_pretrained(TEACHER).get_vocab() if word.isalpha()]
    for number in range(3):
        write_text(folder / f"data/train-{number}.parquet", words, num_documents=200, seed=number)
    hub.push("org/text", {f"data/{file.name}": file for file in (folder / "data").iterdir()})
    hub.push("org/teacher", {file.name: file for file in TEACHER.iterdir()}, kind="models")


def test_kills_and_outages_change_nothing(local_hub, storage, tmp_path):
    bucket, flaky_s3 = storage
    random.seed(SEED)
    push_text_and_teacher(local_hub, tmp_path)

    whole = Supervisor("whole", bucket, tmp_path)
    whole.wait_until(whole.is_finished)
    whole.wait_until(lambda: whole.driver is None)

    torn = Supervisor("torn", bucket, tmp_path)
    outages: dict[int, Any] = {NUM_KILLS // 3: local_hub, 2 * NUM_KILLS // 3: flaky_s3}
    for number in range(NUM_KILLS):
        reached = torn.newest()
        torn.wait_until(lambda: torn.newest() > reached or torn.is_finished())  # noqa: B023
        assert not torn.is_finished(), "it was faster than the kills"
        if number in outages:
            outages[number].fail(".", status=503, seconds=OUTAGE_SECONDS)
        time.sleep(random.uniform(0, 1))
        target = random.choice(["driver", "worker", "both"])
        kill(torn, target)
        print(f"killed {target} after checkpoint {torn.newest()}", flush=True)
    torn.wait_until(torn.is_finished)
    torn.wait_until(lambda: torn.driver is None)

    print(f"ends by status: {dict(torn.ends)}; resumed {torn.log().count('resuming from checkpoint_')} times")
    assert torn.read("digests.csv") == whole.read("digests.csv")
    assert torn.read("export/model.safetensors") == whole.read("export/model.safetensors")
    assert set(torn.ends) <= {0, -9, 1}  # 1: an outage at the start that lasted longer than a command waits there
    assert torn.ends[0] == 1


def test_an_outage_that_outlasts_patience_ends_a_run_after_what_was_read(local_hub, storage, tmp_path):
    bucket, _ = storage
    push_text_and_teacher(local_hub, tmp_path)
    run = Supervisor("cut", bucket, tmp_path, runtime__outage_seconds=3.0)
    local_hub.fail("GET /large/datasets", sleep=0.5)  # so that there is something left to read
    run.wait_until(lambda: run.newest() > 0)
    local_hub.heal()
    local_hub.fail(".*", status=503)

    assert run.driver is not None
    assert run.driver.wait() == 1
    end = re.search(r"did not answer for (.|\n)*Steps done: (\d+); the same command resumes from (\S+)", run.log())
    assert end, run.log()
    assert end[3] == f"checkpoint_{run.newest():09d}"
    assert int(end[2]) == run.newest() > 0
    before = run.read("digests.csv")
    assert len(before.splitlines()) == 1 + run.newest()

    local_hub.heal()
    run.wait_until(run.is_finished)
    run.wait_until(lambda: run.driver is None)
    after = run.read("digests.csv")
    assert after.startswith(before)
    assert len(after.splitlines()) == 1 + settings_of("cut")["optim"]["num_steps"]
