"""What a comparison of runs says of their text."""

from training_parts import small_config

from distil_ray.evaluation.comparison import ModelRow, _of_the_text, figures_table, findings
from distil_ray.evaluation.speed import Cost
from distil_ray.reporting.plots import line_chart
from distil_ray.runs.storage import RunFolder
from distil_ray.training.history import History


def history(tmp_path, **counts):
    record = {"step": 1, **{f"data/{name}": count for name, count in counts.items()}}
    folder, config = RunFolder(str(tmp_path), "small"), small_config()
    return History(folder, config, {}, {}, {}, None, records=[record], digests=[], is_finished=False)


def test_text_that_could_not_be_used_is_remarked_on(tmp_path):
    lost = history(tmp_path, documents=100, skipped_not_utf8=20, skipped_null=5, pieces=1000, unknown_pieces=100)
    name = lost.name
    assert list(_of_the_text([lost])) == [
        f"{name}: 25 of 100 documents skipped (25.0%): 20 not UTF-8, 5 null.",
        f"{name}: warning: 21.1% of the documents that hold something cannot be used (warned of above "
        "data.warn_skipped_fraction = 0.01): 25 of 100 documents skipped (25.0%): 20 not UTF-8, 5 null.",
        f"{name}: warning: 10.0% of the pieces are [UNK], from which nothing is learned: the tokenizer does not know "
        "this text's language or script; take a teacher or a vocabulary that does.",
    ]
    assert list(_of_the_text([history(tmp_path, documents=100, pieces=1000)])) == []
    assert list(_of_the_text([history(tmp_path, skipped_documents=3)])) == []  # of a version that counted only these


def row(name, loss, kind="distilled", accuracy=None, cost=None) -> ModelRow:
    return ModelRow(name, "", kind, loss, accuracy, None, cost)


TEACHER = row("teacher", 3.0, "teacher", 0.5, Cost(1000, 4.0, 16.0))
DISTILLED = row("a", 3.5, "distilled", 0.4, Cost(600, 2.4, 10.0))
MLM_ONLY = row("b", 3.75, "teacher's layers, MLM only")
SCRATCH = row("c", 4.25, "random weights, MLM only")


def test_what_distilling_and_the_start_are_worth():
    assert findings(TEACHER, [DISTILLED, MLM_ONLY, SCRATCH]) == [
        "a against its teacher: 40% fewer parameters, an encoder that is 60% faster on this CPU, "
        "80% of its held-out accuracy.",
        "The teacher's losses lower the held-out MLM loss: 3.500 against 3.750 for the same start without them "
        "(-0.250).",
        "The teacher's layers as a start lower the held-out MLM loss: 3.750 against 4.250 for random weights (-0.500).",
    ]


def test_a_loss_is_admitted():
    worse = row("a", 4.0, "distilled")
    assert findings(None, [worse, MLM_ONLY]) == [
        "The teacher's losses do not lower the held-out MLM loss: 4.000 against 3.750 for the same start without them "
        "(+0.250)."
    ]


def test_the_best_of_several_stands_for_its_kind_and_one_without_figures_for_none():
    sentences = findings(None, [row("x", None, "distilled"), DISTILLED, SCRATCH])
    assert sentences == [
        "Losses and layers of the teacher together lower the held-out MLM loss: 3.500 against 4.250 for random weights "
        "(-0.750)."
    ]
    assert findings(TEACHER, [row("x", None, "distilled"), MLM_ONLY]) == []
    assert findings(None, []) == []


def test_figures_that_are_not_known_are_dashes():
    known = ModelRow("a", "path/to/it", "teacher", 2.5, 0.5, 0.625, Cost(5_000_000, 20.0, 9.87))
    _, first, second = figures_table([known, row("b", None)]).cells
    assert first[0] == ("a", "path/to/it", None, False)
    assert [cell.text for cell in first[1:]] == ["2.500", "50.0%", "62.5%", "5,000,000", "20.0", "9.87"]
    assert [cell.text for cell in second] == ["b", *"––––––"]


def test_charts_are_the_same_each_time_and_show_their_data():
    def chart() -> str:
        return line_chart({"one": [(0, 1.0), (1000, 3.0)], "none": []}, x_label="tokens", y_label="loss", levels={})

    assert chart() == chart()
    for text in ("one", "tokens", "loss", ">1k<"):
        assert text in chart()
