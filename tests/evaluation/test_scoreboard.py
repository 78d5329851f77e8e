"""The tables say what was found, in the paper's layout."""

import json
from dataclasses import replace

import pytest
from browser import assert_readable

from distil_ray.evaluation.deployment import Deployed, Figures
from distil_ray.evaluation.intrinsic import Intrinsic
from distil_ray.evaluation.kinds import TaskFacts, summarize
from distil_ray.evaluation.scoreboard import (
    ModelResult,
    Scoreboard,
    cost_table,
    device_table,
    facts_table,
    findings,
    rate_table,
    report_on,
    score_table,
    text_table,
)
from distil_ray.evaluation.speed import Speed, Timing


def result(name, parameters, scores, milliseconds, seeds=3):
    by_seed = {task: [value, value - 1, value + 2][:seeds] for task, value in scores.items()}
    tasks = {task: summarize(values) for task, values in by_seed.items()}
    speeds = [Speed("1 thread", Timing(milliseconds, 1.0, 9.0), Timing(1360.0, 95.5, 1500.0))]
    return ModelResult(name, f"/models/{name}", parameters, 4 * parameters, tasks, speeds)


@pytest.fixture
def board():
    teacher = result("teacher", 110_000_000, {"cola": 50.0, "sst2": 90.0}, 20.0)
    student = result("distilled", 66_000_000, {"cola": 45.0, "sst2": 88.0}, 12.5)
    return Scoreboard([teacher, student], {"finetuning": {"num_epochs": 3}}, "made here")


def test_smaller_faster_as_good(board):
    assert findings(board) == [
        "distilled: 40% fewer parameters, 1.60 times as fast (one row, one thread), 95.0% of the teacher's score."
    ]


def test_scores(board):
    assert score_table(board) == [
        ["model", "score", "retained", "cola", "sst2"],
        ["teacher", "70.0", "100.0%", "50.0 (49.0–52.0)", "90.0 (89.0–92.0)"],
        ["distilled", "66.5", "95.0% (94.9–95.1)", "45.0 (44.0–47.0)", "88.0 (87.0–90.0)"],
    ]


def test_costs(board):
    assert cost_table(board) == [
        ["model", "parameters", "MB on disk", "ms per row (1 thread)", "rows/s in batches of 32 (1 thread)"],
        ["teacher", "110.0 M", "440.0", "20 (1–9)", "1,360 (95.5–1,500)"],
        ["distilled", "66.0 M", "264.0", "12.5 (1–9)", "1,360 (95.5–1,500)"],
    ]


def test_a_model_fine_tuned_in_two_ways_costs_the_same(board):
    again = replace(board.results[1], name="distilled (D)")
    both = replace(board, results=[*board.results, again])
    assert cost_table(both) == cost_table(board)
    assert [row[0] for row in score_table(both)] == ["model", "teacher", "distilled", "distilled (D)"]


def test_markdown_json_and_page_agree(board):
    markdown, page = report_on(board).to_markdown(), report_on(board).to_html()

    assert "| distilled | 66.5 | 95.0% (94.9–95.1) | 45.0 (44.0–47.0) | 88.0 (87.0–90.0) |" in markdown
    assert "median of 3 seeds" in markdown
    assert "<td>66.5</td><td>95.0% (94.9–95.1)</td>" in page
    assert page.count("<svg") == 2
    models = json.loads(report_on(board).to_json())["models"]
    assert models[1]["retained_percent"] == pytest.approx(95.0)
    assert models[1]["tasks"]["cola"] == {
        **{"median": 45.0, "low": 44.0, "high": 47.0, "num_seeds": 3},
        "values": [45.0, 44.0, 47.0],
    }
    assert models[1]["retained_percent_by_seed"] == pytest.approx([95.0, 100 * 65.5 / 69, 100 * 68.5 / 72])


@pytest.mark.slow
def test_the_page_is_readable_in_a_browser(board, tmp_path):
    assert_readable(report_on(board).to_html(), tmp_path, num_charts=2)


def test_held_out_text(board):
    teacher = replace(board.teacher, text=Intrinsic(100, 1900, 2.9, 0.468, 31.2, None, None))
    student = replace(board.results[1], text=Intrinsic(100, 1900, 3.1, 0.437, None, 0.27, 0.693))
    both = replace(board, results=[teacher, student])
    assert text_table(both) == [
        ["model", "MLM loss", "accuracy", "pseudo-perplexity", "KL to teacher", "agrees with teacher"],
        ["teacher", "2.900", "46.8%", "31.2", "–", "–"],
        ["distilled", "3.100", "43.7%", "–", "0.270", "69.3%"],
    ]
    assert "1,900 masked pieces of 100 rows" in report_on(both).to_html()
    assert "<h2>Held-out text</h2>" not in report_on(board).to_html()


def test_files_for_a_device(board):
    files = [
        Deployed("PyTorch", 14_900_000, Timing(2.0, 1.0, 3.0), Figures(81.25, 0.0, 1.0)),
        Deployed("ONNX int8", 3_800_000, Timing(0.5, 0.4, 0.6), Figures(80.5, 0.27, 0.985)),
    ]
    found = replace(board, results=[replace(board.teacher, on_device=files)], device_task="sst2")
    assert device_table(found)[1:] == [
        ["teacher", "PyTorch", "14.9", "2 (1–3)", "81.2", "100.0%", "0"],
        ["teacher", "ONNX int8", "3.8", "0.5 (0.4–0.6)", "80.5", "98.5%", "0.27"],
    ]
    assert (
        "Fine-tuned for sst2 with seed 1; ONNX logits are within 0.0001 of PyTorch's." in report_on(found).to_markdown()
    )


def test_one_seed_has_no_spread():
    board = Scoreboard([result("teacher", 1, {"rte": 60.0}, 1.0, seeds=1)], {}, "")
    assert score_table(board)[1] == ["teacher", "60.0", "100.0%", "60.0"]
    assert "one seed" in report_on(board).to_markdown()
    facts = TaskFacts("similarity", ("spearman",), 0, 0, 1500, 0, (2e-5,), 32, 128, 0.0)
    untuned = replace(board, facts={"rte": facts})
    assert "seed" not in report_on(untuned).to_markdown()


@pytest.fixture
def with_facts(board):
    facts = {
        "cola": TaskFacts("classification", ("matthews",), 8551, 8551, 1043, 3, (2e-5,), 32, 128, 0.0),
        "sst2": TaskFacts("classification", ("accuracy", "f1"), 1000, 67349, 872, 4, (3e-4,), 16, 64, 90.0),
    }
    return replace(board, facts=facts)


def test_what_scores_are_of(with_facts):
    assert facts_table(with_facts.facts) == [
        ["task", "score", "training rows", "validation rows", "epochs", "learning rate", "batch", "pieces per row"],
        ["cola", "Matthews correlation", "8,551", "1,043", "3", "2e-05", "32", "up to 128"],
        ["sst2", "accuracy and F1", "1,000 of 67,349", "872", "4", "0.0003", "16", "up to 64"],
    ]
    assert "<td>1,000 of 67,349</td>" in report_on(with_facts).to_html()
    assert "| cola | Matthews correlation | 8,551 |" in report_on(with_facts).to_markdown()
    assert json.loads(report_on(with_facts).to_json())["tasks"]["sst2"]["constant_score"] == 90.0


def test_the_learning_rates_that_models_took_of_several(with_facts):
    teacher, student = with_facts.results
    several = with_facts.facts["cola"]._replace(learning_rates=(2e-5, 3e-4))
    board = replace(
        with_facts,
        results=[replace(teacher, learning_rates={"cola": 2e-5}), replace(student, learning_rates={"cola": 3e-4})],
        facts={**with_facts.facts, "cola": several},
    )
    assert facts_table(board.facts)[1][5] == "2e-05, 0.0003"
    assert rate_table(board) == [["learning rate", "cola"], ["teacher", "2e-05"], ["distilled", "0.0003"]]
    page = report_on(board).to_markdown()
    assert "the same for every model but for the learning rate." in page
    assert "did best on a tenth of the training rows, which was set aside" in page
    assert "set aside" not in report_on(with_facts).to_markdown()


def test_a_constant_answer_stands_beside_the_scores_and_tasks_that_the_teacher_has_not_learned_are_marked(with_facts):
    table = score_table(with_facts)
    assert table[0] == ["model", "score", "retained", "score without †", "retained without †", "cola", "sst2 †"]
    assert table[2][3:5] == ["45.0", "90.0% (89.8–90.4)"]
    assert table[-1] == ["one answer for all rows", "45.0", "64.3%", "0.0", "0.0%", "0.0", "90.0"]
    assert findings(with_facts)[0].endswith("95.0% of the teacher's score (90.0% without sst2).")
    assert json.loads(report_on(with_facts).to_json())["models"][1]["score_without_not_learned"] == 45.0
    assert findings(with_facts)[-1].startswith("On sst2 the teacher does not beat one answer for all rows, ")
    assert "† The teacher does not beat that." in report_on(with_facts).to_markdown()

    learned = replace(
        with_facts, facts={**with_facts.facts, "sst2": with_facts.facts["sst2"]._replace(constant_score=50.9)}
    )
    assert "†" not in report_on(learned).to_markdown()
    assert len(findings(learned)) == 1


def test_the_score_is_of_tasks_that_were_fine_tuned_for(with_facts):
    """A similarity is of another kind: the paper's score has none."""
    similarity = TaskFacts("similarity", ("spearman",), 0, 0, 1500, 0, (2e-5,), 32, 128, 0.0)
    only = replace(
        with_facts,
        results=[replace(one, untuned=["sst2"]) for one in with_facts.results],
        facts={**with_facts.facts, "sst2": similarity},
    )
    assert [one.score for one in only.results] == [50.0, 45.0]
    assert score_table(only)[2][:4] == ["distilled", "45.0", "90.0% (89.8–90.4)", "45.0 (44.0–47.0)"]
    assert "The score is the mean of cola, which models were fine-tuned for." in report_on(only).to_markdown()
    assert [replace(one, untuned=["cola", "sst2"]).score for one in only.results] == [70.0, 66.5]


def test_a_score_of_0_is_a_score():
    teacher, student = result("teacher", 10, {"cola": 50.0}, 1.0), result("student", 10, {"cola": 0.0}, 1.0)
    board = Scoreboard([teacher, student], {}, "")
    assert score_table(board)[2] == ["student", "0.0", "0.0% (-2.0–3.8)", "0.0 (-1.0–2.0)"]
    assert "0.0% of the teacher's score" in findings(board)[0]
    assert score_table(replace(board, results=[student, teacher]))[2][:3] == ["teacher", "50.0", "–"]


def test_number_formats_of_the_files_are_said(board):
    teacher, student = board.results
    both = replace(board, results=[replace(teacher, dtype="bf16"), replace(student, dtype="fp32")])
    assert [row[2] for row in cost_table(both)] == ["MB on disk", "440.0 (bf16)", "264.0 (fp32)"]
    assert "The files hold weights in different formats: compare parameters" in report_on(both).to_markdown()
    assert "different formats" not in report_on(board).to_markdown()


def test_two_commits_of_a_model_are_two_models(board):
    teacher, student = board.results
    both = replace(board, results=[replace(teacher, revision="1"), replace(student, path=teacher.path, revision="2")])
    assert [row[0] for row in cost_table(both)] == ["model", "teacher", "distilled"]


def test_rows_of_the_second_step_are_explained(board):
    again = replace(board.results[1], name="distilled (D)")
    both = replace(board, results=[*board.results, again], protocol={"second_step": {"temperature": 2.0, "alpha": 0.5}})
    note = "(D): also fine-tuned with the soft targets of the fine-tuned teacher (temperature 2, weight 0.5)"
    assert note in report_on(both).to_markdown()
