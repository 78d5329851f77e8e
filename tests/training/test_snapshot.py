"""`distil-ray export`: the student of a checkpoint, in a folder like that of a finished run."""

import pytest
import safetensors.torch
import torch
from conftest import write_text
from plain_runs import Event, PlainRun
from runs import changed
from small_models import small_model
from training_parts import save_model
from transformers import AutoModelForMaskedLM, AutoTokenizer

from distil_ray.commands.export import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A distillation of eight steps into a narrower student, by losses that need maps which are not exported."""
    root = tmp_path_factory.mktemp("export")
    save_model(root / "teacher", small_model("bert", num_hidden_layers=2))
    words = [word for word in AutoTokenizer.from_pretrained(root / "teacher").get_vocab() if word[0] not in "[#"]
    write_text(root / "text.parquet", words, num_documents=200, seed=0)
    settings = {
        "run": {"name": "run", "storage_path": str(root / "runs")},
        "teacher": {"path": str(root / "teacher")},
        "student": {"hidden_size": 8},
        "data": {"sources": str(root / "text.parquet"), "max_seq_length": 12, "eval_fraction": 0.1},
        "distill": {"alpha_cos": 0.0, "alpha_hidden": 1.0},
        "optim": {"global_batch_size": 8, "num_steps": 8, "learning_rate": 1e-2},
        "eval": {"every_steps": 2, "num_rows": 8},
        "checkpoint": {"every_steps": 2, "keep": 3},
    }
    run = PlainRun(settings)
    assert run.start().kind == "finished"
    return run


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_the_newest_checkpoint_of_a_finished_run_is_its_student(run, tmp_path, capsys):
    assert main([str(run.path), "--output", str(tmp_path / "new" / "last")]) == 0
    assert f"run at step 8: {tmp_path}/new/last" in capsys.readouterr().out
    own = run.path / "export"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        assert (tmp_path / "new" / "last" / name).read_bytes() == (own / name).read_bytes()


def test_an_earlier_one_is_the_student_of_its_step(run, tmp_path):
    out = tmp_path / "then"
    assert main([str(run.path), "--step", "6", "--output", str(out)]) == 0
    assert "6 steps of 8 rows, 576 tokens" in (out / "README.md").read_text()
    assert AutoModelForMaskedLM.from_pretrained(out).config.hidden_size == 8
    then, last = weights(out), weights(run.path / "export")
    assert then.keys() == last.keys()
    assert not any(torch.equal(then[name], last[name]) for name in then)
    checkpoint = safetensors.torch.load_file(run.path / "checkpoint_000000006" / "student.safetensors")
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in then.items() if name in checkpoint)


def test_of_a_run_that_is_not_finished(run, tmp_path):
    settings = changed(run.settings, run__storage_path=str(tmp_path / "runs"), optim__num_steps=100)
    half = PlainRun(settings)
    half.events = [[Event("stop", 4)]]
    assert half.start().kind == "stopped"
    assert main([str(half.path), "--output", str(tmp_path / "out")]) == 0
    assert weights(tmp_path / "out").keys() == weights(run.path / "export").keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--step", "3"], "--step: given 3 of {run}: there is none; checkpoints: 4, 6, 8"),
        (["--output", "{run}"], "--output: given {run}, which is there already; expected a new or an empty folder"),
        (["--output", "s3://bucket/out"], "--output: given"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(run, tmp_path, capsys, given, message):
    given = [one.format(run=run.path) for one in given]
    assert main([str(run.path), "--output", str(tmp_path / "out"), *given]) == 2
    assert message.format(run=run.path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_named(run, tmp_path, capsys):
    settings = changed(run.settings, run__storage_path=str(tmp_path / "runs"), optim__num_steps=2)
    other = PlainRun(settings)
    assert other.start().kind == "finished"
    file = other.path / "checkpoint_000000002" / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert main([str(other.path), "--step", "2", "--output", str(tmp_path / "out")]) == 2
    assert "student.safetensors has" in capsys.readouterr().err
    assert main([str(other.path), "--output", str(tmp_path / "out")]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
