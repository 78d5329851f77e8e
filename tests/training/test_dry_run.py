"""`--dry-run` on a real cluster: what it says of the text and of the run to come, and which text it refuses."""

import json
import re
from pathlib import Path

import pytest
from runs import changed

from distil_ray.config import parse_config
from distil_ray.errors import InputError, RunError
from distil_ray.runs.console import Console
from distil_ray.training import dry_run as module
from distil_ray.training import forecast as module_of_forecast
from distil_ray.training.assembly import build_models, build_tokenizer
from distil_ray.training.dry_run import dry_run, worker_bytes

AWS = Path(__file__).parents[2] / "cluster" / "aws.yaml"

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def lines(settings, words, tmp_path, monkeypatch):
    """Gives what a dry run prints on JSON lines of its own, without an estimate."""
    monkeypatch.setattr(module, "forecast", lambda *_: [])

    def printed(records, capsys, **changes):
        folder = tmp_path / "text"
        folder.mkdir(exist_ok=True)
        text = "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records)
        (folder / "a.jsonl").write_bytes(text.encode("latin-1"))
        (folder / "README.md").write_text("# Text")
        dry_run(parse_config(changed(settings, data__sources=str(folder), **changes)), Console())
        return capsys.readouterr().out

    return printed


def sentences(words, num_documents):
    return [{"text": " ".join(words[i : i + 40])} for i in range(num_documents)]


def test_what_is_skipped_is_counted_by_reason_and_warned_of(lines, words, capsys):
    records = [
        *sentences(words, 200),
        *[{"text": None}] * 3,
        *[{"text": ["a", "list"]}] * 20,
        '{"text": "M\xfcll"}\n' * 10,
        *[{"texts": "another key"}] * 5,
    ]
    shown = lines(records, capsys, data__eval_fraction=0.0)

    place = r"\(the first: \S*a\.jsonl, byte \d+\)"
    assert re.search(
        rf"38 of 238 documents skipped \(16\.0%\): 20 of another type than text {place}, 10 not UTF-8 {place}, "
        rf"5 without the source's key {place}, 3 null {place}",
        shown,
    )
    assert "warning: 14.9% of the documents that hold something cannot be used" in shown
    assert re.search(r"left out \S*README\.md: documentation beside the data files", shown)
    assert "of the pieces are [UNK]" in shown

    shown = lines(records, capsys, data__eval_fraction=0.0, data__warn_skipped_fraction=0.15)
    assert "38 of 238 documents skipped" in shown
    assert "warning:" not in shown


def test_null_and_blank_texts_are_no_reason_to_warn(lines, words, capsys):
    shown = lines([*sentences(words, 50), *[{"text": ""}] * 30], capsys, data__eval_fraction=0.0)
    assert "30 of 80 documents skipped (37.5%): 30 blank" in shown
    assert "warning:" not in shown


def test_pieces_that_the_tokenizer_does_not_know_are_warned_of(lines, words, capsys):
    known = sentences(words, 50)
    unknown = [{"text": "\uac00\ub098\ub2e4 \ub77c\ub9c8\ubc14"}] * 300
    shown = lines([*known, *unknown], capsys, data__eval_fraction=0.0)
    assert re.search(r"warning: \d+\.\d% of the pieces are \[UNK\], from which nothing is learned", shown)


def test_text_that_gives_no_row_is_refused(lines, capsys):
    skipped = r"300 of 300 documents skipped \(100\.0%\): 300 null \(the first: \S*a\.jsonl, byte 0\)"
    for text, reason in (("\uac00\ub098\ub2e4", r"too few ordinary pieces to mask: 50% .*\[UNK\]"), (None, skipped)):
        with pytest.raises(InputError, match=rf"data\.sources: the text gives no row to train on: .*{reason}"):
            lines([{"text": text}] * 300, capsys, data__eval_fraction=0.0)


def figure(pattern, shown):
    found = re.search(pattern, shown)
    assert found, shown
    return float(found[1].replace(",", ""))


SECONDS = r"([\d.e+-]+) s per step"


def test_the_estimate_of_a_run_on_processors_is_timed_with_its_workers(settings, capsys):
    dry_run(parse_config(changed(settings, optim__num_steps=2000, checkpoint__every_steps=2000)), Console())
    shown = capsys.readouterr().out

    assert "the step's computation: " in shown
    assert "timed here with 4 rows on 2 workers at once, threads of each: 1, fp32" in shown
    slowest = max(
        figure(rf"{name}: {SECONDS}", shown)
        for name in ("the step's computation", "the data plane", "the coordinator", "storage")
    )
    hours = figure(r"estimate for 2 workers .*\(([\d.]+) hours\), bound by", shown)
    assert hours >= 2000 * slowest / 3600 - 0.005
    assert "price: not known; --cluster FILE" in shown


@pytest.fixture
def gpu_settings(settings, monkeypatch):
    """A run on GPUs that this cluster lacks."""
    monkeypatch.setattr(module, "usable_cpus", lambda: 1)
    return changed(settings, runtime__use_gpu=True, runtime__data_label={"no-such": "label"}, runtime__data_cpus=64)


def test_a_run_on_gpus_is_estimated_where_there_are_none(gpu_settings, capsys):
    dry_run(parse_config(gpu_settings), Console())
    shown = capsys.readouterr().out

    assert "warning: the run would be refused here: runtime.num_workers: 2 workers" in shown
    for gpu, peak in (("A100", 312), ("H100", 989)):
        assert f"0.3 of {peak} TFLOP/s (--mfu)" in shown
        assert f"estimate for 2 × {gpu} (no GPU is known)" in shown
    assert "warning: the peak is that of bf16" in shown


def test_the_gpus_of_the_cluster_count_if_there_are_any(gpu_settings, capsys, monkeypatch):
    monkeypatch.setattr(module_of_forecast, "gpu_types", lambda: ["H200", "unheard-of"])
    dry_run(parse_config(gpu_settings), Console())
    shown = capsys.readouterr().out
    assert "estimate for 2 × H200:" in shown
    assert shown.count("estimate for") == 1


def test_a_step_that_cannot_be_timed_is_no_reason_to_fail(settings, capsys, monkeypatch):
    def refuse(*_, **__):
        raise RunError("no node has room")

    monkeypatch.setattr(module_of_forecast, "call_side_by_side", refuse)
    dry_run(parse_config(settings), Console())
    shown = capsys.readouterr().out
    assert "no estimate of the time: a step could not be timed: no node has room" in shown
    assert "the data plane: " in shown


def test_mfu_sets_the_speed_and_a_cluster_the_gpu_and_the_price(gpu_settings, capsys):
    gpu_settings["runtime"] |= {"data_label": {"ray-subcluster": "data"}}
    config = parse_config(changed(gpu_settings, optim__num_steps=10**7))
    seconds = {}
    for mfu in (0.5, 0.25):
        dry_run(config, Console(), mfu=mfu, cluster=AWS)
        shown = capsys.readouterr().out
        assert f"{mfu:g} of 312 TFLOP/s (--mfu)" in shown
        seconds[mfu] = figure(rf"computation: {SECONDS}", shown)
    assert seconds[0.25] == pytest.approx(2 * seconds[0.5], rel=0.01)

    hours = figure(r"estimate for 2 × A100: .*\(([\d.,]+) hours\)", shown)
    per_hour = 0.40 + 2 * 0.72 + 21.96  # 64 slots are two nodes of 32
    gpu_hours = figure(r"bound by .*, ([\d.,]+) GPU-hours", shown)
    assert gpu_hours == pytest.approx(2 * hours, rel=0.01)
    assert figure(r"price: about ([\d.,]+) USD", shown) == pytest.approx(hours * per_hour, rel=0.01)
    assert f"{per_hour:.2f} an hour for 1 × m7i.2xlarge, 2 × c7i.8xlarge on spot, 1 × p4d.24xlarge" in shown


def test_what_a_worker_holds_depends_on_the_precision(settings):
    config = parse_config(settings)
    _, student = build_models(config, build_tokenizer(config))
    fixed, batch = worker_bytes(config, None, student, "fp32")
    assert worker_bytes(config, None, student, "bf16") == (fixed, batch / 2)
    with_teacher, _ = worker_bytes(config, student, student, "fp32")
    assert with_teacher - fixed == 4 * student.num_parameters()
    assert worker_bytes(config, student, student, "bf16")[0] - fixed == 2 * student.num_parameters()
