"""What is written down of a run, and what the driver is told: records, restarts, time left."""

import json
import math

import pytest

from distil_ray.data.schedule import Position
from distil_ray.runs.storage import RunFolder
from distil_ray.training.checkpoint import TrainState
from distil_ray.training.metrics import Reporter, read_records

pytest_plugins = ("local_s3",)


class Heard:
    """Events that are kept."""

    def __init__(self):
        self.lines = []
        self.records = []

    def post_text(self, text):
        self.lines.append(text)

    def post_record(self, record):
        self.records.append(record)


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        folder = RunFolder(str(tmp_path), "a")
    else:
        request.getfixturevalue("bucket")
        folder = RunFolder("s3://runs/below", "a")
    folder.check_writable()
    return folder


def state_of(step, saved_at=0.0):
    return TrainState(step, Position(step // 10, step % 10), step / 40, {"data/tokens": 64 * step}, saved_at)


def begin(folder, state, resumed_from=None, complaints=(), **options):
    heard = Heard()
    reporter = Reporter(folder, heard, is_active=True)
    reporter.begin(state, resumed_from, list(complaints), **{"is_continuation": False} | options)
    return reporter, heard


def restarts(folder):
    return [json.loads(line) for line in folder.read_bytes("restarts.jsonl").decode().splitlines()]


def test_records_are_written_and_passed_on(folder):
    reporter, heard = begin(folder, state_of(0))
    reporter.record(state_of(0), {"eval/mlm_loss": 7.5})
    reporter.digest(12, 255, Position(1, 2))
    reporter.record(state_of(12), {"train/loss": 2.0, "data/digest": "ff"})
    reporter.sync()
    first, second = read_records(folder)
    assert (first.pop("time"), second.pop("time")) == tuple(record["time"] for record in heard.records)
    assert first == {"step": 0, "eval/mlm_loss": 7.5, "data/tokens": 0, "run/progress": 0.0, "run/restarts": 0}
    assert second == {
        "step": 12,
        "train/loss": 2.0,
        "data/digest": "ff",
        "data/tokens": 768,
        "run/progress": 0.3,
        "run/restarts": 0,
    }
    assert heard.lines == ["precision: fp32"]
    assert heard.records[0]["eta_seconds"] is None
    assert heard.records[1]["eta_seconds"] > 0
    assert [record["previous_step"] for record in heard.records] == [-1, 0]
    assert folder.read_bytes("digests.csv").decode().splitlines()[1:] == ["12,00000000000000ff,1,2"]


@pytest.mark.parametrize(("resumed_from", "previous_step"), [("checkpoint_000000015", 10), (None, -1)])
def test_a_record_names_the_one_before_it_that_a_restart_has_kept(folder, resumed_from, previous_step):
    reporter, _ = begin(folder, state_of(0))
    for step in (0, 10, 20):
        reporter.record(state_of(step), {"train/loss": 1.0})
    reporter.sync()
    state = state_of(0 if resumed_from is None else 15)
    reporter, heard = begin(folder, state, resumed_from)
    reporter.record(state_of(20), {"train/loss": 1.0})
    assert heard.records[0]["previous_step"] == previous_step


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_null(folder, value):
    reporter, heard = begin(folder, state_of(0))
    reporter.record(state_of(1), {"train/loss": value, "train/grad_norm": 1.0})
    reporter.sync()
    for record in (*read_records(folder), *heard.records):
        assert record["train/loss"] is None
        assert record["train/grad_norm"] == 1.0


def test_a_restart_is_told_and_counted(folder):
    reporter, _ = begin(folder, state_of(0))
    for step in (10, 20):
        reporter.record(state_of(step), {"train/loss": 1.0})
    reporter.sync()
    last_time = read_records(folder)[-1]["time"]
    for number in (1, 2):
        complaint = "checkpoint_000000020 is left out: its save was cut off"
        state = state_of(13, saved_at=last_time - 42)
        reporter, heard = begin(folder, state, "checkpoint_000000013", [complaint])
        assert heard.lines == [
            complaint,
            "resuming from checkpoint_000000013: step 13, after row 3 of group 1; "
            "42 s of work since then are done again",
            "precision: fp32",
        ]
        assert [(r["checkpoint"], r["step"], r["position"]) for r in restarts(folder)] == [
            ("checkpoint_000000013", 13, [1, 3])
        ] * number
        reporter.sync()
        assert [record["step"] for record in read_records(folder)] == [10]
    assert restarts(folder)[0]["lost_seconds"] == pytest.approx(42)
    reporter.record(state_of(20), {})
    reporter.sync()
    assert read_records(folder)[-1]["run/restarts"] == 2


def test_damaged_lines_are_told_and_passed_over(folder):
    reporter, _ = begin(folder, state_of(0))
    for step in (10, 20):
        reporter.record(state_of(step), {"train/loss": 1.0})
    reporter.sync()
    records = folder.read_bytes("metrics.jsonl").splitlines(keepends=True)
    folder.write_bytes("metrics.jsonl", b"".join([records[0], b"\x00\x00\xff\n", *records[1:]]))
    folder.write_bytes("restarts.jsonl", b'{"time": 1\n{"time": 2}\n')
    reporter, heard = begin(folder, state_of(20), "checkpoint_000000020")
    assert heard.lines[:2] == [
        f"{folder.join('restarts.jsonl')}: line 1 is damaged and is passed over",
        f"{folder.join('metrics.jsonl')}: line 2 is damaged and is passed over",
    ]
    reporter.sync()
    assert [record["step"] for record in read_records(folder)] == [10, 20]
    assert len(restarts(folder)) == 2


def test_a_start_without_a_checkpoint_begins_again(folder):
    reporter, _ = begin(folder, state_of(0))
    reporter.record(state_of(10), {"train/loss": 1.0})
    reporter.sync()
    reporter, heard = begin(folder, TrainState())
    assert heard.lines[0] == "starting again from step 0: the run had no complete checkpoint yet"
    reporter.sync()
    assert read_records(folder) == []
    assert [(restart["checkpoint"], restart["lost_seconds"]) for restart in restarts(folder)] == [(None, None)]


def test_a_planned_continuation_is_no_restart(folder):
    reporter, _ = begin(folder, state_of(0))
    reporter.record(state_of(10), {"train/loss": 1.0})
    reporter.sync()
    reporter, heard = begin(folder, state_of(10), "checkpoint_000000010", is_continuation=True)
    assert heard.lines == []
    assert not folder.exists("restarts.jsonl")
    reporter.record(state_of(20), {})
    reporter.sync()
    assert [record["step"] for record in read_records(folder)] == [10, 20]


def test_the_other_workers_write_and_say_nothing(folder):
    heard = Heard()
    reporter = Reporter(folder, heard, is_active=False)
    reporter.begin(state_of(10), "checkpoint_000000010", ["complaint"], is_continuation=False)
    reporter.record(state_of(11), {"train/loss": 1.0})
    reporter.digest(11, 1, Position(1, 1))
    reporter.sync()
    assert (heard.lines, heard.records, folder.names()) == ([], [], [])
