"""`python -m distil_ray.report` on real runs."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from distil_ray.commands.report import main
from distil_ray.training.history import read_history


@pytest.fixture
def baseline(distilled, tmp_path) -> Path:
    """A copy of the distilled run that passes for one without the teacher's losses and with a worse figure."""
    _, folder = distilled
    copy = shutil.copytree(folder, tmp_path / "baseline")
    config = (copy / "config.yaml").read_text()
    config = config.replace("alpha_ce: 5.0", "alpha_ce: 0.0").replace("alpha_cos: 1.0", "alpha_cos: 0.0")
    (copy / "config.yaml").write_text(config.replace("name: distilled", "name: baseline"))
    identity = json.loads((copy / "identity.json").read_text())
    identity["learned"] |= {"distill.shares.ce": 0.0, "distill.shares.mlm": 1.0, "distill.shares.cos": 0.0}
    (copy / "identity.json").write_text(json.dumps(identity))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10**6, "data/tokens": 10**7, "eval/mlm_loss": 9.5}) + "\n")
    return copy


def test_a_run_beside_its_teacher(distilled, tmp_path, capsys):
    _, folder = distilled
    assert main([str(folder), "--output", str(tmp_path / "new" / "r.html")]) == 0

    html, text = (tmp_path / "new" / "r.html").read_text(), capsys.readouterr().out
    history = read_history(str(folder))
    for name in ("eval/mlm_loss", "eval/teacher_mlm_loss"):
        assert f"{history.last(name):.3f}" in html
        assert f"{history.last(name):.3f}" in text
    assert "distilled against its teacher: " in text
    assert f"distilled  {folder}/export" in text
    assert f"report: {tmp_path}/new/r.json, .html, .md" in text
    figures = json.loads((tmp_path / "new" / "r.json").read_text())["models"]
    assert figures[1]["mlm_loss"] == history.last("eval/mlm_loss")
    assert len(figures[1]["guesses"]) == html.count('class="gap"')
    assert "| distilled (distilled; " in (tmp_path / "new" / "r.md").read_text()
    assert html.count("<svg") >= 4
    assert "MLM loss in training" in html
    assert str(history.config.teacher.path) in html


def test_runs_on_the_same_batches_are_compared(distilled, baseline, tmp_path, capsys):
    _, folder = distilled
    assert main([str(folder), str(baseline), "--output", str(tmp_path / "r.html")]) == 0

    text = capsys.readouterr().out
    assert "The teacher's losses lower the held-out MLM loss: " in text
    assert "against 9.500" in text
    assert "All runs trained on the same batches in the same order: " in text
    assert "<td>distill.shares.ce</td>" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"run.seed": 7}, "different held-out rows"),
        ({"optim.learning_rate": 7}, "differ in more than their losses and their start"),
    ],
)
def test_runs_that_cannot_be_compared_are_not(distilled, baseline, tmp_path, capsys, change, remark):
    identity = json.loads((baseline / "identity.json").read_text())
    identity["learned"] |= change
    (baseline / "identity.json").write_text(json.dumps(identity))
    assert main([str(distilled[1]), str(baseline), "--output", str(tmp_path / "r.html")]) == 0

    text = capsys.readouterr().out
    assert remark in text
    assert "lower the held-out MLM loss" not in text


def test_a_student_as_it_starts_stands_beside_one_that_was_trained(distilled, baseline, tmp_path, capsys):
    no_steps = {"num_steps": 0, "num_epochs": None}
    config = yaml.safe_load((baseline / "config.yaml").read_text())
    (baseline / "config.yaml").write_text(yaml.safe_dump(config | {"optim": config["optim"] | no_steps}))
    identity = json.loads((baseline / "identity.json").read_text())
    identity["learned"] |= {f"optim.{key}": value for key, value in no_steps.items()}
    (baseline / "identity.json").write_text(json.dumps(identity))
    header = (baseline / "digests.csv").read_text().splitlines(keepends=True)[0]
    (baseline / "digests.csv").write_text(header)
    assert main([str(distilled[1]), str(baseline), "--output", str(tmp_path / "r.html")]) == 0

    text = capsys.readouterr().out
    assert "distilled against its teacher: " in text
    assert "cannot be compared" not in text
    assert "differ in more than" not in text
    assert "\n| baseline (not trained) " in (tmp_path / "r.md").read_text()


def test_runs_on_other_batches_are_not_compared(distilled, baseline, tmp_path, capsys):
    digests = (baseline / "digests.csv").read_text()
    (baseline / "digests.csv").write_text(digests.replace(digests.splitlines()[1].split(",")[1], "0" * 16))
    assert main([str(distilled[1]), str(baseline), "--output", str(tmp_path / "r.html")]) == 0

    assert "did not train on the same batches" in capsys.readouterr().out


def test_runs_that_have_not_come_equally_far_are_not_compared(distilled, baseline, tmp_path, capsys):
    lines = (baseline / "digests.csv").read_text().splitlines(keepends=True)
    (baseline / "digests.csv").write_text("".join(lines[:-1]))
    assert main([str(distilled[1]), str(baseline), "--output", str(tmp_path / "r.html")]) == 0

    text = capsys.readouterr().out
    assert "took different numbers of steps" in text
    assert "lower the held-out MLM loss" not in text


def test_an_unfinished_run_shows_what_there_is(reference, tmp_path, capsys):
    copy = shutil.copytree(reference[1], tmp_path / "copy")
    (copy / "finished.json").unlink()
    shutil.rmtree(copy / "export")
    assert main([str(copy)]) == 0

    assert "reference is not finished (step 100): its figures are those so far." in capsys.readouterr().out
    assert (copy / "report.html").exists()


def test_text_that_is_gone_costs_only_the_sentences(distilled, baseline, tmp_path, capsys):
    config = (baseline / "config.yaml").read_text()
    (baseline / "config.yaml").write_text(config.replace("corpus0", "gone"))
    assert main([str(baseline)]) == 0

    assert "No sentences are shown: no such file or folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "is not the folder of a run"),
        (["{run}", "--output", "{tmp}/file/r.html"], "--output: cannot write into"),
        (["s3://runs/a"], "--output: missing"),
    ],
)
def test_mistakes_end_with_2(distilled, tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    assert main([argument.format(tmp=tmp_path, run=distilled[1]) for argument in arguments]) == 2

    error = capsys.readouterr().err
    assert error.startswith("distil-ray report: error: ")
    assert message in error
