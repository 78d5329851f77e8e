"""A whole run with trackers: what `metrics.jsonl` holds is what they hold."""

import json

import pytest
from runs import records, run
from wandb_files import wandb_records

from distil_ray.runs import trackers

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_run_is_tracked_step_by_step(settings, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setattr(trackers, "_END_SECONDS", 300.0)  # of a machine with much to do
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder = run(settings, metrics__trackers=["wandb", "mlflow"])

    assert not (folder / "tensorboard").exists()
    expected = {record["step"]: record["train/loss"] for record in records(folder) if "train/loss" in record}
    assert len(expected) == 12
    client = mlflow.MlflowClient()
    run_id = json.loads((folder / "trackers" / "mlflow.json").read_text())["id"]
    history = client.get_metric_history(run_id, "train/loss")
    assert {metric.step: metric.value for metric in history} == expected
    assert len(history) == len(expected)
    assert client.get_run(run_id).info.status == "FINISHED"
    [file] = (folder / "wandb").glob("offline-run-*/*.wandb")
    items = [content.item for kind, content in wandb_records(file) if kind == "history"]
    rows = [{item.nested_key[-1]: json.loads(item.value_json) for item in row if item.nested_key} for row in items]
    assert {row["_step"]: row["train/loss"] for row in rows if "train/loss" in row} == expected
    assert [row["_step"] for row in rows] == [record["step"] for record in records(folder)]
