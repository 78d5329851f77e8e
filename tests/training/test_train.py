"""Whole runs on a real Ray, with real workers and real kills."""

import hashlib
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
from conftest import write_damaged, write_text
from runs import changed, command, digests, has_got_to, losses, records, run, train_workers, wait_for, weights

from distil_ray.config import parse_config
from distil_ray.data.batch import digest
from distil_ray.data.rows import make_rows
from distil_ray.errors import InputError
from distil_ray.runs.console import Console
from distil_ray.training import launcher
from distil_ray.training.assembly import build_plan, build_tokenizer
from distil_ray.training.dry_run import dry_run
from distil_ray.training.launcher import prepare_data

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_number_of_workers_changes_rounding_only(reference):
    settings, expected = reference
    folder = run(settings, run__name="workers4", runtime__num_workers=4)

    assert digests(folder) == digests(expected)
    assert len(digests(folder).splitlines()) == 1 + 100
    np.testing.assert_allclose(losses(folder), losses(expected), atol=1e-4)


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


def test_a_killed_driver_and_a_killed_worker_change_nothing(reference, ray_cluster, tmp_path):
    settings, expected = reference
    folder = Path(settings["run"]["storage_path"]) / "killed"
    arguments, environment = command(changed(settings, run__name="killed"), tmp_path, ray_cluster)
    driver = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: has_got_to(folder, 12))
    driver.kill()
    driver.wait()
    wait_for(lambda: not train_workers())  # Ray ends what the driver has left behind
    assert not (folder / "finished.json").exists()

    again = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: has_got_to(folder, 40))
    train_workers()[-1].kill()
    output, errors = again.communicate()

    assert again.returncode == 0, errors
    assert output.count("resuming from checkpoint_0000000") == 2
    assert re.search(r"worker \d failed: .*(died|killed)", output)
    assert weights(folder) == weights(expected)
    assert digests(folder) == digests(expected)
    assert records(folder)[-1]["run/restarts"] == 2
    assert [record["step"] for record in records(folder)] == list(range(101))


def test_a_second_driver_of_the_same_run_is_refused(settings, ray_cluster, tmp_path):
    settings = changed(settings, optim__num_steps=60, checkpoint__every_steps=20)
    folder = tmp_path / "runs" / "run"
    arguments, environment = command(settings, tmp_path, ray_cluster)
    first = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(folder.glob("lease_*.json")) != [])

    second = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert first.poll() is None
    assert second.returncode == 2
    assert f"{folder} is in use by `distil_ray.train` (process {first.pid} on " in second.stderr
    assert "Traceback" not in second.stderr

    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert (folder / "export" / "model.safetensors").exists()
    assert (folder / "checkpoint_000000060" / "complete.json").exists()
    assert list(folder.glob("lease_*.json")) == []


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

    with pytest.raises(InputError, match=r"was started on other text(.|\n)*a.parquet"):
        run(settings, run__name="copy", run__storage_path=str(tmp_path), data__sources=str(tmp_path / "text"))


def test_a_pipeline_that_ends_early_goes_on_in_another(settings, tmp_path, monkeypatch):
    pipelines, fit = [], launcher._fit
    monkeypatch.setattr(launcher, "_fit", lambda *given: pipelines.append(given) or fit(*given))
    # Words of 30 letters that are one piece each: the number of groups ahead is underestimated.
    words = [letter * 30 for letter in "abcdefghij"]
    write_text(tmp_path / "text" / "a.parquet", words, num_documents=160, seed=1, rows_per_group=1)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = changed(
        settings,
        data__sources=str(tmp_path / "text"),
        student__tokenizer=str(tmp_path / "tokenizer"),
        runtime__num_workers=1,
        optim__num_steps=3,
    )
    folder = run(settings)

    assert len(pipelines) == 2
    assert records(folder)[-1]["step"] == 3
    assert records(folder)[-1]["run/restarts"] == 0
    positions = [tuple(map(int, line.split(",")[2:])) for line in digests(folder).splitlines()[1:]]
    assert positions == sorted(set(positions))


def test_damaged_heldout_text_is_an_input_error_or_left_out(settings, words, tmp_path):
    damaged = write_damaged(tmp_path / "a.parquet", words, num_documents=260, rows_per_group=20)
    del settings["data"]["eval_fraction"]
    settings = changed(settings, data__eval_sources=str(damaged), eval__num_rows=4096)
    config = parse_config(settings)
    tokenizer = build_tokenizer(config)
    with pytest.raises(InputError, match=r"^/.*a\.parquet: row group 4: damaged"):
        prepare_data(config, tokenizer, build_plan(config, tokenizer), warn=print)

    config, notes = parse_config(changed(settings, data__on_bad_file="skip")), []
    heldout = prepare_data(config, tokenizer, build_plan(config, tokenizer), warn=notes.append).heldout
    assert len(heldout["group"]) > 64
    assert [note for note in notes if "left out: " in note and "row group 4" in note]


def expected_digests(config):
    """The digest of each step, from the plan alone."""
    plan = build_plan(config, build_tokenizer(config))
    groups = [
        make_rows(
            plan.corpus, plan.schedule.units_of(group), plan.vocabulary, plan.settings, split="train", group=group
        )
        for group in range(plan.schedule.num_groups)
    ]
    rows = {name: np.concatenate([group[name] for group, _ in groups]) for name in groups[0][0]}
    size = config.optim.global_batch_size
    steps = range(0, len(rows["row"]) - size + 1, size)
    return [f"{digest({name: values[at : at + size] for name, values in rows.items()}):016x}" for at in steps]


def test_damaged_pages_end_the_run_after_what_could_be_read(settings, words, tmp_path):
    """`test_readme.py` leaves them out."""
    damaged = write_damaged(tmp_path / "a.parquet", words, num_documents=260, rows_per_group=2)
    settings["optim"] = {"global_batch_size": 16, "num_epochs": 1}
    settings = changed(settings, data__sources=str(damaged), data__eval_fraction=0.0, checkpoint__every_steps=1000)

    with pytest.raises(
        InputError, match=r"(?s)a\.parquet: row group 4: damaged.*Steps done: \d+; .* resumes from"
    ) as end:
        run(settings)
    folder = Path(settings["run"]["storage_path"]) / "run"
    (checkpoint,) = folder.glob("checkpoint_*")
    assert int(checkpoint.name[-9:]) > 0
    assert checkpoint.name in str(end.value)

    write_text(damaged, words, num_documents=260, seed=3, rows_per_group=2)  # as it was before the damage
    with pytest.raises(InputError, match=r"a\.parquet: holds other bytes than then"):
        run(settings)
    identity = json.loads((folder / "identity.json").read_text())
    identity["text"][0]["value"] = hashlib.sha256(damaged.read_bytes()).hexdigest()  # as if the run had begun then, too
    (folder / "identity.json").write_text(json.dumps(identity))
    assert run(settings) == folder
    done = [line.split(",")[1] for line in digests(folder).splitlines()[1:]]
    assert done == expected_digests(parse_config(settings))


def test_text_for_less_than_a_step_is_an_input_error(settings, words, tmp_path):
    write_text(tmp_path / "text" / "a.parquet", words, num_documents=30, seed=3)
    settings = changed(settings, data__sources=str(tmp_path / "text"), optim__num_steps=None, optim__num_epochs=1)
    settings["runtime"]["num_workers"] = 1

    with pytest.raises(InputError, match=r"no further step of optim.global_batch_size = 4096"):
        run(settings, optim__global_batch_size=4096)


def test_a_dry_run_shows_what_would_happen_and_trains_nothing(settings, capsys):
    dry_run(parse_config(settings), Console())

    shown = capsys.readouterr().out
    for expected in ("student: bert, 2 layers", "memory of a worker", "the run: about 12 steps of 16 rows", "[MASK]"):
        assert expected in shown
    folder = Path(settings["run"]["storage_path"]) / "run"
    assert not folder.exists()


def test_more_workers_than_the_cluster_holds(settings):
    with pytest.raises(
        InputError, match=r"64 workers and runtime.data_cpus = 1 need 65 CPU in all, the cluster has 6 CPU"
    ):
        run(settings, runtime__num_workers=64, optim__global_batch_size=256)
    with pytest.raises(InputError, match="no node of the cluster carries the label"):
        run(settings, runtime__data_label={"no-such": "label"})


def test_mlm_smoothing_weighs_pieces_by_their_count_in_the_text(settings):
    config = parse_config(changed(settings, data__mlm_smoothing=0.5))
    tokenizer = build_tokenizer(config)
    plan = prepare_data(config, tokenizer, build_plan(config, tokenizer), warn=print).plan

    weights = plan.settings.piece_weights
    assert weights is not None
    counts = np.round(weights**-2)
    assert counts.max() > 100
    assert (weights[list(plan.vocabulary.special_ids)[:2]] == 1.0).all()  # [PAD], [UNK]: never in the text


def test_the_optimizer_state_of_a_checkpoint_is_complete(reference):
    _, folder = reference
    newest = max(folder.glob("checkpoint_*"))
    student = safetensors.numpy.load_file(newest / "student.safetensors")
    optimizer = safetensors.numpy.load_file(newest / "optimizer.safetensors")

    assert {f"{name}.{part}" for name in student for part in ("step", "exp_avg", "exp_avg_sq")} == set(optimizer)
    assert json.loads((newest / "state.json").read_text())["position"][0] >= 0


def test_dataset_of_one_row_group_needs_eval_sources(settings, tmp_path):
    pq.write_table(pa.table({"text": ["ab cd " * 200]}), tmp_path / "one.parquet")
    with pytest.raises(InputError, match="eval_sources"):
        run(settings, data__sources=str(tmp_path / "one.parquet"))


def test_what_only_workers_find_out_ends_the_run_as_bad_input(distilled, tmp_path):
    """The driver looks at configurations alone."""
    settings, _ = distilled
    teacher = tmp_path / "teacher"
    shutil.copytree(settings["teacher"]["path"], teacher)
    weights = safetensors.numpy.load_file(teacher / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("bias"))
    weights[name] = np.full_like(weights[name], np.nan)
    safetensors.numpy.save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InputError, match=r"on node .*weights of .*bias are not finite"):
        run(settings, run__name="nan", teacher__path=str(teacher), runtime__num_workers=2)
