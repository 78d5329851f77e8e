"""What a run reports: means over the workers, and files that hold each step once whatever happens."""

import json
import math
import tempfile

import pytest
import torch
from processes import run_workers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distil_ray.runs.storage import RunFolder
from distil_ray.training.meter import Meter
from distil_ray.training.metrics import MetricsWriter, read_digests, read_records

pytest_plugins = ("local_s3",)


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        folder = RunFolder(str(tmp_path / "runs"), "a")
    else:
        request.getfixturevalue("bucket")
        folder = RunFolder("s3://runs/below", "a")
    folder.check_writable()
    return folder


# Sums


def meter(world_size=1):
    return Meter(
        {"ce": 0.75, "mlm": 0.25},
        {"ce": 4, "mlm": 2},
        tokens_per_step=100,
        world_size=world_size,
        device=torch.device("cpu"),
        flops_per_token=10.0,
    )


def test_a_record_holds_means_over_the_steps():
    sums = meter()
    for ce, mlm in ((8.0, 1.0), (4.0, 3.0), (0.0, 2.0), (4.0, 2.0)):  # two micro-batches in each of two steps
        sums.add_terms({"ce": torch.tensor(ce, requires_grad=True), "mlm": torch.tensor(mlm)})
    sums.add_step(0.0)
    sums.add_step(0.0)
    record = sums.record()
    assert (record["train/loss_ce"], record["train/loss_mlm"]) == (2.0, 2.0)
    assert record["train/loss"] == 2.0
    assert record["perf/data_wait_fraction"] == 0.0
    assert record["perf/tokens_per_second"] > 0
    assert "perf/mfu" not in record  # of a CPU, the peak is unknown


def test_each_record_starts_anew():
    sums = meter()
    for ce in (8.0, 4.0):
        sums.add_terms({"ce": torch.tensor(ce), "mlm": torch.tensor(0.0)})
        sums.add_step(0.0)
        assert sums.record()["train/loss_ce"] == ce / 4


def test_a_loss_that_is_not_a_number_is_not_hidden():
    sums = meter()
    for ce in (1.0, math.nan):
        sums.add_terms({"ce": torch.tensor(ce), "mlm": torch.tensor(2.0)})
        sums.add_step(0.0)
    record = sums.record()
    assert math.isnan(record["train/loss"])
    assert math.isnan(record["train/loss_ce"])
    assert record["train/loss_mlm"] == 1.0


def record_of_worker(rank, world_size):
    sums = meter(world_size)
    if rank == 0:  # the other one has no block in this step
        sums.add_terms({"ce": torch.tensor(8.0), "mlm": torch.tensor(4.0)})
    sums.add_step(1000.0 * rank)
    record = sums.record()
    return record["train/loss_ce"], record["train/loss_mlm"], record["perf/data_wait_fraction"] > 1


def test_a_record_is_about_all_workers():
    assert run_workers(record_of_worker, 2) == [(2.0, 2.0, True)] * 2


# Files


def write(folder, resume_step, steps):
    """Write a record and a digest per step, as a run does, and bring them to the folder."""
    writer = MetricsWriter(folder, resume_step)
    for step in steps:
        writer.write_digest(step, 2**64 - step, step // 10, step % 10)
        writer.write({"step": step, "train/loss": step / 8, "train/grad_norm": None, "data/digest": "ff"})
    writer.sync()
    return writer


def steps_in(folder):
    return [record["step"] for record in read_records(folder)]


def digest_lines(folder):
    return folder.read_bytes("digests.csv").decode().splitlines()


def scalars(folder, tmp_path):
    """TensorBoard's view of the run: (step, value) by name."""
    for name in RunFolder(folder.filesystem.unstrip_protocol(folder.path), "tensorboard").names():
        local = tmp_path / "read" / name
        local.parent.mkdir(exist_ok=True)
        local.write_bytes(folder.read_bytes(f"tensorboard/{name}"))
    events = EventAccumulator(str(tmp_path / "read"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_files_hold_what_was_written(folder, tmp_path):
    assert read_records(folder) == []
    write(folder, -1, [0, 10])
    assert read_records(folder) == [
        {"step": 0, "train/loss": 0.0, "train/grad_norm": None, "data/digest": "ff"},
        {"step": 10, "train/loss": 1.25, "train/grad_norm": None, "data/digest": "ff"},
    ]
    assert digest_lines(folder) == ["step,digest,group,row", "0,10000000000000000,0,0", "10,fffffffffffffff6,1,0"]
    assert scalars(folder, tmp_path) == {"train/loss": [(0, 0.0), (10, 1.25)]}


def test_what_lies_behind_the_checkpoint_is_dropped_and_made_again(folder, tmp_path):
    write(folder, -1, [0, 10, 20, 30])
    write(folder, 10, [20])
    assert steps_in(folder) == [0, 10, 20]
    assert [line.partition(",")[0] for line in digest_lines(folder)] == ["step", "0", "10", "20"]
    assert [step for step, _ in scalars(folder, tmp_path)["train/loss"]] == [0, 10, 20]
    write(folder, -1, [0])  # there was no complete checkpoint
    assert steps_in(folder) == [0]
    assert len(digest_lines(folder)) == 2


def test_a_line_cut_off_by_a_crash_is_dropped(folder):
    write(folder, -1, [0, 10])
    for name in ("metrics.jsonl", "digests.csv"):
        folder.write_text(name, folder.read_bytes(name).decode()[:-3])
    assert steps_in(folder) == [0]
    write(folder, 10, [20])
    assert steps_in(folder) == [0, 20]
    assert [line.partition(",")[0] for line in digest_lines(folder)] == ["step", "0", "20"]


def test_damaged_lines_are_passed_over_and_dropped(folder):
    write(folder, -1, [0, 10, 20, 30])
    for name, damage in (("metrics.jsonl", b'{"step": 1\x00\xff'), ("digests.csv", b"10,ff\xfe")):
        lines = folder.read_bytes(name).splitlines()
        lines[2] = damage
        folder.write_bytes(name, b"\n".join([*lines, b""]))
    assert len(steps_in(folder)) == 3
    digests, complaints = read_digests(folder)
    assert len(digests) == 3
    assert complaints == [f"{folder.join('digests.csv')}: line 3 is damaged and is passed over"]
    write(folder, 30, [40])
    assert steps_in(folder) == [0, 10, 30, 40]
    assert [line.partition(",")[0] for line in digest_lines(folder)] == ["step", "0", "20", "30", "40"]


def test_tensorboard_can_be_left_out(folder):
    writer = MetricsWriter(folder, -1, has_board=False)
    writer.write({"step": 1, "train/loss": 2.0})
    writer.sync()
    writer.close()
    assert steps_in(folder) == [1]
    assert not folder.exists("tensorboard")


def test_local_records_can_be_read_as_soon_as_they_are_written(tmp_path):
    folder = RunFolder(str(tmp_path), "a")
    folder.check_writable()
    writer = MetricsWriter(folder, -1)
    writer.write_digest(1, 255, 0, 7)
    writer.write({"step": 1})
    assert read_records(folder) == [{"step": 1}]
    assert digest_lines(folder)[1:] == ["1,00000000000000ff,0,7"]


def test_copies_for_storage_elsewhere_are_removed(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    writer = write(folder, -1, [0, 10])
    assert len(list((tmp_path / "scratch").iterdir())) == (0 if folder.is_local else 1)
    writer.close()
    assert not list((tmp_path / "scratch").iterdir())
    assert steps_in(folder) == [0, 10]


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    folder = RunFolder(str(tmp_path), "a")
    folder.check_writable()
    with pytest.raises(ValueError, match="JSON"):
        MetricsWriter(folder, -1).write({"step": 1, "train/loss": math.nan})
    assert "NaN" not in json.dumps(read_records(folder))
