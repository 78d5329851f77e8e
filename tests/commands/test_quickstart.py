"""The quickstart's mistakes, and the teacher that comes with it; test_wheel.py runs it as a newcomer does."""

import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from distil_ray.commands import quickstart
from distil_ray.models.loading import load_masked_lm, load_tokenizer

ROOT = Path(__file__).parents[2]


def test_make_calls_it():
    settings = ["RUNS=elsewhere", "SETTINGS=run.seed=1"]
    command = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.installed", "quickstart", *settings]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == ".venv/bin/python -m distil_ray quickstart run.storage_path=elsewhere run.seed=1"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.num_step=2", "did you mean optim.num_steps?"),
        ("run.storage_path=s3://bucket/runs", "run.storage_path: given s3://bucket/runs, expected a local folder"),
    ],
)
def test_mistakes_end_with_2_before_anything_is_trained(setting, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert quickstart.main([setting]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_teacher_that_comes_with_the_package():
    folder = ROOT / "distil_ray" / "quickstart" / "teacher"
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    model, tokenizer = load_masked_lm(str(folder)), load_tokenizer(str(folder))

    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12e6
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert (model.config.num_hidden_layers, len(tokenizer), model.config.vocab_size) == (4, 8000, 8000)
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert f"{model.num_parameters():,} parameters" in (folder / "README.md").read_text()
