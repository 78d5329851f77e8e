"""Whole runs of the training loop in plain processes: exact resume, kills, stops, skipped updates, damaged checkpoints.

`test_train.py` has what only Ray can show.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from conftest import tiny_settings, write_damaged, write_text
from embedding_folders import write_modules
from plain_runs import Event, PlainRun, expected_digests
from runs import changed, digest_column, digests, losses, records, run, weights

from distil_ray.errors import InputError, RunError
from distil_ray.training.job import Outcome

NUM_STEPS = 24


@pytest.fixture(scope="module")
def base(corpus, tokenizer_folder, tmp_path_factory):
    """Settings of a run with two workers, dropout on, a checkpoint every four steps."""
    settings = tiny_settings(corpus, tokenizer_folder, tmp_path_factory.mktemp("plain"))
    return changed(settings, optim__num_steps=NUM_STEPS, eval__every_steps=12)


@pytest.fixture(scope="module")
def whole(base):
    """The run that nobody disturbs; its folder."""
    run = PlainRun(changed(base, run__name="whole"))
    assert run.start().kind == "finished"
    return run.path


def check_is_like(whole: Path, run: PlainRun, *, num_restarts: int | None = 0) -> None:
    """The same batches, weights and records as those of the run that nobody disturbs."""
    assert digests(run.path) == digests(whole)
    assert weights(run.path) == weights(whole)
    np.testing.assert_array_equal(losses(run.path), losses(whole))
    assert [record["step"] for record in records(run.path)] == list(range(NUM_STEPS + 1))
    assert num_restarts in (None, records(run.path)[-1]["run/restarts"])


def run_of(base, request, **values) -> PlainRun:
    run_values = {name: values.pop(name) for name in ("num_workers", "events", "groups_per_pass") if name in values}
    name = re.sub(r"\W", "_", request.node.name)
    return PlainRun(changed(base, run__name=name, **values), **run_values)


def test_the_loop_imports_no_ray():
    script = "import sys, distil_ray.training.loop, distil_ray.training.passes; print('ray' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


def test_what_ray_trains_controller_reads_brings_no_transformers():
    script = (
        "import sys, distil_ray.training.ray_train, distil_ray.training.remaining_rows; "
        "print('transformers' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


def test_every_step_has_the_rows_that_the_plan_gives(base, request):
    """At one worker, over one epoch: each row once, in order, but for what is left of the last step."""
    optim = {"global_batch_size": 16, "num_epochs": 1, "learning_rate": 1e-3}
    run = run_of(base | {"optim": optim}, request, runtime__num_workers=1)

    assert run.start().kind == "finished"
    assert digest_column(run.path) == expected_digests(run.config)
    assert len(digest_column(run.path)) > 50
    assert records(run.path)[-1]["run/progress"] == 1.0


@pytest.mark.parametrize("num_workers", [1, 3, 4])
def test_the_number_of_workers_changes_rounding_only(base, whole, request, num_workers):
    run = run_of(base, request, runtime__num_workers=[1, 4], num_workers=[num_workers])

    assert run.start().kind == "finished"
    assert digests(run.path).splitlines() == digests(whole).splitlines()
    np.testing.assert_allclose(losses(run.path), losses(whole), atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("block", [2, 4, 21])  # before the first checkpoint, at one, and after the last
def test_a_killed_worker_changes_nothing(base, whole, request, rank, block):
    run = run_of(base, request, events=[[Event("kill", block, rank)]])

    assert run.start().kind == "finished"
    assert run.num_losses == 1
    check_is_like(whole, run, num_restarts=1)


def test_workers_that_are_killed_again_and_again_change_nothing(base, whole, request):
    run = run_of(base, request, events=[[Event("kill", 11)], [Event("kill", 7, 1)], [Event("kill", 0, 1)]])

    assert run.start().kind == "finished"
    assert run.num_losses == 3
    check_is_like(whole, run, num_restarts=3)


def test_another_number_of_workers_after_a_loss(base, whole, request):
    run = run_of(base, request, events=[[Event("kill", 21)]], num_workers=[2, 1])

    assert run.start().kind == "finished"
    assert digests(run.path) == digests(whole)
    np.testing.assert_allclose(losses(run.path), losses(whole), atol=1e-4)


def test_a_run_that_is_stopped_saves_its_step_and_resumes(base, whole, request):
    run = run_of(base, request, events=[[Event("stop", 20)]], checkpoint__every_steps=1000)

    stopped = run.start()
    assert stopped.kind == "stopped"
    assert 10 <= stopped.step < NUM_STEPS
    assert (run.path / f"checkpoint_{stopped.step:09d}" / "complete.json").exists()
    assert not (run.path / "finished.json").exists()
    assert run.start().kind == "finished"
    assert f"resuming from checkpoint_{stopped.step:09d}: step {stopped.step}, after row" in run.texts[-2]
    check_is_like(whole, run, num_restarts=1)


@pytest.mark.parametrize("kind", ["leave", "announce"])
def test_a_departing_node(base, whole, request, kind):
    """The step is saved when its end is announced; the workers leave when it is near."""
    run = run_of(base, request, events=[[Event(kind, 10, 1)]], checkpoint__every_steps=1000)

    assert run.start().kind == "finished"
    assert [outcome.kind for outcome in run.outcomes] == (["moving"] if kind == "leave" else []) + ["finished"]
    early = [path for path in run.path.glob("checkpoint_*") if int(path.name[-9:]) < NUM_STEPS]
    assert len(early) == (1 if kind == "leave" else 0)  # rank 0 saves what it has been told itself
    check_is_like(whole, run)


def test_an_announcement_is_answered_with_a_checkpoint(base, whole, request):
    run = run_of(base, request, events=[[Event("announce", 10)]], checkpoint__every_steps=1000)

    assert run.start().kind == "finished"
    assert len(list(run.path.glob("checkpoint_*"))) == 2
    check_is_like(whole, run)


@pytest.mark.parametrize("num_damaged", [1, 3])
def test_damaged_checkpoints_are_left_out_for_the_one_before(base, whole, request, num_damaged):
    run = run_of(base, request, events=[[Event("stop", 18)]], checkpoint__keep=10)
    stopped = run.start()
    newest = sorted(run.path.glob("checkpoint_*"))[-num_damaged:]
    for checkpoint in newest:
        file = checkpoint / "optimizer.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1  # of the same size: only rank 0 of the workers finds out
        file.write_bytes(content)

    assert run.start().kind == "finished"
    assert [outcome.kind for outcome in run.outcomes] == ["stopped", "again", "finished"]
    assert f"{newest[-1].name} is left out" in run.outcomes[1].message
    assert f"checkpoint_{stopped.step:09d}" == newest[-1].name
    check_is_like(whole, run, num_restarts=1)


def test_checkpoints_that_keep_being_damaged_end_the_run(base, request, monkeypatch):
    run = run_of(base, request)
    monkeypatch.setattr(PlainRun, "_attempt", lambda *given: [Outcome("again", "checkpoint_000000004 is left out")])
    with pytest.raises(RunError, match="no worker can load a checkpoint of the run: checkpoint_000000004 is left out"):
        run.start()
    assert len(run.outcomes) == 4


def test_several_pipelines_make_one_run(base, whole, request):
    """Also with a kill in the second."""
    run = run_of(base, request, groups_per_pass=2, events=[[], [Event("kill", 1, 1)]])

    assert run.start().kind == "finished"
    assert [outcome.kind for outcome in run.outcomes].count("more") >= 1
    assert run.num_losses == 1
    check_is_like(whole, run, num_restarts=None)  # none if it was lost before its first checkpoint: nothing is lost


def test_checkpoints_are_saved_by_time(base, whole, request):
    settings = changed(base, checkpoint__every_steps=None, checkpoint__every_minutes=1e-6)
    run = run_of(settings, request, events=[[Event("kill", 13)]])
    assert run.start().kind == "finished"
    check_is_like(whole, run, num_restarts=1)
    assert re.search(
        r"resuming from checkpoint_00000001[0123]: step", "\n".join(run.texts)
    )  # of 4, 8 and 12 not the last


def test_precision_is_agreed_on_at_the_start_and_kept(base, request):
    settings = changed(base, runtime__precision="auto")
    run = run_of(settings, request, events=[[Event("kill", 9)], [Event("stop", 6)]])
    run.fastest = ("bf16", "fp16")
    assert run.start().kind == "stopped"
    run.fastest = ("fp32", "fp32")
    assert run.start().kind == "finished"
    assert [text for text in run.texts if text.startswith("precision")] == ["precision: fp16"] * 3

    given = PlainRun(changed(base, run__name="fp16_is_given", runtime__precision="fp16"))
    given.fastest = ("fp32", "fp32")
    assert given.start().kind == "finished"
    assert weights(run.path) == weights(given.path)


def test_precision_that_is_given_counts_on_resuming_too(base, request):
    run = run_of(base, request, runtime__precision="auto", events=[[Event("stop", 6)]])
    run.fastest = ("bf16", "bf16")
    assert run.start().kind == "stopped"
    run.settings["runtime"]["precision"] = "fp32"
    assert run.start().kind == "finished"
    assert [text for text in run.texts if text.startswith("precision")] == ["precision: bf16", "precision: fp32"]


def test_skipped_updates_are_counted_and_resumed(base, request):
    skips = frozenset({6, 7, 13})
    undisturbed = run_of(base, request)
    undisturbed.nonfinite_steps = skips
    assert undisturbed.start().kind == "finished"
    killed = PlainRun(changed(base, run__name="killed_in_skips"), events=[[Event("kill", 7)]], nonfinite_steps=skips)
    assert killed.start().kind == "finished"

    last = records(undisturbed.path)[-1]
    assert last["train/skipped_updates"] == 3
    assert [r["step"] for r in records(undisturbed.path) if r.get("train/grad_norm", 0) is None] == [7, 8, 14]
    assert weights(killed.path) == weights(undisturbed.path)
    assert digests(killed.path) == digests(undisturbed.path)
    assert records(killed.path)[-1]["train/skipped_updates"] == 3


def test_a_gradient_that_stays_infinite_ends_the_run_after_what_was_learned(base, request):
    run = run_of(base, request, optim__max_skipped_updates=3, checkpoint__every_steps=1000)
    run.nonfinite_steps = frozenset(range(9, NUM_STEPS))

    outcome = run.start()
    assert (outcome.kind, outcome.step) == ("diverged", 9)
    assert "the gradient had no finite norm in 3 steps in a row, up to step 12" in outcome.message
    found = json.loads((run.path / "nonfinite.json").read_text())
    assert (found["step"], found["in_a_row"]) == (12, 3)
    assert [path.name for path in run.path.glob("checkpoint_*")] == ["checkpoint_000000009"]


def test_a_teacher_is_distilled_over_an_epoch(base, whole, request):
    settings = changed(base, teacher__path=str(whole / "export"), runtime__num_workers=2)
    settings["optim"] = {"global_batch_size": 16, "num_epochs": 1}
    del settings["student"], settings["distill"]
    run = run_of(settings, request, events=[[Event("kill", 30)]])

    assert run.start().kind == "finished"
    last = records(run.path)[-1]
    assert last["run/progress"] == 1.0
    assert last["eval/teacher_mlm_loss"] == pytest.approx(records(run.path)[0]["eval/teacher_mlm_loss"])
    assert digest_column(run.path) == expected_digests(run.config)


def test_no_steps_give_the_student_as_it_starts(base, whole, request):
    settings = base | {"teacher": {"path": str(whole / "export")}, "student": {}, "distill": {}}
    run = run_of(settings, request, optim__num_steps=0, runtime__num_workers=2)

    assert run.start().kind == "finished"
    (record,) = records(run.path)
    assert (record["step"], digests(run.path).count("\n")) == (0, 1)  # a header
    assert record["eval/mlm_loss"] > record["eval/teacher_mlm_loss"]
    assert not list(run.path.glob("checkpoint_*"))
    assert json.loads((run.path / "finished.json").read_text())["tokens"] == 0
    student, teacher = (safetensors.numpy.load_file(path / "export/model.safetensors") for path in (run.path, whole))
    query = "transformer.layer.0.attention.q_lin.weight", "encoder.layer.0.attention.self.query.weight"
    assert np.array_equal(student[f"distilbert.{query[0]}"], teacher[f"bert.{query[1]}"])


def test_text_for_less_than_a_step_is_bad_input(base, request):
    optim = {"global_batch_size": 8192, "num_epochs": 1}
    outcome = run_of(base | {"optim": optim}, request, runtime__num_workers=1).start()

    assert outcome.kind == "bad input"
    assert "no further step of optim.global_batch_size = 8192" in outcome.message


def test_text_without_end_that_gives_no_further_step_is_bad_input(base, request, monkeypatch):
    """Pipelines of more and more text are tried before that."""
    tried = []
    run = run_of(base, request)
    monkeypatch.setattr(PlainRun, "_num_groups", lambda *given: tried.append(given[-1]) or 1)
    monkeypatch.setattr(PlainRun, "_attempt", lambda *given: [Outcome("more", step=0)])
    outcome = run.start()

    assert outcome.kind == "bad input"
    assert tried == [1, 16, 256, 4096]


def test_text_that_cannot_be_read_ends_the_run_after_what_could_be(base, request, words, tmp_path):
    damaged = write_damaged(tmp_path / "a.parquet", words, num_documents=260, rows_per_group=2)
    settings = changed(base, data__sources=str(damaged), data__eval_fraction=0.0, checkpoint__every_steps=1000)
    settings["optim"] = {"global_batch_size": 16, "num_epochs": 1}
    run = run_of(settings, request)

    outcome = run.start()
    assert outcome.kind == "bad input"
    assert re.search(r"a\.parquet: row group 4: damaged", outcome.message)
    assert outcome.step > 0
    assert [path.name for path in run.path.glob("checkpoint_*")] == [f"checkpoint_{outcome.step:09d}"]


def test_what_only_workers_find_out_is_bad_input(base, whole, request, tmp_path):
    """The driver looks at configurations alone."""
    teacher = tmp_path / "teacher"
    shutil.copytree(whole / "export", teacher)
    tensors = safetensors.numpy.load_file(teacher / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("bias"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    safetensors.numpy.save_file(tensors, teacher / "model.safetensors", metadata={"format": "pt"})
    outcome = run_of(changed(base, teacher__path=str(teacher)), request).start()

    assert outcome.kind == "bad input"
    assert re.search(r"on node .*weights of .*bias are not finite", outcome.message)


# Blocks that several steps share


K = 8
NUM_SHARED = 20  # of whose last super-step four are left out


@pytest.fixture(scope="module")
def shared(base, tmp_path_factory):
    """Settings of a run whose steps share blocks, with checkpoints in the middle of them."""
    storage = str(tmp_path_factory.mktemp("shared"))
    values = {"optim__num_steps": NUM_SHARED, "eval__every_steps": 10, "checkpoint__every_steps": 3}
    return changed(base, run__storage_path=storage, data__steps_per_block=K, **values)


@pytest.fixture(scope="module")
def whole_shared(shared):
    run = PlainRun(changed(shared, run__name="whole"))
    assert run.start().kind == "finished"
    assert digest_column(run.path) == expected_digests(run.config)[:NUM_SHARED]
    return run.path


def test_steps_per_block_decides_which_rows_make_a_step(whole, whole_shared):
    assert not set(digest_column(whole)) & set(digest_column(whole_shared))


@pytest.mark.parametrize("num_workers", [1, 3, 4])
def test_the_number_of_workers_changes_no_shared_block(shared, whole_shared, request, num_workers):
    run = run_of(shared, request, runtime__num_workers=[1, 4], num_workers=[num_workers])

    assert run.start().kind == "finished"
    assert digests(run.path) == digests(whole_shared)
    np.testing.assert_allclose(losses(run.path), losses(whole_shared), atol=1e-4)


def check_is_like_shared(whole: Path, run: PlainRun, num_restarts: int) -> None:
    assert digests(run.path) == digests(whole)
    assert weights(run.path) == weights(whole)
    np.testing.assert_array_equal(losses(run.path), losses(whole))
    assert [record["step"] for record in records(run.path)] == list(range(NUM_SHARED + 1))
    assert records(run.path)[-1]["run/restarts"] == num_restarts


@pytest.mark.parametrize("step", [6, 12, 19])
def test_a_worker_that_is_killed_between_steps_of_a_block_changes_nothing(shared, whole_shared, request, step):
    run = run_of(shared, request, events=[[Event("kill", step=step, rank=1)], [Event("kill", step=step + 1)]])

    assert run.start().kind == "finished"
    assert run.num_losses == (2 if step + 1 < NUM_SHARED else 1)
    check_is_like_shared(whole_shared, run, run.num_losses)


def test_a_run_that_is_stopped_between_steps_of_a_block_resumes_there(shared, whole_shared, request):
    events = [[Event("stop", step=3)], [Event("stop", step=10)]]
    run = run_of(shared, request, events=events, checkpoint__every_steps=1000)

    steps = []
    while (outcome := run.start()).kind == "stopped":
        steps.append(outcome.step)
        state = json.loads((run.path / f"checkpoint_{outcome.step:09d}" / "state.json").read_text())
        assert state["steps_after"] == outcome.step % K
        lines = digests(run.path).splitlines()[1 : 1 + outcome.step // K * K]
        assert state["position"] == ([int(value) for value in lines[-1].split(",")[2:]] if lines else [0, -1])
    assert steps == [5, 12]
    check_is_like_shared(whole_shared, run, num_restarts=2)


def test_what_is_left_of_the_text_for_less_than_the_steps_of_a_block_is_not_trained_on(shared, corpus, request):
    """Nor is it taken for the end where another pipeline continues."""
    settings = changed(shared, data__sources=str(corpus / "b.parquet"), eval__every_steps=1000)
    settings["optim"] = {"global_batch_size": 16, "num_epochs": 1, "learning_rate": 1e-3}
    run = run_of(settings, request, groups_per_pass=4, events=[[], [Event("kill", step=51)]])

    assert run.start().kind == "finished"
    assert run.num_losses == 1
    assert [outcome.kind for outcome in run.outcomes] == ["more", "finished"]
    assert digest_column(run.path) == expected_digests(run.config)
    progress = [record["run/progress"] for record in records(run.path)]
    assert progress == sorted(set(progress))
    assert progress[-1] == 1.0


def test_text_for_less_than_the_steps_of_a_block_is_bad_input(shared, request):
    optim = {"global_batch_size": 1024, "num_epochs": 1}
    outcome = run_of(shared | {"optim": optim}, request, runtime__num_workers=1).start()

    assert outcome.kind == "bad input"
    assert "no further data.steps_per_block = 8 steps of optim.global_batch_size = 1024 rows" in outcome.message
    assert "expected at least 262,144 tokens" in outcome.message


def test_text_that_cannot_be_read_ends_the_run_after_a_whole_block(shared, request, words, tmp_path):
    damaged = write_damaged(tmp_path / "a.parquet", words, num_documents=800, rows_per_group=20)
    settings = changed(shared, data__sources=str(damaged), data__eval_fraction=0.0, checkpoint__every_steps=1000)
    settings["optim"] = {"global_batch_size": 16, "num_epochs": 1}
    outcome = run_of(settings, request).start()

    assert (outcome.kind, outcome.step % K) == ("bad input", 0)
    assert outcome.step > 0


def test_another_number_of_steps_per_block_is_refused(whole_shared, shared, whole, base):
    for settings, other, message in ((shared, 1, "was 8, now 1"), (base, 8, "was 1, now 8")):
        run = PlainRun(changed(settings, run__name="whole", data__steps_per_block=other))
        with pytest.raises(InputError, match=rf"data\.steps_per_block: {message}"):
            run.start()


def test_rows_of_a_gradient_that_stays_infinite_can_be_found(shared, request):
    run = run_of(shared, request, optim__max_skipped_updates=2)
    run.nonfinite_steps = frozenset({11, 12})

    assert run.start().kind == "diverged"
    found = json.loads((run.path / "nonfinite.json").read_text())
    ends = [[int(value) for value in line.split(",")[2:]] for line in digests(run.path).splitlines()[1:]]
    assert (found["rows_after"], found["up_to"], found["first"]) == (ends[7], ends[12], 12 % K)


# What a run leaves


def test_the_loss_falls_and_is_recorded(reference):
    _, folder = reference
    first, last = records(folder)[0], records(folder)[-1]

    assert first["step"] == 0
    assert last["step"] == 100
    assert last["eval/mlm_loss"] < first["eval/mlm_loss"] - 0.1
    assert last["data/tokens"] == 100 * 16 * 32
    assert last["run/progress"] == 1.0
    for name in (
        "train/loss",
        "train/loss_mlm",
        "train/grad_norm",
        "perf/tokens_per_second",
        "perf/data_wait_fraction",
    ):
        assert np.isfinite(last[name])


def test_the_optimizer_state_of_a_checkpoint_is_complete(reference):
    _, folder = reference
    newest = max(folder.glob("checkpoint_*"))
    student = safetensors.numpy.load_file(newest / "student.safetensors")
    optimizer = safetensors.numpy.load_file(newest / "optimizer.safetensors")

    assert {f"{name}.{part}" for name in student for part in ("step", "exp_avg", "exp_avg_sq")} == set(optimizer)
    assert json.loads((newest / "state.json").read_text())["position"][0] >= 0


def test_distils_a_teacher_in_epochs(distilled):
    _, folder = distilled
    last = records(folder)[-1]
    assert last["run/progress"] == 1.0
    assert {"train/loss_ce", "train/loss_mlm", "train/loss_cos"} <= set().union(*records(folder))
    assert last["eval/kl_to_teacher"] > 0
    assert last["eval/teacher_mlm_loss"] == pytest.approx(records(folder)[0]["eval/teacher_mlm_loss"])
    # One epoch: every training row once, but for what is left of the last step.
    groups = {int(line.split(",")[2]) for line in digests(folder).splitlines()[1:]}
    assert max(groups) < 30
    script = f"""
import sys
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained({str(folder / "export")!r})
tokenizer = AutoTokenizer.from_pretrained({str(folder / "export")!r})
assert not any(name.startswith("distil_ray") for name in sys.modules)
logits = model(**tokenizer("ab [MASK]", return_tensors="pt")).logits
print(model.config.model_type, model.config.n_layers, logits.shape[-1])
"""
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder)
    assert loaded.stdout.split() == ["distilbert", "1", "300"], loaded.stderr


def test_a_finished_run_is_not_repeated_and_not_changed(distilled, capsys):
    settings, folder = distilled
    settings = changed(settings, run__name="distilled")
    capsys.readouterr()
    assert run(settings) == folder
    assert "distilled is finished" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"optim.learning_rate: was 0.001, now 0.002"):
        run(settings, optim__learning_rate=2e-3)
    run(settings, runtime__num_workers=2, metrics__every_steps=7)  # changes nothing that is learned


def test_other_text_under_the_same_name_is_refused(reference, words, tmp_path):
    settings, expected = reference
    shutil.copytree(expected, tmp_path / "copy")
    (tmp_path / "copy" / "finished.json").unlink()
    write_text(tmp_path / "text" / "a.parquet", words, num_documents=140, seed=5)

    with pytest.raises(InputError, match=r"was started on different text(.|\n)*a.parquet"):
        run(settings, run__name="copy", run__storage_path=str(tmp_path), data__sources=str(tmp_path / "text"))


def test_dataset_of_one_row_group_needs_eval_sources(settings, tmp_path):
    pq.write_table(pa.table({"text": ["ab cd " * 200]}), tmp_path / "one.parquet")
    with pytest.raises(InputError, match="eval_sources"):
        run(settings, data__sources=str(tmp_path / "one.parquet"))


def test_the_student_of_a_sentence_transformers_teacher_is_one_too(base, whole, request, tmp_path):
    teacher = write_modules(Path(shutil.copytree(whole / "export", tmp_path / "teacher")))
    modules = json.loads((teacher / "modules.json").read_text())
    unknown = {"idx": 3, "name": "3", "path": "3_CNN", "type": "sentence_transformers.models.CNN"}
    (teacher / "modules.json").write_text(json.dumps([*modules, unknown]))
    settings = base | {"teacher": {"path": str(teacher)}, "student": {}, "distill": {}}
    run = run_of(settings, request, optim__num_steps=2)

    assert run.start().kind == "finished"
    assert json.loads((run.path / "export/modules.json").read_text()) == modules
    assert json.loads((run.path / "export/sentence_bert_config.json").read_text())["max_seq_length"] == 6
    assert (run.path / "export/1_Pooling/config.json").exists()
    assert run.texts.count(f"export: 3_CNN of {teacher} is left out, as it is not supported") == 1
