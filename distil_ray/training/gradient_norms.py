"""The norms of a run's gradients, read a step late: by then the device has the next step to do and need not wait."""

import math
from dataclasses import replace

import torch

from distil_ray.training.checkpoint import TrainState

SKIPPED_UPDATES = "train/skipped_updates"


class GradientNorms:
    """Counts the updates that the optimizer has skipped because the gradient's norm was not finite.

    Attributes:
        latest: the newest norm that has been read; NaN before the first.
        num_in_a_row: updates skipped one after the other, up to that one.
        last_finite: the state after the newest update that was not skipped, or the one that the run resumed from.
    """

    def __init__(self, state: TrainState) -> None:
        self.latest = math.nan
        self.num_in_a_row, self.last_finite = 0, state
        self._num_skipped = state.counters.get(SKIPPED_UPDATES, 0)
        self._unread: tuple[TrainState, torch.Tensor] | None = None

    def add(self, state: TrainState, norm: torch.Tensor) -> None:
        """Read the norm of the step before; note that of the step that led to ``state``, a scalar on the device."""
        self._read()
        self._unread = state, norm

    def settle(self, state: TrainState) -> TrainState:
        """Wait for the newest norm; return ``state`` with the number of skipped updates of the whole run."""
        self._read()
        return self._counted(state)

    def have_diverged(self, limit: int) -> bool:
        """Whether the ``limit`` newest updates or more were skipped; waits for the newest norm only to make sure."""
        if self.num_in_a_row >= limit:
            self._read()
        return self.num_in_a_row >= limit

    def _read(self) -> None:
        if self._unread is None:
            return
        (state, norm), self._unread = self._unread, None
        self.latest = norm.item()
        if math.isfinite(self.latest):
            self.num_in_a_row, self.last_finite = 0, self._counted(state)
        else:
            self.num_in_a_row += 1
            self._num_skipped += 1

    def _counted(self, state: TrainState) -> TrainState:
        return replace(state, counters=state.counters | {SKIPPED_UPDATES: self._num_skipped})
