"""Predictions -> figures: official metrics, medians over seeds, what a student retains."""

import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics

Array = npt.NDArray[Any]

METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": lambda labels, predictions: metrics.f1_score(labels, predictions, average="binary", zero_division=0.0),
    "macro_f1": lambda labels, predictions: metrics.f1_score(labels, predictions, average="macro", zero_division=0.0),
    "matthews": metrics.matthews_corrcoef,
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions).statistic,
    "spearman": lambda labels, predictions: stats.spearmanr(labels, predictions).statistic,
}


def score(names: Sequence[str], labels: Array, predictions: Array, num_classes: int = 2) -> dict[str, float]:
    """The metrics of these names, in percent. One that is not defined, as for constant predictions, is 0.

    F1 is that of class 1, or the mean over the classes if there are more than two.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, about constant input
        found = {}
        for name in names:
            metric = METRICS["macro_f1" if name == "f1" and num_classes > 2 else name]
            found[name] = float(metric(labels, predictions))
    return {name: 100 * value if np.isfinite(value) else 0.0 for name, value in found.items()}


class Summary(NamedTuple):
    """Scores over ``num_seeds`` seeds: the median, and the lowest and the highest of them."""

    median: float
    low: float
    high: float
    num_seeds: int


def summarise(values: Sequence[float]) -> Summary:
    """Summarise at least one value."""
    return Summary(statistics.median(values), min(values), max(values), len(values))


def macro(medians: Iterable[float]) -> float:
    """The mean over tasks of the tasks' medians, as the paper's table 1 has it."""
    return statistics.fmean(medians)
