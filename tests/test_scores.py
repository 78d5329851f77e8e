"""Metrics agree with values worked out by hand; medians and what is undefined."""

import numpy as np
import pytest

from distil_ray.evaluation.scores import macro, score, summarise

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
    assert summarise([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0, 3)
    assert macro([50.0, 70.0]) == 60.0
