"""Metrics agree with values worked out by hand; medians, what is undefined, and what scores are of."""

import numpy as np
import pytest
import torch
from glue_rows import write_glue
from small_models import small_model
from training_parts import save_model

from distil_ray.errors import InputError
from distil_ray.evaluation.finetuning import Finetuner, SoftTargets
from distil_ray.evaluation.kinds import Spans, facts_of, macro, score, squad_scores, summarize
from distil_ray.evaluation.protocol import Finetuning, OwnTask, SecondStep, load_protocol
from distil_ray.evaluation.tasks import TASKS, Answers, Rows, chosen_tasks, own_task, read_tasks
from distil_ray.models.loading import load_tokenizer

LABELS, PREDICTIONS = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 1])  # tp 2, fn 1, fp 1, tn 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("accuracy", 60.0), ("f1", 100 * 2 * 2 / (2 * 2 + 1 + 1)), ("matthews", 100 * (2 * 1 - 1 * 1) / 6)],
)
def test_classes(metric, expected):
    assert score([metric], LABELS, PREDICTIONS) == {metric: pytest.approx(expected)}


def test_of_more_than_two_classes_f1_is_the_mean_over_them():
    labels, predictions = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2])
    assert score(["f1"], labels, predictions, num_classes=3) == {"f1": pytest.approx(100 * (1 + 0 + 0.8) / 3)}
    labels = np.array([0, 1, 1, 1])  # of a split that lacks the third class, which is predicted nevertheless
    assert score(["f1"], labels, predictions, num_classes=3) == {"f1": pytest.approx(100 * (1 + 0 + 0) / 3)}


def test_numbers():
    labels, predictions = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 4.0, 9.0])
    found = score(["pearson", "spearman"], labels, predictions)

    assert found["spearman"] == pytest.approx(100.0)
    assert found["pearson"] == pytest.approx(100 * 15 / np.sqrt(5 * 49))


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman", "f1"])
def test_constant_predictions_score_nothing(metric):
    assert score([metric], np.array([0, 1, 1]), np.zeros(3)) == {metric: 0.0}


def test_medians_and_the_macro_score():
    assert summarize([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0, 3, (3.0, 1.0, 10.0))
    assert macro([50.0, 70.0]) == 60.0


TASK = own_task("squad", OwnTask(kind="span", hub="x"))
QUICK = Finetuning(learning_rate=3e-3, num_epochs=6, batch_size=16, max_seq_length=16)
WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), small_model("bert"))


def questions(num_rows, seed, with_none=False):
    """The one word of the first half (w1 … w9) in a context of others; nothing if there is none."""
    generator = np.random.default_rng(seed)
    texts, answers = [], []
    for _ in range(num_rows):
        words = [WORDS[i] for i in 10 + generator.permutation(10)[:9]]
        place = int(generator.integers(0, 9))
        has_answer = not with_none or generator.random() < 0.5
        if has_answer:
            words[place] = WORDS[int(generator.integers(1, 10))]
        start = sum(len(word) + 1 for word in words[:place])
        texts.append(("w0", " ".join(words)))
        answers.append(Answers((words[place],), (start,)) if has_answer else Answers((), ()))
    return Rows(texts, answers)


def perfect(features):
    """The logits of a model that knows the targets."""
    outputs = []
    for length, (start, end) in zip(features.lengths, features.targets.tolist(), strict=True):
        logits = np.zeros((2, length), dtype=np.float32)
        logits[0, start] = logits[1, end] = 10.0
        outputs.append(logits)
    return outputs


@pytest.mark.parametrize("with_none", [False, True])
def test_the_targets_lead_back_to_the_answers(folder, with_none):
    rows, spans = questions(40, 0, with_none), Spans(TASK)
    features = spans.encode(load_tokenizer(folder), rows, 12)

    assert len(features.inputs) > 40  # contexts are cut into windows
    assert max(features.lengths) <= 12
    found = spans.predictions(rows, features, perfect(features))
    assert found == [answers.texts[0] if answers.texts else "" for answers in rows.labels]
    assert spans.score(rows, features, perfect(features)) == {"exact_match": 100.0, "f1": 100.0}


def test_windows_hold_every_piece_of_the_context(folder):
    rows = questions(5, 0)
    features = Spans(TASK).encode(load_tokenizer(folder), rows, 12)
    for row, (_, context) in enumerate(rows.texts):
        kept = {place for window in features.windows if window.row == row for place in map(tuple, window.offsets)}
        assert {context[start:stop] for start, stop in kept if stop} == set(context.split())


def test_spans_are_in_order_within_the_context_and_not_too_long():
    task, rows = Spans(TASK), Rows([("q", "a b c")], [Answers(("b",), (2,))])

    class Given:  # a window of [CLS] q [SEP] a b c [SEP]
        offsets = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [2, 3], [4, 5], [0, 0]])
        row = 0

    class Features:
        windows = (Given(),)

    logits = np.zeros((2, 7), dtype=np.float32)
    logits[0, [1, 5]], logits[1, [1, 4]] = (99, 5), (99, 5)  # the question's piece, and an end before a start
    logits[0, 4] = 1
    assert task.predictions(rows, Features(), [logits]) == ["b"]


def test_no_answer_competes_only_where_there_are_such_questions(folder):
    rows, spans = questions(4, 0), Spans(TASK)
    features = spans.encode(load_tokenizer(folder), rows, 16)
    no_answer = [np.eye(1, length, dtype=np.float32).repeat(2, 0) * 9 for length in features.lengths]

    assert all(spans.predictions(rows, features, no_answer))
    assert spans.predictions(Rows(rows.texts, [Answers((), ())] * 4), features, no_answer) == [""] * 4


def test_a_model_learns_to_answer_and_another_from_it(folder):
    train, validation = questions(160, 0), questions(40, 1)

    def finetuner(seed):
        model, cpu = Spans(TASK).load(folder, seed), torch.device("cpu")
        return Finetuner(model, load_tokenizer(folder), TASK, QUICK, seed=seed, device=cpu)

    teacher = finetuner(1)
    untrained = teacher.score({"validation": validation})["score"]
    teacher.train({"train": train})
    learned = teacher.score({"validation": validation})
    assert list(learned) == ["validation/exact_match", "validation/f1", "score"]
    assert learned["score"] > untrained + 25

    misleading = Rows(train.texts, [Answers((), ())] * len(train.texts))
    student = finetuner(2)
    student.train({"train": misleading}, SoftTargets(teacher.logits(train), SecondStep(alpha=1.0)))
    assert student.score({"validation": validation})["score"] > untrained + 20


def test_a_question_that_leaves_no_room(folder):
    rows = Rows([(" ".join(["w1"] * 12), "w2 w3"), ("w1", "w2")], [Answers((), ())] * 2)
    for use in (Spans(TASK).encode, Spans(TASK).check):
        with pytest.raises(InputError, match=r"squad: its longest question has 12 pieces.*expected \d+ or more"):
            use(load_tokenizer(folder), rows, 16)
    Spans(TASK).check(load_tokenizer(folder), rows, 24)
    Spans(TASK).check(load_tokenizer(folder), Rows(rows.texts[1:], rows.labels[1:]), 16)


def test_the_metrics_are_those_of_the_task():
    task = own_task("squad", OwnTask(kind="span", hub="x", metrics=("exact_match",)))
    rows = Rows([("q", "a b c")] * 2, [Answers((), ()), Answers(("b",), (2,))])
    assert Spans(task).constant_score(rows, rows) == {"exact_match": 50.0}
    assert Spans(TASK).constant_score(rows, rows) == {"exact_match": 50.0, "f1": 50.0}


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The  Eiffel-Tower!", ["eiffeltower"], 100, 100),  # case, articles, punctuation and blanks do not count
        ("theatre", ["a theatre"], 100, 100),
        ("in Paris, France", ["Paris", "the Paris of France"], 0, 100 * 2 * 2 / 6),  # the answer that fits best
        ("to be or be", ["be be be"], 0, 100 * 2 * 2 / 7),  # a word counts as often as both have it
        ("", [], 100, 100),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("the", ["an"], 100, 100),  # nothing is left of either
        ("yes", ["no"], 0, 0),
    ],
)
def test_squads_official_metrics(prediction, answers, exact, f1):
    assert squad_scores([prediction], [answers]) == pytest.approx({"exact_match": exact, "f1": f1})
    both = squad_scores([prediction, "right"], [answers, ["right"]])
    assert both == pytest.approx({"exact_match": (exact + 100) / 2, "f1": (f1 + 100) / 2})


# --------------------------------------------------------------------------------------------------- facts


def test_facts_are_those_of_rows_and_protocol(tmp_path):
    protocol = load_protocol([], ["finetuning.max_train_rows=40", "finetuning_of.stsb.num_epochs=7"])
    tasks, data = read_tasks(chosen_tasks(["sst2", "stsb"], str(write_glue(tmp_path)), {}), protocol)
    sst2, stsb = (facts_of(task, data[task.name], protocol.finetuning_on(task.name)) for task in tasks)

    assert (sst2.num_train_rows, sst2.num_rows_there, sst2.num_validation_rows, sst2.num_epochs) == (40, 96, 96, 3)
    assert sst2.metrics == ("accuracy",)
    assert stsb.num_epochs == 7
    assert stsb.constant_score == 0.0  # a correlation with one number for all rows


def labelled(*labels):
    return Rows([("a",)] * len(labels), np.array(labels))


def test_the_constant_answer_is_the_commonest_class_of_the_training_rows():
    splits = {"train": labelled(0, 1, 1), "validation": labelled(1, 1, 1, 0)}
    accuracy, f1 = 75.0, 100 * 6 / 7
    assert facts_of(TASKS["mrpc"], splits, Finetuning()).constant_score == pytest.approx((accuracy + f1) / 2)
    both = {"train": labelled(2, 0, 0), "matched": labelled(0, 0), "mismatched": labelled(2, 1)}
    facts = facts_of(TASKS["mnli"], both, Finetuning())
    assert (facts.constant_score, facts.num_validation_rows) == (50.0, 4)


def test_the_constant_answer_to_questions_is_none():
    task = own_task("squad", OwnTask(kind="span", hub="x"))
    rows = Rows([("q", "blue")] * 4, [Answers(("blue",), (0,)), Answers((), ()), Answers((), ()), Answers((), ())])
    assert facts_of(task, {"train": rows, "validation": rows}, Finetuning()).constant_score == 75.0
