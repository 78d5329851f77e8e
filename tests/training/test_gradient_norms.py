"""Norms of gradients, read a step late."""

import math

import pytest
import torch

from distil_ray.training.checkpoint import TrainState
from distil_ray.training.gradient_norms import SKIPPED_UPDATES, GradientNorms


class Norm:
    """A scalar that notes when it is read."""

    def __init__(self, value, reads):
        self._value, self._reads = value, reads

    def item(self):
        self._reads.append(self._value)
        return self._value


def after(norms, values, reads=None):
    """Add the norms of the steps 1, 2, …"""
    for step, value in enumerate(values, 1):
        norms.add(TrainState(step), torch.tensor(value) if reads is None else Norm(value, reads))
    return norms


def test_a_norm_is_read_a_step_later_or_when_it_is_asked_for():
    reads = []
    norms = after(GradientNorms(TrainState()), [1.0, 2.0, 3.0], reads)
    assert reads == [1.0, 2.0]
    assert norms.latest == 2.0
    norms.settle(TrainState(3))
    norms.settle(TrainState(3))
    assert reads == [1.0, 2.0, 3.0]
    assert norms.latest == 3.0


def test_skipped_updates_are_counted_since_the_beginning_of_the_run():
    begun = TrainState(10, counters={SKIPPED_UPDATES: 4, "data/tokens": 7})
    norms = after(GradientNorms(begun), [1.0, math.nan, math.inf])
    state = norms.settle(TrainState(13, counters={"data/tokens": 9, SKIPPED_UPDATES: 4}))
    assert state.counters == {"data/tokens": 9, SKIPPED_UPDATES: 6}
    assert (norms.last_finite.step, norms.last_finite.counters) == (1, {SKIPPED_UPDATES: 4})


@pytest.mark.parametrize(
    ("values", "has_diverged", "num_in_a_row"),
    [
        ([1.0, math.nan, math.nan, 1.0], False, 0),
        ([1.0, math.nan, math.nan, math.nan], True, 3),
        ([1.0, math.nan, math.nan], False, 1),  # the second one has not been read
        ([math.nan, 1.0, math.nan], False, 0),
    ],
)
def test_a_run_has_diverged_if_its_newest_updates_were_skipped(values, has_diverged, num_in_a_row):
    norms = after(GradientNorms(TrainState()), values)
    assert norms.have_diverged(2) is has_diverged
    assert norms.num_in_a_row == num_in_a_row


def test_a_run_may_recover_at_the_last_moment():
    norms = after(GradientNorms(TrainState()), [math.nan, math.nan, 1.0])
    assert norms.num_in_a_row == 2
    assert not norms.have_diverged(2)
    assert norms.last_finite.step == 3
