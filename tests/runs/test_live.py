"""Curves in letters, and live figures for a terminal of few letters."""

import io

import pytest
from records import EVALUATION, TRAINING
from rich.console import Console as Terminal

from distil_ray.runs.live import LiveFigures, curve


@pytest.mark.parametrize(
    ("values", "letters"),
    [([2.5], "▁"), ([3, 3, 3], "▁▁▁"), ([4, 2, 0.5], "█▄▁"), (list(range(8)), "▁▂▃▄▅▆▇█"), ([-1, 0, -0.5], "▁█▅")],
)
def test_a_curve_rises_from_its_lowest_to_its_highest_value(values, letters):
    assert curve(values) == letters


def test_of_a_long_curve_first_and_last_are_kept():
    letters = curve([9.0, *([5.0] * 500), 1.0], num_points=10)
    assert letters == "█▅▅▅▅▅▅▅▅▁"


def drawn(figures, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Terminal(file=stream, width=100).print(figures)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_a_terminal_without_unicode_gets_no_curves():
    figures = LiveFigures()
    figures.update(TRAINING | EVALUATION)
    assert "▁" in drawn(figures, "utf-8")
    plain = drawn(figures, "ascii")
    assert "held out: accuracy" in plain
    assert "51.2%" in plain
    assert plain.isascii()


def test_what_a_record_lacks_stays():
    figures = LiveFigures()
    figures.update({"step": 0, "run/progress": 0.0, "eta_seconds": None} | EVALUATION)
    assert "loss 1" not in drawn(figures, "utf-8")
    figures.update(TRAINING)
    text = drawn(figures, "utf-8")
    assert "loss 1.2500 (ce 1.5000  mlm 2.0000)" in text
    assert "mlm_loss" in text
