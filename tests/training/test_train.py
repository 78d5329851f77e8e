"""Whole runs on a real Ray, with real workers and real kills; `test_loop.py` has most of the loop without it.

The reference comes from plain processes: Ray deals out the same rows in the same order.
"""

import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_damaged, write_text
from plain_runs import PlainRun, expected_digests
from runs import (
    changed,
    command,
    digest_column,
    digests,
    has_got_to,
    losses,
    records,
    run,
    train_workers,
    wait_for,
    weights,
)

from distil_ray.config import parse_config
from distil_ray.data.fast_tokenizer import installed_package
from distil_ray.data.pipeline import heldout_rows
from distil_ray.errors import InputError
from distil_ray.runs.console import Console
from distil_ray.training import launcher
from distil_ray.training.assembly import build_plan, build_tokenizer
from distil_ray.training.dry_run import dry_run
from distil_ray.training.examination import prepare_data

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_number_of_workers_changes_rounding_only(reference):
    settings, expected = reference
    folder = run(settings, run__name="workers4", runtime__num_workers=4)

    assert digests(folder) == digests(expected)
    assert len(digests(folder).splitlines()) == 1 + 100
    np.testing.assert_allclose(losses(folder), losses(expected), atol=1e-4)


@pytest.mark.slow
def test_blocks_that_steps_share_are_dealt_out_as_in_plain_processes(reference):
    settings, _ = reference
    settings = changed(settings, data__steps_per_block=8, optim__num_steps=20, checkpoint__every_steps=3)
    folder = run(settings, run__name="shared", runtime__num_workers=[2, 4])
    plain = PlainRun(changed(settings, run__name="shared_plain", runtime__num_workers=[2, 4]), num_workers=[4])
    assert plain.start().kind == "finished"

    assert digest_column(folder) == expected_digests(plain.config)[:20]
    assert weights(folder) == weights(plain.path)
    assert digests(folder) == digests(plain.path)


@pytest.mark.slow
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
    assert re.search(r"worker \d failed: its process ended: \w", output)
    assert weights(folder) == weights(expected)
    assert digests(folder) == digests(expected)
    assert records(folder)[-1]["run/restarts"] == 2
    assert [record["step"] for record in records(folder)] == list(range(101))


@pytest.mark.slow
def test_a_second_driver_is_refused_and_a_second_signal_ends_a_run_at_once_while_its_workers_are_busy(
    settings, tmp_path
):
    """On a Ray of its own, which ends with it."""
    settings = changed(settings, optim__num_steps=100_000, runtime__num_workers=1)
    folder = Path(settings["run"]["storage_path"]) / "run"
    arguments, environment = command(settings, tmp_path, None)
    driver = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: has_got_to(folder, 4))

    second = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert driver.poll() is None
    assert second.returncode == 2
    assert f"{folder} is in use by `distil-ray train` (process {driver.pid} on " in second.stderr
    assert "Traceback" not in second.stderr

    (worker,) = train_workers(driver.pid)
    worker.suspend()
    for _ in range(2):
        driver.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, errors = driver.communicate()

    assert driver.returncode == 128 + signal.SIGINT, errors
    assert "stopped at once; the same command resumes from checkpoint_" in errors
    assert "Traceback" not in errors
    wait_for(lambda: not worker.is_running())


@pytest.mark.slow
def test_a_pipeline_that_ends_early_is_followed_by_another(settings, tmp_path, monkeypatch):
    pipelines, fit = [], launcher.fit
    monkeypatch.setattr(launcher, "fit", lambda *given: pipelines.append(given) or fit(*given))
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
        prepare_data(config, tokenizer, build_plan(config, tokenizer), tell=print)

    config, notes = parse_config(changed(settings, data__on_bad_file="skip")), []
    heldout = prepare_data(config, tokenizer, build_plan(config, tokenizer), tell=notes.append).heldout
    assert len(heldout["group"]) > 64
    assert [note for note in notes if "left out: " in note and "row group 4" in note]


@pytest.mark.slow
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
    with pytest.raises(InputError, match=r"a\.parquet: its content has changed"):
        run(settings)


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


def test_rows_are_the_same_with_and_without_the_fast_tokenizer_and_where_a_node_lacks_it(settings):
    config = parse_config(settings)
    tokenizer = build_tokenizer(config)
    plan, lines = build_plan(config, tokenizer), []
    prepared = prepare_data(config, tokenizer, plan, tell=lines.append)

    assert prepared.plan.vocabulary.fast_package == installed_package(plan.vocabulary.tokenizer_json)
    assert ["is used" in line for line in lines] == [True] * bool(prepared.plan.vocabulary.fast_package)
    assert prepared.plan.fingerprint() == plan.fingerprint()
    unknown = replace(plan, vocabulary=replace(plan.vocabulary, fast_package="nanotoken 0.0.0"))
    for other in (plan, unknown):
        rows = heldout_rows(other, config.eval.num_rows, num_cpus=1, node_label=None, warn=print)
        assert rows.keys() == prepared.heldout.keys()
        for name, values in rows.items():
            np.testing.assert_array_equal(values, prepared.heldout[name])


def test_mlm_smoothing_weighs_pieces_by_their_count_in_the_text(settings):
    config = parse_config(changed(settings, data__mlm_smoothing=0.5))
    tokenizer = build_tokenizer(config)
    plan = prepare_data(config, tokenizer, build_plan(config, tokenizer), tell=print).plan

    weights = plan.settings.piece_weights
    assert weights is not None
    counts = np.round(weights**-2)
    assert counts.max() > 100
    assert (weights[list(plan.vocabulary.special_ids)[:2]] == 1.0).all()  # [PAD], [UNK]: never in the text
