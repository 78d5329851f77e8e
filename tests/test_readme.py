"""Every command of the README runs, and a stranger gets from raw text on S3 to a student on S3."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_settings, write_damaged

from distil_ray.config import load_config
from distil_ray.studies.settings import load_search

pytest_plugins = ("local_s3",)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHORTER = (
    "optim.num_steps=4 optim.global_batch_size=16 runtime.micro_batch_size=8 runtime.num_workers=1 eval.num_rows=16 "
    "eval.every_steps=4"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def own_ray() -> dict[str, str]:
    """An environment in which the command starts a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


# Of each block of commands, in order: how many they are and what they leave behind. Continuous integration runs one
# line of the first, test_quickstart.py the other.
COMMANDS = (
    ("make quickstart\nmake test\n", 2, ()),
    ("distil_ray.vocabulary", 5, ("runs/tiny/export/model.safetensors", "runs/tiny/report.html")),
    ("distil_ray.tune", 2, ("runs/tune-cpu/best.yaml", "runs/tune-cpu-best/export/model.safetensors")),
)


def test_no_command_of_the_readme_is_left_out():
    found = blocks("bash")

    assert len(found) == len(COMMANDS)
    for block, (beginning, count, _) in zip(found, COMMANDS, strict=True):
        assert beginning in block
        assert len(block.splitlines()) == count


@pytest.mark.slow
@pytest.mark.parametrize("index", range(1, len(COMMANDS)))
def test_the_commands_of_the_readme_run(corpus, ray_cluster, tmp_path, index):
    (tmp_path / "text").symlink_to(corpus)
    for name in ("configs", "distil_ray"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    commands = blocks("bash")[index].splitlines()
    for i, line in enumerate(commands):
        if "best.yaml" in line:
            commands[i] = f"{line} {SHORTER}"
        elif "distil_ray.train" in line:
            commands[i] = f"{line} {SHORTER} data.eval_fraction=0.1"
        elif "distil_ray.tune" in line:
            commands[i] = f"{line} {SHORTER} search.num_trials=1 search.scheduler=none"
        commands[i] = commands[i].replace("--size 8000", "--size 300")
    if index > 1:
        commands.insert(0, ". .venv/bin/activate")  # as in the block before
    result = subprocess.run(
        ["bash", "-euc", "\n".join(commands)],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": ray_cluster},  # one Ray for all, to be quicker
        capture_output=True,
        text=True,
        timeout=450,
    )

    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    for name in COMMANDS[index][2]:
        assert (tmp_path / name).exists()
    assert "finished: the student is in" in result.stdout


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_configurations_of_the_readme_are_valid(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)

    if "search:" in text:
        assert load_search([str(tmp_path / "config.yaml")], []).num_trials == 32
    else:
        assert load_config([str(tmp_path / "config.yaml")], []).run.name == "my-student"


@pytest.mark.slow
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
