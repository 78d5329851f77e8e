"""`python -m distil_ray.evaluate` on a real Ray: it compares, resumes, and names mistakes before any training."""

import json
import shutil
import threading
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from glue_rows import write_glue
from runs import wait_for
from small_models import small_model
from training_parts import save_model

from distil_ray.commands import evaluate
from distil_ray.errors import InputError
from distil_ray.evaluation.conduct import name_models
from distil_ray.models.loading import load_tokenizer

QUICK = [
    "--set=resources.cpus=2",  # few at a time: each of their processes takes seconds to import what it needs
    "--set=finetuning.max_seq_length=12",
    "--set=finetuning.learning_rate=3e-3",
    "--set=finetuning.num_epochs=4",
    "--set=finetuning.max_train_rows=64",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher, a student, and tasks."""
    root = tmp_path_factory.mktemp("evaluate")
    for name, layers in (("teacher", 2), ("student", 1)):
        save_model(root / name, small_model("bert", num_hidden_layers=layers))
    write_glue(root / "glue")
    return root


def arguments(root, output, *more, tasks=("sst2",), seeds=2):
    given = ["--teacher", str(root / "teacher"), "--student", f"half={root / 'student'}", "--glue", str(root / "glue")]
    return [*given, "--tasks", *tasks, "--seeds", str(seeds), "--output", str(output), *QUICK, *more]


def fine_tuning():
    """Processes of this one's Ray that are at it."""
    return [one for one in psutil.Process().children(recursive=True) if "fine_tune" in " ".join(one.cmdline())]


def test_models_are_compared_and_a_comparison_is_resumed(folders, ray_cluster, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("distil_ray.evaluation.nodes._FIRST_SECONDS", 0.001)
        assert evaluate.main(arguments(folders, tmp_path, seeds=1)) == 0
    first = capsys.readouterr().out
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("results/*/*/*.json")}
    assert len(kept) == 2
    assert evaluate.main(arguments(folders, tmp_path, tasks=("sst2", "stsb"))) == 0

    out = capsys.readouterr().out
    assert "2 fine-tunings: 2 models, 1 task, 1 seed" in first
    assert "\n2 to go" in first
    assert "2 of 8 fine-tunings are already done" in out
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    report = json.loads((tmp_path / "report.json").read_text())
    teacher, half = report["models"]
    assert (teacher["name"], half["name"]) == ("teacher", "half")
    assert list(half["tasks"]) == ["sst2", "stsb"]
    assert half["tasks"]["sst2"]["num_seeds"] == 2
    assert half["num_parameters"] < teacher["num_parameters"]
    assert half["tasks"]["sst2"]["median"] > 60
    assert report["protocol"]["finetuning"]["max_train_rows"] == 64
    assert "% of the teacher's score." in out
    assert report["tasks"]["sst2"]["num_train_rows"] == 64
    assert report["tasks"]["sst2"]["num_rows_there"] == 96
    assert report["tasks"]["sst2"]["constant_score"] == 50.0
    markdown = (tmp_path / "report.md").read_text()
    assert "| sst2 | accuracy | 64 of 96 | 96 | 4 | 0.003 | 32 | up to 12 |" in markdown
    assert "| one answer for all rows | 25.0 | " in markdown
    assert "\none answer for all rows   25.0  " in out
    assert (half["dtype"], half["revision"]) == ("fp32", None)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "report.md", "results"}

    with monkeypatch.context() as patch:  # when all is done, no cluster is joined or started for it
        patch.setattr("distil_ray.evaluation.finetuning.ray", None)
        patch.setattr("distil_ray.evaluation.finetuning.join", None)
        assert evaluate.main(arguments(folders, tmp_path, tasks=("sst2", "stsb"))) == 0
    assert "8 of 8 fine-tunings are already done" in capsys.readouterr().out

    other = arguments(folders, tmp_path, "--set=finetuning.num_epochs=5")
    assert evaluate.main(other) == 2
    assert "finetuning.num_epochs was 4, is 5\ngive another --output" in capsys.readouterr().err


def test_each_model_takes_the_learning_rate_that_is_best_on_training_rows_set_aside(
    folders, ray_cluster, tmp_path, capsys
):
    rates = arguments(folders, tmp_path, "--set=finetuning.learning_rate=[3e-3, 1e-9]", seeds=1)
    assert evaluate.main(rates) == 0
    out = capsys.readouterr().out
    assert "4 trials of learning rates: 2 models, 1 task\n" in out
    assert "2 fine-tunings: 2 models, 1 task, 1 seed\n" in out
    best = {}
    for model in ("teacher", "half"):
        trials = {rate: tmp_path / f"results/{model}/sst2/rate-{rate:g}.json" for rate in (3e-3, 1e-9)}
        scores = {rate: json.loads(file.read_text())["scores"] for rate, file in trials.items()}
        names = {name for one in scores.values() for name in one}
        assert names == {"set aside/accuracy", "score"}  # no validation rows
        best[model] = max(scores, key=lambda rate: scores[rate]["score"])
        assert f"learning rates of {model}: sst2 {best[model]:g}\n" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {model["name"]: model["learning_rates"]["sst2"] for model in report["models"]} == best
    markdown = (tmp_path / "report.md").read_text()
    assert f"| learning rate | sst2 |\n|---|---|\n| teacher | {best['teacher']:g} |" in markdown

    assert evaluate.main(rates) == 0
    out = capsys.readouterr().out
    assert "4 of 4 trials of learning rates are already done" in out
    assert "2 of 2 fine-tunings are already done" in out


def test_what_has_changed_is_not_taken_for_done_and_a_copy_of_it_is(folders, ray_cluster, tmp_path, capsys):
    copies = shutil.copytree(folders, tmp_path / "copies")
    out = tmp_path / "out"
    assert evaluate.main(arguments(folders, out, seeds=1)) == 0
    assert evaluate.main(arguments(copies, out, seeds=1)) == 0  # the same content in another place
    assert "2 of 2 fine-tunings are already done" in capsys.readouterr().out

    rows = pq.read_table(copies / "glue/sst2/validation-00000-of-00001.parquet")
    corrected = rows.set_column(1, "label", pa.array([1 - label for label in rows["label"].to_pylist()]))
    pq.write_table(corrected, copies / "glue/sst2/validation-00000-of-00001.parquet")
    assert evaluate.main(arguments(copies, out, seeds=1)) == 2
    errors = capsys.readouterr().err
    first = f"{out}/results/teacher/sst2/seed-1.json"
    assert f"2 results in {out}, first {first}, would now be made with something else:" in errors
    assert "\n  sst2: other rows (validation)\n" in errors

    shutil.copy(folders / "glue/sst2/validation-00000-of-00001.parquet", copies / "glue/sst2")
    save_model(copies / "student", small_model("bert", num_hidden_layers=1, seed=5))
    assert evaluate.main(arguments(copies, out, seeds=1)) == 2
    assert f"half: the model in {copies}/student has other weights" in capsys.readouterr().err


def test_the_second_step_adds_rows_and_learns_from_the_teacher_that_was_fine_tuned(
    folders, ray_cluster, tmp_path, capsys
):
    given = arguments(folders, tmp_path, seeds=1)
    assert evaluate.main(given) == 0
    assert evaluate.main([*given, "--second-step"]) == 0

    out = capsys.readouterr().out
    assert "1 of 3 fine-tunings are already done" in out  # the teacher's soft targets were not kept
    models = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [model["name"] for model in models] == ["teacher", "half", "half (D)"]
    assert models[2]["num_parameters"] == models[1]["num_parameters"]
    assert models[2]["tasks"]["sst2"]["median"] > 60
    results = tmp_path / "results"
    assert json.loads((results / "half (D)/sst2/seed-1.json").read_text())["made_with"]["second_step"]["alpha"] == 0.5
    assert (results / "teacher/sst2/seed-1.soft-targets.npz").exists()

    (results / "half (D)/sst2/seed-1.json").unlink()  # resumes with the soft targets that were kept
    assert evaluate.main([*given, "--second-step"]) == 0
    assert "2 of 3 fine-tunings are already done" in capsys.readouterr().out
    assert evaluate.main([*given, "--second-step", "--set=second_step.alpha=0.4"]) == 2
    assert "half (D)/sst2/seed-1.json" in (errors := capsys.readouterr().err)
    assert "second_step.alpha was 0.5, is 0.4" in errors


def test_own_tasks_beside_glue_and_the_model_card(folders, ray_cluster, tmp_path, capsys):
    own = tmp_path / "protocol.yaml"
    rows = pq.read_table(folders / "glue/sst2/train-00000-of-00001.parquet")
    pa.csv.write_csv(rows.select(["sentence", "label"]), tmp_path / "reviews.csv")
    spans = Path(__file__).parents[1] / "fixtures" / "squad.jsonl"
    own.write_text(
        f"""
tasks:
  reviews: {{train: {tmp_path}/reviews.csv, validation: {tmp_path}/reviews.csv, text: [sentence]}}
  answers: {{kind: span, train: {spans}, validation: {spans}}}
finetuning_of: {{answers: {{max_seq_length: 24}}}}
"""
    )
    given = arguments(folders, tmp_path / "out", f"--protocol={own}", "--card", tasks=("answers", "reviews"), seeds=1)
    assert evaluate.main(given) == 2
    assert f"--card: half, {folders}/student, is not a local folder with a README.md" in capsys.readouterr().err
    (folders / "student/README.md").write_text("# Half\n")
    assert evaluate.main(given) == 0
    card = (folders / "student/README.md").read_text()
    assert card.startswith("# Half\n\n<!-- evaluation")
    assert "| half | " in card

    _, half = json.loads((tmp_path / "out/report.json").read_text())["models"]
    assert list(half["tasks"]) == ["reviews", "answers"]
    assert half["tasks"]["reviews"]["median"] > 70
    scores = json.loads((tmp_path / "out/results/half/answers/seed-1.json").read_text())["scores"]
    assert list(scores) == ["validation/exact_match", "validation/f1", "score"]


def test_a_process_that_is_killed_is_replaced_as_often_as_allowed(folders, ray_cluster, tmp_path, capsys):
    def evaluate_and_kill(*more):
        def kill():
            wait_for(fine_tuning)
            fine_tuning()[0].kill()

        killer = threading.Thread(target=kill)
        killer.start()
        status = evaluate.main(arguments(folders, tmp_path, "--set=finetuning.num_epochs=40", *more, seeds=1))
        killer.join()
        return status

    assert evaluate_and_kill("--set=resources.max_retries=0") == 1
    errors = capsys.readouterr().err
    assert "1 of 2 fine-tunings failed:\n  " in errors
    assert "Traceback" not in errors
    assert len(list(tmp_path.glob("results/*/sst2/seed-1.json"))) == 1
    assert evaluate_and_kill() == 0
    assert "1 of 2 fine-tunings are already done" in capsys.readouterr().out


def test_files_for_a_device(folders, ray_cluster, tmp_path, capsys):
    # In fp32, as the files are: in another precision, a model that is scored predicts a row or two otherwise.
    given = arguments(folders, tmp_path, "--on-device=sst2", "--set=finetuning.precision=fp32", seeds=1)
    assert evaluate.main(given) == 0

    models = json.loads((tmp_path / "report.json").read_text())["models"]
    for model in models:
        torch_model, onnx, int8 = model["on_device"]
        assert [torch_model["format"], onnx["format"], int8["format"]] == ["PyTorch", "ONNX", "ONNX int8"]
        assert onnx["figures"]["max_difference"] <= 1e-4
        assert int8["num_bytes"] < onnx["num_bytes"]
        # The very model that was scored: fine-tuned once more, with the same seed.
        assert torch_model["figures"]["score"] == onnx["figures"]["score"] == model["tasks"]["sst2"]["median"]
        assert int8["figures"]["score"] > 60
        assert (tmp_path / "on-device" / model["name"] / "model-int8.onnx").stat().st_size == int8["num_bytes"]
    assert "\nOn a device:\n" in capsys.readouterr().out

    kept = (tmp_path / "on-device/half/model.onnx").stat().st_mtime_ns
    assert evaluate.main(given) == 0
    assert (tmp_path / "on-device/half/model.onnx").stat().st_mtime_ns == kept


def test_text_alone(folders, corpus, tokenizer_folder, ray_cluster, tmp_path, capsys):
    for name, layers in (("teacher", 2), ("student", 1)):
        save_model(tmp_path / name, small_model("bert", vocab_size=300, num_hidden_layers=layers))
        load_tokenizer(str(tokenizer_folder)).save_pretrained(tmp_path / name)
    given = ["--teacher", str(tmp_path / "teacher"), "--student", str(tmp_path / "student"), "--text", str(corpus)]
    given += ["--output", str(tmp_path / "out"), "--set=text.max_seq_length=24", "--set=text.num_rows=32"]
    assert evaluate.main([*given, "--set=text.pseudo_perplexity_rows=2"]) == 0

    out = capsys.readouterr().out
    assert "fine-tunings" not in out
    assert "\nHeld-out text:\n" in out
    teacher, student = json.loads((tmp_path / "out/report.json").read_text())["models"]
    assert teacher["text"]["kl_to_teacher"] is None
    assert student["text"]["kl_to_teacher"] > 0
    assert student["text"]["num_rows"] == 32
    with pytest.MonkeyPatch.context() as patch:  # what is known is not measured again
        patch.setattr("distil_ray.evaluation.evaluate.join", None)
        assert evaluate.main([*given, "--set=text.pseudo_perplexity_rows=2"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--on-device", "answers", "--set=tasks.answers={kind: span, hub: x}"],
            "--on-device: given answers, expected a",
        ),
        (["--text", "{path: a, colum: b}"], "{path: a, colum: b}"),
        (["--tasks", "sst-2"], "--tasks: given sst-2, expected some of cola"),
        (["--tasks", "rte"], "has no rte/train-*.parquet"),
        (["--seeds", "0"], "--seeds: given 0, expected at least 1"),
        (["--set=finetuning.epochs=3"], "did you mean finetuning.num_epochs?"),
        (["--set=finetuning_of.sst2.max_seq_length=998"], "finetuning_of.sst2.max_seq_length: given 998, but teacher"),
        (
            ["--tasks", "mine", "--set=tasks.mine={train: a.csv, validation: b.csv}"],
            "tasks.mine: found no file a.csv",
        ),
        (["--set=finetuning.max_seq_length=999"], "finetuning.max_seq_length: given 999, but teacher"),
        (["--student", "/no/such/model"], "/no/such/model"),
        (["--student", "runs/lr=1e-4/export"], "runs/lr=1e-4/export"),
        (
            ["--tasks", "answers", "--set=tasks.answers={kind: span, train: {long}, validation: {long}}"],
            "answers: its longest question has 6 pieces, so that finetuning.max_seq_length 12",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(folders, tmp_path, capsys, more, message):
    long = {"question": "w1 w2 w3 w4 w5 w6", "context": "w7 w8", "answers": {"text": ["w7"], "answer_start": [0]}}
    (tmp_path / "long.jsonl").write_text(json.dumps(long))
    more = [text.replace("{long}", str(tmp_path / "long.jsonl")) for text in more]
    assert evaluate.main(arguments(folders, tmp_path / "out", *more)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(folders, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert evaluate.main(arguments(folders, tmp_path / "file/out")) == 2
    assert f"--output: cannot write into {tmp_path}/file/out: Not a directory" in capsys.readouterr().err


def test_in_a_job_a_relative_output_would_be_lost(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert evaluate.main(arguments(folders, "runs/evaluation")) == 2
    assert '--output: given "runs/evaluation", which in a Ray job' in capsys.readouterr().err


def test_a_tokenizer_that_does_not_fit_the_model(folders, tmp_path, capsys):
    save_model(tmp_path / "small", small_model("bert", vocab_size=20))
    assert evaluate.main(arguments(folders, tmp_path / "out", "--student", str(tmp_path / "small"))) == 2
    assert "small: the tokenizer has" in capsys.readouterr().err.replace(f"{tmp_path}/", "")


def test_rows_are_named_after_runs(tmp_path, monkeypatch):
    assert name_models("t", ["runs/a/export", "org/b", "c=runs/x/export/"]) == {
        "teacher": "t",
        "a": "runs/a/export",
        "b": "org/b",
        "c": "runs/x/export/",
    }
    with pytest.raises(InputError, match="two models would be called a; name them: --student a-2=other/a"):
        name_models("t", ["runs/a/export", "other/a"])

    monkeypatch.chdir(tmp_path)
    for folder in ("runs/lr=1e-3/export", "alpha=2"):
        (tmp_path / folder).mkdir(parents=True)
    assert name_models("t", ["runs/lr=1e-3/export", "alpha=2", "a=runs/lr=1e-3/export", "runs/lr=1e-4/export"]) == {
        "teacher": "t",
        "lr=1e-3": "runs/lr=1e-3/export",
        "alpha=2": "alpha=2",
        "a": "runs/lr=1e-3/export",
        "lr=1e-4": "runs/lr=1e-4/export",  # which is not there, and is named as it was given
    }
    monkeypatch.chdir(tmp_path / "runs/lr=1e-3/export")
    assert name_models("t", ["."]) == {"teacher": "t", "lr=1e-3": "."}
    for given in ("a=", "=runs/lr=1e-3/export", "..=x", "half (D)=x", "/"):
        with pytest.raises(InputError, match=r"--student: given .* expected MODEL or NAME=MODEL"):
            name_models("t", [given])
