"""`python -m distil_ray.tune` for real: killed, typed again, trials stopped; retried and failed without Ray."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from conftest import tiny_settings
from mlflow import MlflowClient
from runs import changed, digests, has_got_to, own_ray, records, train_workers, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import distil_ray
from distil_ray.commands import report, train, tune
from distil_ray.config import load_config
from distil_ray.errors import RunError
from distil_ray.studies import tuner
from distil_ray.studies.display import SearchDisplay
from distil_ray.studies.settings import plan_of
from distil_ray.studies.trials import Trials

NUM_STEPS = 100
SPACE = {"optim.learning_rate": {"grid": [1e-6, 3e-3]}}  # it lags behind, it is the best


@pytest.fixture(scope="module")
def search_settings(corpus, tokenizer_folder, tmp_path_factory) -> dict[str, Any]:
    """A search for the learning rate of a tiny model, which distils nothing and is quick."""
    settings = changed(
        tiny_settings(corpus, tokenizer_folder, tmp_path_factory.mktemp("search")),
        run__name="search",
        optim__num_steps=NUM_STEPS,
        optim__warmup_fraction=0.0,
        optim__learning_rate=1e-4,
        eval__every_steps=NUM_STEPS // 4,
        checkpoint__every_steps=20,
        metrics__every_steps=1,
        runtime__num_workers=1,
        runtime__max_failures=0,
        metrics__trackers=["tensorboard", "mlflow"],
    )
    return settings | {"search": {"space": SPACE, "searcher": "random", "max_concurrent": 1}}


def started(settings: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    """On a Ray of its own, beside that of the tests."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.yaml").write_text(yaml.safe_dump(settings))
    environment = own_ray()
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{settings['run']['storage_path']}/mlflow.db"
    return subprocess.Popen(
        [sys.executable, "-m", "distil_ray.tune", "--config", str(folder / "search.yaml")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def searched(search_settings, ray_cluster, tmp_path_factory) -> tuple[Path, str]:
    """A search whose driver was killed: its folder and what it said."""
    folder = Path(search_settings["run"]["storage_path"]) / "search"
    at = tmp_path_factory.mktemp("config")
    first = started(changed(search_settings, search__num_trials=1), at)  # the second has more of them
    wait_for(lambda: has_got_to(folder / "trials/trial-000", 40) or first.poll() is not None)
    first.kill()
    first.communicate()
    assert [entry["status"] for entry in json.loads((folder / "trials.json").read_text())["trials"]] == ["open"]
    wait_for(lambda: not train_workers())  # Ray ends what the driver had started

    second = started(search_settings, at)
    output, errors = second.communicate()
    assert second.returncode == 0, output + errors
    assert "Traceback" not in errors
    return folder, output


def told(output: str, trial: str) -> list[str]:
    return [line.removeprefix(trial).strip() for line in output.splitlines() if line.startswith(f"{trial}  ")]


@pytest.mark.timeout(900)  # four starts of a run
@pytest.mark.slow
def test_the_search_goes_on_and_each_trial_ends_in_its_own_way(searched):
    _folder, output = searched

    assert "0 of 3 trials are done, 1 at a time" in output  # it had one trial, which was not done
    first, lagging, fast = (told(output, f"trial-00{i}") for i in range(3))
    assert first[0].endswith(": the unchanged settings (learning_rate 0.0001)")
    assert any(line.startswith("resuming from checkpoint_") for line in first)
    assert any(line.startswith("finished: eval/mlm_loss ") for line in first)
    assert any(line.startswith("stopped early at step 25:") for line in lagging)
    assert any(line.startswith("finished: eval/mlm_loss ") for line in fast)


@pytest.mark.slow
def test_no_trial_is_lost_or_run_twice(searched):
    folder, _ = searched
    trials = json.loads((folder / "trials.json").read_text())["trials"]

    assert [trial["status"] for trial in trials] == ["finished", "stopped", "finished"]
    assert sorted(path.name for path in (folder / "trials").iterdir()) == [trial["name"] for trial in trials]
    for name, restarts in {"trial-000": 1, "trial-002": 0}.items():
        assert [record["step"] for record in records(folder / "trials" / name) if "eval/mlm_loss" in record] == [
            *range(0, NUM_STEPS + 1, NUM_STEPS // 4)
        ]
        file = folder / "trials" / name / "restarts.jsonl"
        assert (len(file.read_text().splitlines()) if file.exists() else 0) == restarts


@pytest.mark.slow
def test_all_trials_learn_from_the_same_batches(searched):
    folder, output = searched
    first, lagging, fast = (digests(folder / f"trials/trial-00{i}").splitlines() for i in range(3))

    assert len(first) == 1 + NUM_STEPS
    assert fast == first
    assert 25 < len(lagging) < NUM_STEPS  # given up early
    assert lagging == first[: len(lagging)]
    assert f"on the same batches in the same order: up to {NUM_STEPS} steps of equal digests." in output


@pytest.mark.slow
def test_what_a_search_leaves_behind(searched):
    folder, output = searched
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(folder / "trials.parquet")

    assert [row["status"] for row in rows] == ["finished", "stopped", "finished"]
    assert [float(row["optim.learning_rate"]) for row in rows] == [1e-4, 1e-6, 3e-3]
    assert table["optim.learning_rate"].to_pylist() == [1e-4, 1e-6, 3e-3]
    finals = [records(folder / f"trials/trial-00{i}")[-1]["eval/mlm_loss"] for i in (0, 2)]
    assert [float(rows[i]["objective"]) for i in (0, 2)] == finals
    assert finals[1] < finals[0]
    assert f"is lower by {finals[0] - finals[1]:.4f}" in output
    assert not (folder / "tune").exists()
    assert all((folder / f"report{suffix}").exists() for suffix in (".json", ".html", ".md"))
    for text in (
        "3 of 3 trials: 2 finished, 1 stopped early.",
        "Best: trial-002",
        "report.json, .html, .md",
        "best.yaml",
    ):
        assert text in output


@pytest.mark.slow
def test_hparams_stand_beside_the_curves(searched):
    folder, _ = searched
    board = EventAccumulator(str(folder / "trials/trial-002/tensorboard")).Reload()

    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(board.summary_metadata)
    start = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optim.learning_rate" in start
    assert [event.step for event in board.Scalars("eval/mlm_loss")][-1] == NUM_STEPS


@pytest.mark.slow
def test_typed_again_nothing_is_repeated(searched, search_settings, ray_cluster, tmp_path, capsys):
    folder, output = searched
    before = {path: path.stat().st_mtime_ns for path in (folder / "trials").rglob("*")}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search_settings))

    assert tune.main(["--config", str(tmp_path / "search.yaml")]) == 0

    assert {path: path.stat().st_mtime_ns for path in (folder / "trials").rglob("*")} == before
    again = capsys.readouterr().out.splitlines()
    assert set(again) - set(output.splitlines()) == set()


@pytest.mark.slow
def test_from_python_the_same_search_gives_its_best(searched, search_settings, ray_cluster):
    folder, _ = searched

    tuned = distil_ray.tune(search_settings)

    assert tuned.folder == str(folder)
    assert Path(tuned.report).exists()
    assert tuned.metric == "eval/mlm_loss"
    assert tuned.settings["optim.learning_rate"] == 3e-3
    assert tuned.config == load_config([f"{folder}/best.yaml"])
    assert tuned.value == records(folder / "trials" / "trial-002")[-1]["eval/mlm_loss"]
    assert ray.is_initialized()


@pytest.mark.slow
def test_the_best_configuration_is_taken_as_it_is(searched, ray_cluster, capsys):
    folder, _ = searched
    config = load_config([str(folder / "best.yaml")], [])
    assert (config.run.name, config.run.storage_path) == ("search-best", str(folder.parent))
    assert config.optim.learning_rate == 3e-3

    assert train.main(["--config", str(folder / "best.yaml"), "--dry-run"]) == 0

    assert "dry run: nothing was trained" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_of_a_search_by_the_report_command(searched, tmp_path, capsys):
    folder, _ = searched

    assert report.main([str(folder), "--output", str(tmp_path / "page.html")]) == 0

    page = (tmp_path / "page.html").read_text()
    assert "Best: trial-002" in page
    assert page.count("<svg") == 2
    assert "Best: trial-002" in capsys.readouterr().out
    assert report.main([str(folder), str(folder / "trials/trial-000")]) == 2
    assert "a search has its own page" in capsys.readouterr().err
    assert report.main([str(folder / "trials/trial-000"), str(folder / "trials/trial-002")]) == 0


@pytest.mark.slow
def test_mlflow_hears_of_every_trial(searched):
    folder, output = searched
    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    for trial, status in {"trial-000": "FINISHED", "trial-001": "KILLED", "trial-002": "FINISHED"}.items():
        run_id = json.loads((folder / "trials" / trial / "trackers" / "mlflow.json").read_text())["id"]
        tracked = client.get_run(run_id)
        assert (tracked.info.run_name, tracked.info.status) == (trial, status), output
        assert tracked.data.tags["distil_ray.group"] == "search"
        steps = [metric.step for metric in client.get_metric_history(run_id, "run/progress")]
        assert steps == [record["step"] for record in records(folder / "trials" / trial)]


def test_a_trial_is_launched_once_each_time_that_tune_starts_it(search_settings, tmp_path, monkeypatch):
    """Tune alone counts to search.max_failures, whatever it is that fails."""
    plan = plan_of(changed(search_settings, run__storage_path=str(tmp_path), search__max_failures=5))
    trials = Trials(plan.folder, plan.search.metric)
    trial = tuner.new_trial(plan, trials)
    suggestions = tuner._Suggestions(plan, trials, SearchDisplay(plan, trials))
    spec = suggestions.suggest("id")
    launched, sent = [], []

    def launch(config, console, callbacks, basis, claim, group):
        assert group == plan.config.run.name
        launched.append(config.run.name)
        raise RunError(f"worker lost, time {len(launched)}")

    monkeypatch.setattr(tuner, "launch", launch)
    monkeypatch.setattr(tuner, "ReportObjective", lambda metric: None)  # there is no session of Tune here
    line = SimpleNamespace(send=lambda *event: sent.append(event))
    for _ in range(2):
        with pytest.raises(RunError):
            tuner._run_trial(spec, plan=plan, basis=None, events=line, claim=None)
    assert launched == [trial.name] * 2
    assert sent == [("line", (trial.name, "is tried again: worker lost, time 1"))]

    suggestions.on_trial_complete("id", error=True)

    assert (trials[trial.name].status, trials[trial.name].message) == ("failed", "worker lost, time 2")
    assert sorted(path.name for path in (tmp_path / "search/trials" / trial.name).glob("*.json")) == ["failed.json"]


def test_failed_trials_are_tried_again_on_request(monkeypatch, search_settings, tmp_path):
    asked = []
    monkeypatch.setattr("distil_ray.studies.tuner.search", lambda plan, *, retry_failed: asked.append(retry_failed))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search_settings))

    for arguments in ([], ["--retry-failed"]):
        assert tune.main(["--config", str(tmp_path / "search.yaml"), *arguments]) == 0

    assert asked == [False, True]


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (tune, {"optim.learning_rate": 2e-3}, "optim.learning_rate: was 0.0001, now 0.002"),
        (tune, {"search.seed": 3}, "search.seed: was 0, now 3"),
        (train, {"search": None}, "search.metric: was"),
    ],
)
@pytest.mark.slow
def test_another_search_under_the_same_name_is_refused(
    searched, search_settings, tmp_path, capsys, command, changes, message
):
    settings = dict(search_settings)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            settings = changed(settings, **{f"{section}__{name}": value})
        else:
            del settings[section]
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings))

    assert command.main(["--config", str(tmp_path / "search.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_shows_what_would_be_tried(search_settings, ray_cluster, tmp_path, capsys):
    settings = changed(search_settings, run__storage_path=str(tmp_path / "runs"))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings))

    assert tune.main(["--config", str(tmp_path / "search.yaml"), "--dry-run"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert "3 trials, 1 at a time; the first ones:" in lines
    assert lines[-3:] == ["  learning_rate 1e-06", "  learning_rate 0.003", lines[-1]]
    assert lines[-1] == "dry run: nothing was trained"
    assert not (tmp_path / "runs/search").exists() or list((tmp_path / "runs/search").iterdir()) == []


def test_a_trial_that_could_never_be_placed(search_settings, ray_cluster, tmp_path, capsys):
    settings = changed(
        search_settings, run__storage_path=str(tmp_path / "runs"), runtime__num_workers=4, runtime__data_cpus=3
    )
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings))

    assert tune.main(["--config", str(tmp_path / "search.yaml")]) == 2

    assert "need 7.01 CPU in all, with 0.01 CPU for a driver, the cluster has 6 CPU" in capsys.readouterr().err
    assert not (tmp_path / "runs/search/trials.json").exists()


@pytest.mark.parametrize(("cores", "asked", "expected"), [(4, None, 4), (4, 3, 3), (1, None, 1)])
def test_a_ray_of_its_own_has_slots_for_as_many_trials_as_there_are_usable_cores(
    search_settings, monkeypatch, cores, asked, expected
):
    monkeypatch.setattr(tuner, "usable_cpus", lambda: cores)
    plan = plan_of(changed(search_settings, search__max_concurrent=asked, search__num_trials=9))
    assert tuner._own_cpu_slots(plan) == pytest.approx(expected * (1 + 1 + tuner.DRIVER_CPUS))


def test_trials_at_a_time_are_limited_by_the_nodes_there_unless_more_may_come(
    search_settings, ray_cluster, monkeypatch, capsys
):
    settings = changed(search_settings, search__max_concurrent=3, search__num_trials=9, runtime__num_workers=2)
    plan = plan_of(settings)
    assert tuner._at_once(plan, SearchDisplay(plan, ())) == 1
    assert "search.max_concurrent: given 3, but the cluster has room for 1" in capsys.readouterr().out
    monkeypatch.setattr(tuner, "has_autoscaler", lambda: True)
    assert tuner._at_once(plan, SearchDisplay(plan, ())) == 3
