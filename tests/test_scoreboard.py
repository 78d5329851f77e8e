"""The tables say what was found, in the paper's layout."""

import json
from dataclasses import replace

import pytest

from distil_ray.evaluation.deployment import Deployed, Figures
from distil_ray.evaluation.intrinsic import Intrinsic
from distil_ray.evaluation.scoreboard import (
    Scoreboard,
    Standing,
    cost_table,
    device_table,
    findings,
    score_table,
    text_table,
    to_html,
    to_json,
    to_markdown,
)
from distil_ray.evaluation.scores import Summary
from distil_ray.evaluation.speed import Speed, Timing


def standing(name, parameters, scores, milliseconds, seeds=3):
    tasks = {task: Summary(value, value - 1, value + 2, seeds) for task, value in scores.items()}
    speeds = [Speed("1 thread", Timing(milliseconds, 1.0, 9.0), Timing(1360.0, 95.5, 1500.0))]
    return Standing(name, f"/models/{name}", parameters, 4 * parameters, tasks, speeds)


@pytest.fixture
def board():
    teacher = standing("teacher", 110_000_000, {"cola": 50.0, "sst2": 90.0}, 20.0)
    student = standing("distilled", 66_000_000, {"cola": 45.0, "sst2": 88.0}, 12.5)
    return Scoreboard([teacher, student], {"finetuning": {"num_epochs": 3}}, "made here")


def test_smaller_faster_as_good(board):
    assert findings(board) == [
        "distilled: 40% fewer parameters, 1.60 times as fast (one row, one thread), 95.0% of the teacher's score."
    ]


def test_scores(board):
    assert score_table(board) == [
        ["model", "score", "retained", "cola", "sst2"],
        ["teacher", "70.0", "100.0%", "50.0 (49.0–52.0)", "90.0 (89.0–92.0)"],
        ["distilled", "66.5", "95.0%", "45.0 (44.0–47.0)", "88.0 (87.0–90.0)"],
    ]


def test_costs(board):
    assert cost_table(board) == [
        ["model", "parameters", "MB on disk", "ms a row (1 thread)", "rows/s in batches of 32 (1 thread)"],
        ["teacher", "110.0 M", "440.0", "20 (1–9)", "1,360 (95.5–1,500)"],
        ["distilled", "66.0 M", "264.0", "12.5 (1–9)", "1,360 (95.5–1,500)"],
    ]


def test_a_model_fine_tuned_in_two_ways_costs_the_same(board):
    again = replace(board.standings[1], name="distilled (D)")
    both = replace(board, standings=[*board.standings, again])
    assert cost_table(both) == cost_table(board)
    assert [row[0] for row in score_table(both)] == ["model", "teacher", "distilled", "distilled (D)"]


def test_markdown_json_and_page_agree(board):
    markdown, page = to_markdown(board), to_html(board)

    assert "| distilled | 66.5 | 95.0% | 45.0 (44.0–47.0) | 88.0 (87.0–90.0) |" in markdown
    assert "median of 3 seeds" in markdown
    assert "<td>66.5</td><td>95.0%</td>" in page
    assert page.count("<svg") == 2
    models = json.loads(to_json(board))["models"]
    assert models[1]["retained_percent"] == pytest.approx(95.0)
    assert models[1]["tasks"]["cola"] == {"median": 45.0, "low": 44.0, "high": 47.0, "num_seeds": 3}


def test_held_out_text(board):
    teacher = replace(board.teacher, intrinsic=Intrinsic(100, 1900, 2.9, 0.468, 31.2, None, None))
    student = replace(board.standings[1], intrinsic=Intrinsic(100, 1900, 3.1, 0.437, None, 0.27, 0.693))
    both = replace(board, standings=[teacher, student])
    assert text_table(both) == [
        ["model", "MLM loss", "accuracy", "pseudo-perplexity", "KL to teacher", "agrees with teacher"],
        ["teacher", "2.900", "46.8%", "31.2", "–", "–"],
        ["distilled", "3.100", "43.7%", "–", "0.270", "69.3%"],
    ]
    assert "1,900 masked pieces of 100 rows" in to_html(both)
    assert "Held-out text" not in to_html(board)


def test_files_for_a_device(board):
    files = [
        Deployed("PyTorch", 14_900_000, Timing(2.0, 1.0, 3.0), Figures(81.25, 0.0, 1.0)),
        Deployed("ONNX int8", 3_800_000, Timing(0.5, 0.4, 0.6), Figures(80.5, 0.27, 0.985)),
    ]
    found = replace(board, standings=[replace(board.teacher, on_device=files)], device_task="sst2")
    assert device_table(found)[1:] == [
        ["teacher", "PyTorch", "14.9", "2 (1–3)", "81.2", "100.0%", "0"],
        ["teacher", "ONNX int8", "3.8", "0.5 (0.4–0.6)", "80.5", "98.5%", "0.27"],
    ]
    assert "Fine-tuned for sst2 with seed 1; ONNX logits are within 0.0001 of PyTorch's." in to_markdown(found)


def test_one_seed_has_no_spread():
    board = Scoreboard([standing("teacher", 1, {"rte": 60.0}, 1.0, seeds=1)], {}, "")
    assert score_table(board)[1] == ["teacher", "60.0", "100.0%", "60.0"]
    assert "one seed" in to_markdown(board)
