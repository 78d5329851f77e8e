"""`make quickstart`, as a newcomer types it, only shorter: interrupted, typed again, and finished."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from browser import assert_readable
from runs import records, wait_for

from distil_ray.commands import quickstart
from distil_ray.models.loading import load_masked_lm, load_tokenizer

ROOT = Path(__file__).parents[2]
RUNS = ("quickstart", "quickstart-mlm-only", "quickstart-from-scratch")
SHORTER = (
    "optim.num_steps=12 optim.global_batch_size=8 runtime.micro_batch_size=4 eval.num_rows=16 eval.every_steps=6 "
    "checkpoint.every_steps=2 metrics.every_steps=1 runtime.num_workers=1 runtime.precision=fp32"
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make` needs of the project, and the environment that the tests run in."""
    for name in ("Makefile", "distil_ray", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def make_quickstart(folder: Path, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "--old-file=.venv/.installed", "quickstart", f"SETTINGS={SHORTER}"],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": address},  # one Ray for all of its runs, to be quicker
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # five commands, four of them runs
def test_interrupted_and_typed_again(clone, ray_cluster):
    runs = clone / "runs"
    first = make_quickstart(clone, ray_cluster)
    wait_for(lambda: any(runs.glob("quickstart/checkpoint_*/complete.json")) or first.poll() is not None)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    _, errors = first.communicate()

    assert first.returncode != 0
    assert re.search(r"stopped: step \d+ is saved; the same command resumes from checkpoint_\d+ \(SIGINT\)", errors)
    assert "Traceback" not in errors
    assert not (runs / "quickstart" / "finished.json").exists()

    again = make_quickstart(clone, ray_cluster)
    output, errors = again.communicate()

    assert again.returncode == 0, errors
    assert "Traceback" not in errors
    assert "resuming from checkpoint_" in output
    assert "All runs trained on the same batches in the same order: 12 steps of equal digests." in output
    assert len({(runs / name / "digests.csv").read_text() for name in RUNS}) == 1
    assert [records(runs / name)[0]["eval/mlm_loss"] for name in RUNS[:2]] == pytest.approx(
        [records(runs / RUNS[0])[0]["eval/mlm_loss"]] * 2
    )
    # The teacher is as good as its card says, within what 304 masked pieces of these packages can tell.
    assert records(runs / "quickstart")[0]["eval/teacher_mlm_accuracy"] > 0.4
    page = (runs / "quickstart" / "report.html").read_text()
    for name in RUNS:
        assert f"<td>{name}<br>" in page
    assert "student.init" in page
    assert_readable(page, clone, num_charts=page.count("<svg"))


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
