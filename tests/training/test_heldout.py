"""Held-out figures against a plain evaluation of the models' own logits."""

from collections import Counter

import pytest
import torch
from processes import run_workers
from torch.nn import functional as F
from training_parts import CPU, K, random_rows, small_config, small_pair, train

from distil_ray.models.student import build_student
from distil_ray.training.heldout import HeldOut
from distil_ray.training.learner import Learner
from distil_ray.training.world import World

NUM_ROWS = 13


def similar_pair(dropout=0.0):
    """A teacher, and a student that agrees with it here and there."""
    teacher, _ = small_pair(dropout=dropout)
    return teacher, build_student(teacher, layers=1, architecture="same", init="teacher", seed=0)


def learner_of(config, dropout=0.0):
    return Learner(config, *similar_pair(dropout), CPU, config.runtime.precision)


def heldout(rows, rank=0, world_size=1, batch_size=4):
    return HeldOut(rows, World(rank, world_size, CPU, None, [], None), batch_size)


def plain_figures(student, teacher, rows):
    """Every figure from both models' logits at all positions."""
    input_ids, positions, labels = (
        torch.from_numpy(rows[name].astype("int64")) for name in ("input_ids", "masked_positions", "masked_labels")
    )
    masked = torch.zeros(input_ids.shape, dtype=torch.bool).scatter(1, positions, True)
    labels = labels.flatten()
    with torch.no_grad():
        logits, teacher_logits = (model.eval()(input_ids=input_ids).logits[masked] for model in (student, teacher))
    log_p, log_q = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    figures = {
        "eval/mlm_loss": F.nll_loss(log_p, labels),
        "eval/mlm_accuracy": (logits.argmax(-1) == labels).float().mean(),
        "eval/kl_to_teacher": (log_q.exp() * (log_q - log_p)).sum(-1).mean(),
        "eval/teacher_agreement": (logits.argmax(-1) == teacher_logits.argmax(-1)).float().mean(),
        "eval/teacher_mlm_loss": F.nll_loss(log_q, labels),
        "eval/teacher_mlm_accuracy": (teacher_logits.argmax(-1) == labels).float().mean(),
    }
    return {name: figure.item() for name, figure in figures.items()}


def rows_with_hits(num_rows=NUM_ROWS):
    """Rows of which the models get some labels right, so that no accuracy is zero."""
    rows = random_rows(num_rows)
    input_ids = torch.from_numpy(rows["input_ids"].astype("int64"))
    for model, third in zip(similar_pair(), (0, 1), strict=True):
        with torch.no_grad():
            guesses = model(input_ids=input_ids).logits.argmax(-1)
        guesses = guesses.gather(1, torch.from_numpy(rows["masked_positions"].astype("int64"))).numpy()
        rows["masked_labels"][third::3] = guesses[third::3]
    return rows


def test_figures_are_those_of_a_plain_evaluation():
    rows = rows_with_hits()
    teacher, student = similar_pair(dropout=0.3)  # which must be off
    figures = heldout(rows).evaluate(Learner(small_config(), teacher, student, CPU, "fp32"))
    expected = plain_figures(student, teacher, rows)
    assert figures == pytest.approx(expected, rel=1e-5)
    assert all(figure > 0 for figure in figures.values())
    assert figures["eval/mlm_accuracy"] != figures["eval/teacher_mlm_accuracy"]


def test_losses_inside_the_models_are_those_of_one_pass_over_all_rows():
    rows = rows_with_hits()
    teacher, student = similar_pair(dropout=0.3)  # which must be off
    config = small_config(eval={"relation_loss": True, "hidden_loss": True}, distill={"relation_heads": 2})
    learner = Learner(config, teacher, student, CPU, "fp32")
    figures = heldout(rows).evaluate(learner)
    learner.student.eval()
    sums = learner.compare(torch.from_numpy(rows["input_ids"].astype("int64"))).sums
    per_token = {term: float(value) / rows["input_ids"].size for term, value in sums.items()}
    assert figures["eval/relation_loss"] == pytest.approx(per_token["relations"], rel=1e-5)
    assert figures["eval/hidden_loss"] == pytest.approx(per_token["hidden"], rel=1e-5)
    assert min(per_token.values()) > 1e-3
    plain = heldout(rows).evaluate(learner_of(small_config()))
    assert plain.keys() == figures.keys() - {"eval/relation_loss", "eval/hidden_loss"}
    weighted = small_config(distill={"alpha_hidden": 1.0})
    assert "eval/hidden_loss" in heldout(rows).evaluate(learner_of(weighted))


@pytest.mark.parametrize("weights", [{}, {"alpha_hidden": 1.0}])
def test_each_model_encodes_a_batch_once(weights):
    learner = learner_of(small_config(distill=weights))
    counts = Counter()
    for model in (learner.teacher, learner.student):
        model.base_model.register_forward_hook(lambda module, *_: counts.update([id(module)]))
    heldout(rows_with_hits(), batch_size=100).evaluate(learner)
    assert list(counts.values()) == [1, 1]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_changes_nothing(batch_size):
    learner = learner_of(small_config())
    rows = rows_with_hits()
    assert heldout(rows, batch_size=batch_size).evaluate(learner) == pytest.approx(
        heldout(rows).evaluate(learner), rel=1e-6
    )


def evaluate_as_worker(rank, world_size, rows):
    return heldout(rows, rank, world_size).evaluate(learner_of(small_config()))


@pytest.mark.parametrize("num_rows", [NUM_ROWS, 1])  # with one row, the second worker has none
def test_two_workers_find_what_one_finds(num_rows):
    rows = rows_with_hits(num_rows)
    first, second = run_workers(evaluate_as_worker, 2, rows)
    assert first == second
    assert first == pytest.approx(heldout(rows).evaluate(learner_of(small_config())), rel=1e-6)


def test_evaluation_leaves_the_training_as_it_is():
    config = small_config()
    learner, undisturbed = learner_of(config, dropout=0.2), learner_of(config, dropout=0.2)
    evaluation = heldout(rows_with_hits())
    before = evaluation.evaluate(learner)
    assert learner.student.training
    assert not learner.teacher.training
    assert train(learner, config, range(3)) == train(undisturbed, config, range(3))
    after = evaluation.evaluate(learner)
    assert after["eval/kl_to_teacher"] < before["eval/kl_to_teacher"]
    assert after == evaluation.evaluate(learner)


def test_the_teachers_own_figures_are_found_once():
    learner = learner_of(small_config())
    evaluation = heldout(rows_with_hits())
    first = evaluation.evaluate(learner)
    learner.teacher.get_output_embeddings().weight.data.normal_(generator=torch.Generator().manual_seed(0))
    second = evaluation.evaluate(learner)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"eval/kl_to_teacher", "eval/teacher_agreement"}
    assert second.keys() == first.keys()


@pytest.mark.parametrize(("max_hidden", "num_passes"), [(10**6, 3), (2 * 5 * K * 32, 4), (0, 6)])
def test_the_teachers_hidden_states_are_found_once_if_there_is_room(monkeypatch, max_hidden, num_passes):
    monkeypatch.setattr("distil_ray.training.heldout.MAX_HIDDEN", max_hidden)
    learner, rows, passes = learner_of(small_config()), rows_with_hits(12), []
    expected = heldout(rows).evaluate(learner)
    learner.teacher.base_model.register_forward_hook(lambda *_: passes.append(1))
    evaluation = heldout(rows, batch_size=5)
    assert evaluation.evaluate(learner) == evaluation.evaluate(learner) == pytest.approx(expected, rel=1e-6)
    assert len(passes) == num_passes


def test_without_a_teacher_there_are_the_students_figures():
    config = small_config(
        teacher=None, student__path="/unused", distill={"alpha_ce": 0.0, "alpha_mlm": 1.0, "alpha_cos": 0.0}
    )
    teacher, student = similar_pair()
    rows = rows_with_hits()
    figures = heldout(rows).evaluate(Learner(config, None, student, CPU, "fp32"))
    expected = plain_figures(student, teacher, rows)
    names = ("eval/mlm_loss", "eval/mlm_accuracy")
    assert figures == pytest.approx({name: expected[name] for name in names}, rel=1e-5)


def test_bf16_is_close():
    rows = rows_with_hits()
    exact = heldout(rows).evaluate(learner_of(small_config()))
    figures = heldout(rows).evaluate(learner_of(small_config(runtime__precision="bf16")))
    assert figures["eval/mlm_loss"] == pytest.approx(exact["eval/mlm_loss"], rel=0.01)
    assert figures != exact


def test_without_rows_there_is_nothing_to_evaluate():
    assert heldout({}).evaluate(learner_of(small_config())) == {}
    assert heldout(random_rows(0)).evaluate(learner_of(small_config())) == {}
