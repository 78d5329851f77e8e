"""Trackers get every figure once, whatever happens to the run, and whatever happens to them the run goes on."""

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import ClassVar

import pytest
from wandb_files import wandb_records

from distil_ray.commands import ablate, train, tune
from distil_ray.config import learned, parse_config, to_yaml
from distil_ray.errors import InputError, RunError, Stopped
from distil_ray.runs import trackers
from distil_ray.runs.storage import RunFolder
from distil_ray.runs.trackers import check_trackers, conclude, tracking


def config_of(tmp_path, *names, **data):
    return parse_config(
        {
            "run": {"name": "small", "storage_path": str(tmp_path / "runs")},
            "teacher": {"path": "org/teacher"},
            "data": {"sources": "https://me:secret@host/a.parquet"} | data,
            "optim": {"num_steps": 50},
            "metrics": {"trackers": list(names)},
        }
    )


class Run:
    """A run's folder, and what its driver hears of it."""

    def __init__(self, tmp_path, *names):
        self.config = config_of(tmp_path, *names)
        self.folder = RunFolder(self.config.run.storage_path, self.config.run.name)
        self.folder.check_writable()
        self.lines = []
        self.records = []

    def tracking(self):
        return tracking(self.config, self.folder, self.lines.append, "study")

    def write(self, *steps):
        """Have these steps at the end of metrics.jsonl, after what was there below them; return the events of them."""
        self.records = [record for record in self.records if record["step"] < steps[0]]
        events = []
        for step in steps:
            previous = self.records[-1]["step"] if self.records else -1
            self.records.append(record_of(step))
            events.append(self.records[-1] | {"previous_step": previous, "eta_seconds": 1.0})
        self.folder.write_text("metrics.jsonl", "".join(json.dumps(record) + "\n" for record in self.records))
        return events

    def end_with(self, error, *steps):
        """Have a driver hear of these steps and then end with an error."""
        with suppress(type(error)), self.tracking() as followers:
            for event in self.write(*steps):
                followers.offer(event)
            raise error

    def finish(self):
        last = {name: value for name, value in self.records[-1].items() if name.startswith("train/")}
        self.folder.write_json("finished.json", {"step": self.records[-1]["step"]} | last)


def record_of(step):
    return {
        "step": step,
        "time": 1.7e9 + step,
        "train/loss": 8.0 / (step + 8),
        "train/grad_norm": None,
        "data/digest": "ff",
        "run/progress": step / 50,
    }


LOSSES = {step: 8.0 / (step + 8) for step in range(0, 60, 10)}


class Memory:
    """A tracker that keeps what it gets, by id; it can fail and hang."""

    runs: ClassVar[dict[str, list]] = {}
    states: ClassVar[list[tuple[str, dict]]] = []
    problem = staticmethod(lambda: None)
    place = "here"

    def begin(self, run, known_id):
        self.run_id = known_id or f"id{len(self.runs)}"
        self.runs.setdefault(self.run_id, [])
        self.run = run
        return self.run_id, None

    def log(self, records):
        Memory.problem()
        self.runs[self.run_id] += [record["step"] for record in records]

    def end(self, state, final):
        self.states.append((state, final))


@pytest.fixture
def memory(monkeypatch):
    for name, value in (("runs", {}), ("states", []), ("problem", staticmethod(lambda: None))):
        monkeypatch.setattr(Memory, name, value)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Memory)
    return Memory


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The shell


def test_figures_arrive_while_the_run_goes_on(memory, tmp_path):
    run = Run(tmp_path, "mlflow")
    with run.tracking() as followers:
        for event in run.write(0, 10, 20):
            followers.offer(event)
        wait_for(lambda: memory.runs == {"id0": [0, 10, 20]})
        run.finish()
    assert memory.states == [("finished", {"step": 20, "train/loss": LOSSES[20], "train/grad_norm": None})]
    assert run.lines == ["tracker mlflow: here"]
    assert run.folder.read_json("trackers/mlflow.json") == {"id": "id0", "step": 20, "ended": "finished"}


def test_records_come_out_of_the_events_that_the_console_prints(memory, tmp_path):
    class Events:
        def get(self, *, timeout):
            return items.pop(0)

    run = Run(tmp_path, "mlflow")
    [event] = run.write(0)
    items = [("line", "hello"), ("record", event)]
    with run.tracking() as followers:
        watched = followers.watching(Events())
        assert [watched.get(timeout=1.0) for _ in range(2)] == [("line", "hello"), ("record", event)]
        wait_for(lambda: memory.runs == {"id0": [0]})
        run.finish()


def test_a_resumed_run_goes_on_where_it_was_and_repeats_nothing(memory, tmp_path):
    run = Run(tmp_path, "mlflow")
    run.end_with(Stopped(15, "step 20 is saved"), 0, 10, 20, 30)
    run.end_with(RunError("a worker was lost"), 30, 40)  # from the checkpoint of step 20
    with run.tracking() as followers:  # without a checkpoint, from the start
        for event in run.write(0, 10, 20, 30, 40, 50):
            followers.offer(event)
        run.finish()
    assert memory.runs == {"id0": [0, 10, 20, 30, 40, 50]}
    assert [state for state, _ in memory.states] == ["stopped", "failed", "finished"]


def test_what_was_written_without_a_driver_is_caught_up(memory, tmp_path):
    run = Run(tmp_path, "mlflow")
    run.end_with(KeyboardInterrupt(), 0, 10)
    run.write(20, 30)
    with run.tracking():
        wait_for(lambda: memory.runs == {"id0": [0, 10, 20, 30]})
        run.write(40)
        run.finish()
    assert memory.runs == {"id0": [0, 10, 20, 30, 40]}


def test_a_record_waits_for_one_before_it_that_was_lost(memory, tmp_path):
    run = Run(tmp_path, "mlflow")
    with run.tracking() as followers:
        [first] = run.write(0)
        followers.offer(first)
        wait_for(lambda: memory.runs == {"id0": [0]})
        _, _, *later = run.write(10, 20, 30)
        content = run.folder.read_bytes("metrics.jsonl")
        run.write(10)  # as on remote storage, where the file follows with the next checkpoint
        followers.offer(later[0])
        wait_for(lambda: memory.runs == {"id0": [0, 10]})
        run.folder.write_bytes("metrics.jsonl", content)
        followers.offer(later[0])
        wait_for(lambda: memory.runs == {"id0": [0, 10, 20, 30]})
        run.finish()


def test_a_tracker_that_fails_costs_a_line_and_catches_up(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_RETRY_SECONDS", 0.0)
    outage = [ConnectionError("no route to the server")] * 3

    def problem():
        if outage:
            raise outage.pop()

    monkeypatch.setattr(Memory, "problem", staticmethod(problem))
    run = Run(tmp_path, "mlflow")
    with run.tracking() as followers:
        for event in run.write(0, 10, 20, 30, 40):
            followers.offer(event)
        wait_for(lambda: memory.runs == {"id0": [0, 10, 20, 30, 40]})
        run.finish()
    assert run.lines == ["tracker mlflow: here", "tracker mlflow: no route to the server; the run goes on"]


def test_a_tracker_that_fails_to_the_end_says_what_it_has(memory, tmp_path, monkeypatch):
    def problem():
        raise ConnectionError("no route")

    run = Run(tmp_path, "mlflow")
    with run.tracking() as followers:
        followers.offer(run.write(0)[0])
        wait_for(lambda: memory.runs == {"id0": [0]})
        monkeypatch.setattr(Memory, "problem", staticmethod(problem))
        run.write(10)
        run.finish()
    assert run.lines[1:] == ["tracker mlflow: no route; it has the steps up to 0"]


def test_a_tracker_that_hangs_is_left_behind(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_END_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "_MAX_WAITING", 2)
    released = threading.Event()
    monkeypatch.setattr(Memory, "problem", staticmethod(released.wait))
    run = Run(tmp_path, "mlflow")
    began = time.monotonic()
    with run.tracking() as followers:
        for event in run.write(0, 10, 20, 30, 40):
            followers.offer(event)
        run.finish()
    assert time.monotonic() - began < 20
    assert run.lines[-1:] == ["tracker mlflow: has not ended within 0 s and is left behind"]
    released.set()


def test_a_damaged_note_is_a_failure_of_the_tracker_alone(memory, tmp_path):
    run = Run(tmp_path, "mlflow")
    run.folder.write_text("trackers/mlflow.json", "{")
    with run.tracking():
        wait_for(lambda: run.lines)
        run.write(0)
        run.finish()
    assert all("trackers/mlflow.json is damaged" in line for line in run.lines)
    assert memory.runs == {}


def test_a_run_that_was_killed_with_its_driver_is_concluded_once(memory, tmp_path):
    run = Run(tmp_path, "mlflow")
    run.folder.write_json("trackers/mlflow.json", {"id": "id0", "step": 10, "ended": None})
    run.write(0, 10, 20)
    unknown = Run(tmp_path / "other", "mlflow")
    unknown.write(0)
    for _ in range(2):
        conclude([(one.config, one.folder) for one in (run, unknown)], run.lines.append, "study")
    assert memory.runs == {"id0": [20]}
    assert memory.states == [("stopped", {})]
    assert run.lines == ["small  tracker mlflow: here"]


def test_without_trackers_nothing_is_started(tmp_path):
    run, events = Run(tmp_path), object()
    num_threads = threading.active_count()
    with run.tracking() as followers:
        assert followers.watching(events) is events
        assert threading.active_count() == num_threads
    assert not run.folder.exists("trackers")


# Configuration


def test_trackers_are_no_part_of_what_is_learned(tmp_path):
    assert learned(config_of(tmp_path)) == learned(config_of(tmp_path, "tensorboard", "wandb"))
    assert parse_config(_sections(tmp_path)).metrics.trackers == ("tensorboard",)


def _sections(tmp_path):
    return config_of(tmp_path).model_dump(mode="json", exclude={"metrics"})


@pytest.mark.parametrize("given", [["wandb", "wandb"], ["comet"], "wandb"])
def test_other_trackers_and_the_same_twice_are_refused(given, tmp_path):
    with pytest.raises(InputError, match=r"metrics\.trackers"):
        parse_config(_sections(tmp_path) | {"metrics": {"trackers": given}})


def test_a_missing_package_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    config = config_of(tmp_path, "wandb", "tensorboard", "trackio")
    expected = (
        "metrics.trackers: given wandb and trackio without the packages for it; expected pip install "
        "'distil-ray[wandb,trackio]' where the command runs"
    )
    with pytest.raises(InputError) as caught:
        check_trackers(config)
    assert str(caught.value).startswith(expected)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    search = ["search.space={distill.temperature: {uniform: [1, 4]}}", "eval.every_steps=5"]
    ablation = ["ablation.variants={a: {}, b: {distill.alpha_ce: 0.0}}"]
    for command, more in ((train, []), (train, ["--dry-run"]), (tune, search), (ablate, ablation)):
        assert command.main(["--config", str(file), *more]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# The trackers themselves


@pytest.fixture
def patient(monkeypatch):
    """Libraries are slow to load on a machine with much to do."""
    monkeypatch.setattr(trackers, "_END_SECONDS", 400.0)


def interrupted_and_resumed(tmp_path, name):
    """A run of two drivers, of which the second does step 30 again."""
    run = Run(tmp_path, name)
    run.end_with(Stopped(15, "step 20 is saved"), 0, 10, 20, 30)
    first = run.folder.read_json(f"trackers/{name}.json")
    with run.tracking() as followers:
        for event in run.write(30, 40, 50):
            followers.offer(event)
        run.finish()
    last = run.folder.read_json(f"trackers/{name}.json")
    assert (first["step"], last["step"]) == (30, 50)
    assert first["id"] == last["id"]
    assert len(run.lines) == 2, run.lines  # where it is, twice
    return last["id"]


@pytest.mark.usefixtures("patient")
def test_wandb_has_each_figure_once_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_id = interrupted_and_resumed(tmp_path, "wandb")
    files = sorted((tmp_path / "runs" / "small" / "wandb").glob(f"offline-run-*-{run_id}*/*.wandb"))
    assert len(files) == 2
    contents = [list(wandb_records(file)) for file in files]
    records = [one for content in contents for one in content]
    described = [content for kind, content in records if kind == "run"]
    assert {(one.run_id, one.project, one.display_name, one.run_group) for one in described} == {
        (run_id, "distil_ray", "small", "study")
    }
    settings = {update.key: json.loads(update.value_json) for update in described[0].config.update}
    assert settings["optim"]["num_steps"] == 50
    assert settings["data"]["sources"][0]["path"] == "https://host/a.parquet"
    history = [_items(content.item) for kind, content in records if kind == "history"]
    assert [item["_step"] for item in history] == [*LOSSES]
    assert {item["_step"]: item["train/loss"] for item in history} == LOSSES
    assert "train/grad_norm" not in history[0]
    for content, state, code in zip(contents, ("stopped", "finished"), (130, 0), strict=True):
        summary = {}
        for kind, one in content:
            summary |= _items(one.update) if kind == "summary" else {}
        assert summary["run/state"] == state
        assert [one.exit_code for kind, one in content if kind == "exit"] == [code]
    assert summary["train/loss"] == LOSSES[50]


def _items(items):
    return {item.key or item.nested_key[-1]: json.loads(item.value_json) for item in items}


WITHOUT_KEY = """
import sys
from distil_ray.runs.trackers import Wandb, TrackedRun
try:
    Wandb().begin(TrackedRun("a", None, {}, sys.argv[1]), None)
except RuntimeError as error:
    print(error)
"""


def test_without_a_key_wandb_fails_and_asks_nothing(tmp_path):
    pytest.importorskip("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = kept | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    own, other = pty.openpty()  # where a question would wait for an answer
    try:
        process = subprocess.run(
            [sys.executable, "-c", WITHOUT_KEY, str(tmp_path)],
            stdin=other,
            stdout=subprocess.PIPE,
            stderr=other,
            env=environment,
            text=True,
            timeout=400,
        )
    finally:
        os.close(own)
        os.close(other)
    assert process.stdout == "there is no API key: set WANDB_API_KEY, or WANDB_MODE=offline\n"


@pytest.mark.usefixtures("patient")
def test_mlflow_has_each_figure_once_under_one_id(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run_id = interrupted_and_resumed(tmp_path, "mlflow")
    client = mlflow.MlflowClient()
    found = client.get_run(run_id)
    assert found.info.run_name == "small"
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "distil_ray"
    assert len(client.search_runs([found.info.experiment_id])) == 1
    assert found.data.tags["distil_ray.group"] == "study"
    assert found.data.params["optim.num_steps"] == "50"
    assert "secret" not in found.data.params["data.sources"]
    assert found.data.metrics["train/loss"] == LOSSES[50]
    assert "train/grad_norm" not in found.data.metrics
    history = client.get_metric_history(run_id, "train/loss")
    assert Counter(metric.step for metric in history) == Counter([*LOSSES])
    assert {metric.step: metric.value for metric in history} == LOSSES
    assert history[0].timestamp == 1_700_000_000_000


@pytest.mark.usefixtures("patient")
def test_mlflow_takes_changed_settings_on_resume_and_its_own_names(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run = Run(tmp_path, "mlflow")
    for every_steps in (10, 20):
        metrics = run.config.metrics.model_copy(update={"every_steps": every_steps})
        run.config = run.config.model_copy(update={"metrics": metrics})
        run.end_with(RunError(""), 0)
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert found.data.params["metrics.every_steps"] == "10"
    assert found.info.status == "FAILED"
    assert len(run.lines) == 2


@pytest.mark.usefixtures("patient")
def test_trackio_has_each_figure_once_under_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    from trackio.sqlite_storage import SQLiteStorage

    name = interrupted_and_resumed(tmp_path, "trackio")
    assert name.startswith("small-")
    project = "mine"
    assert SQLiteStorage.get_runs(project) == [name]
    logs = SQLiteStorage.get_logs(project, name)
    assert {log["step"]: log["train/loss"] for log in logs} == LOSSES
    assert len(logs) == len(LOSSES)
    settings = SQLiteStorage.get_run_config(project, name)
    assert settings["optim"]["num_steps"] == 50
    assert settings["_Group"] == "study"
    titles = [alert["title"] for alert in SQLiteStorage.get_alerts(project, name)]
    assert sorted(titles) == ["run finished", "run stopped"]
