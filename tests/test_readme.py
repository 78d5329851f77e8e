"""A stranger gets from raw text on S3 to a student on S3; the README's commands are run by test_docs.py."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from conftest import tiny_settings, write_damaged
from runs import own_ray

pytest_plugins = ("local_s3",)


@pytest.mark.chaos
def test_text_and_runs_on_s3_and_damaged_text_is_left_out(bucket: Any, words, corpus, tokenizer_folder, tmp_path):
    damaged = write_damaged(tmp_path / "damaged.parquet", words, num_documents=260, rows_per_group=2)
    bucket.upload_file(str(damaged), "text/damaged.parquet")
    settings = tiny_settings(corpus, tokenizer_folder, tmp_path)
    settings["data"] |= {"sources": "s3://runs/text/*.parquet", "eval_fraction": 0.0, "on_bad_file": "skip"}
    settings["run"]["storage_path"] = "s3://runs/results"
    settings["runtime"]["num_workers"] = 1
    settings["optim"] = {"global_batch_size": 64, "num_epochs": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))

    result = subprocess.run(
        [sys.executable, "-m", "distil_ray.train", "--config", str(tmp_path / "config.yaml")],
        env=own_ray(),
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert result.returncode == 0, result.stderr
    names = {item.key.removeprefix("results/run/") for item in bucket.objects.all()}
    expected = {
        "config.yaml",
        "metrics.jsonl",
        "digests.csv",
        "finished.json",
        "export/model.safetensors",
        "export/tokenizer.json",
    }
    assert expected <= names
    assert any(name.startswith("tensorboard/") for name in names)
    last = json.loads(bucket.Object("results/run/metrics.jsonl").get()["Body"].read().splitlines()[-1])
    assert f"checkpoint_{last['step']:09d}/complete.json" in names
    assert last["data/skipped_units"] == 1
    assert re.search(r"left out: s3://runs/text/damaged.parquet: row group 4: damaged", result.stdout)
