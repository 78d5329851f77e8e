"""Sentences on comparisons: they say what the figures say, also when that is not what one hopes for."""

from distil_ray.comparison.cost import Cost
from distil_ray.comparison.findings import Contender, findings
from distil_ray.comparison.page import Row


def row(name: str, loss: float | None, accuracy: float | None = None, cost: Cost | None = None) -> Row:
    return Row(name, "", loss, accuracy, None, cost)


TEACHER = row("teacher", 3.0, 0.5, Cost(1000, 4.0, 16.0))
DISTILLED = Contender(row("a", 3.5, 0.4, Cost(600, 2.4, 10.0)), "distilled")
MLM_ONLY = Contender(row("b", 3.75), "teacher's layers, MLM only")
SCRATCH = Contender(row("c", 4.25), "random weights, MLM only")


def test_what_distilling_and_the_start_are_worth():
    assert findings(TEACHER, [DISTILLED, MLM_ONLY, SCRATCH]) == [
        "a against its teacher: 40% fewer parameters, an encoder that is 60% faster on this CPU, "
        "80% of its held-out accuracy.",
        "The teacher's losses lower the held-out MLM loss: 3.500 against 3.750 for the same start without them "
        "(-0.250).",
        "The teacher's layers as a start lower the held-out MLM loss: 3.750 against 4.250 for random weights (-0.500).",
    ]


def test_a_loss_is_admitted():
    worse = Contender(row("a", 4.0), "distilled")
    assert findings(None, [worse, MLM_ONLY]) == [
        "The teacher's losses do not lower the held-out MLM loss: 4.000 against 3.750 for the same start without them "
        "(+0.250)."
    ]


def test_the_best_of_several_stands_for_its_kind_and_one_without_figures_for_none():
    sentences = findings(None, [Contender(row("x", None), "distilled"), DISTILLED, SCRATCH])
    assert sentences == [
        "Losses and layers of the teacher together lower the held-out MLM loss: 3.500 against 4.250 for random weights "
        "(-0.750)."
    ]
    assert findings(TEACHER, [Contender(row("x", None), "distilled"), MLM_ONLY]) == []
    assert findings(None, []) == []
