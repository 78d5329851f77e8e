"""Records in words."""

import pytest
from records import EVALUATION, TRAINING, TRAINING_TEXT

from distil_ray.runs.figures import format_record, format_seconds


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (TRAINING, TRAINING_TEXT),
        (
            TRAINING | {"train/loss": None, "train/loss_ce": None, "eta_seconds": None},
            "step  1,200   30.0%  loss not finite (ce not finite  mlm 2.0000)  12,346 tokens/s",
        ),
        (
            {"step": 0, "run/progress": 0.0, "eta_seconds": None} | EVALUATION,
            "step      0    0.0%  held out: mlm_loss 2.5000, accuracy 51.2%, kl_to_teacher 0.7500, agreement 62.5%",
        ),
        (
            {"step": 7, "run/progress": 1.0, "eta_seconds": 0.0, "eval/mlm_loss": 2.5, "eval/mlm_accuracy": 0.5},
            "step      7  100.0%  held out: mlm_loss 2.5000, accuracy 50.0%",
        ),
        ({"step": 5, "run/progress": 0.5, "eval/mlm_loss": None}, "step      5   50.0%"),
    ],
)
def test_a_record_as_a_line(record, text):
    assert format_record(record) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_seconds_as_a_clock(seconds, text):
    assert format_seconds(seconds) == text
