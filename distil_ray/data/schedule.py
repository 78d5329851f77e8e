"""Units, epochs and a seed -> one list of groups, the order of the training data; the train/eval split.

Each epoch permutes the training units and cuts them into groups of about equal size. The groups of all
epochs, one after the other, form the schedule: group `e * groups_per_epoch + g` is the g-th of epoch e.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distil_ray.data.hashing import draws, stream_key
from distil_ray.errors import InputError

Int64Array = npt.NDArray[np.int64]

_TARGET_GROUP_BYTES = 8 * 2**20
_MIN_GROUPS_PER_EPOCH = 64  # a small corpus has smaller groups, so that they outnumber the CPU slots
_MAX_GROUPS_PER_EPOCH = 4096  # a huge corpus has larger ones, so that the list of those waiting stays short


class Position(NamedTuple):
    """The last row consumed: its group, and its row within the group."""

    group: int
    row: int


START = Position(0, -1)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The order in which the training units are read.

    Args:
        units: the training units, as indices into the corpus' units [num_units].
        unit_bytes: the size of the text of each of them [num_units].
        seed: draws the permutations.
        num_epochs: how often every unit is read; None = without end.
    """

    units: Int64Array
    unit_bytes: Int64Array
    seed: int
    num_epochs: int | None = None

    @cached_property
    def groups_per_epoch(self) -> int:
        """About 8 MiB of text per group, but 64 to 4096 groups, and at least one unit per group."""
        wanted = -(-int(self.unit_bytes.sum()) // _TARGET_GROUP_BYTES)
        return min(max(wanted, _MIN_GROUPS_PER_EPOCH), _MAX_GROUPS_PER_EPOCH, len(self.units))

    @property
    def num_groups(self) -> int | None:
        return None if self.num_epochs is None else self.num_epochs * self.groups_per_epoch

    def units_of(self, group: int) -> Int64Array:
        """Return the units of a group, as indices into the corpus' units, in the order in which to read them.

        Raises:
            IndexError: the schedule has no such group.
        """
        if group < 0 or (self.num_groups is not None and group >= self.num_groups):
            raise IndexError(f"group {group} of a schedule of {self.num_groups} groups")
        epoch, group_of_epoch = divmod(group, self.groups_per_epoch)
        units, edges = _epoch(self, epoch)
        return units[edges[group_of_epoch] : edges[group_of_epoch + 1]]


def split_units(unit_bytes: Int64Array, eval_fraction: float, seed: int) -> tuple[Int64Array, Int64Array]:
    """Choose units at random for evaluation until they hold `eval_fraction` of all bytes; the others train.

    At least one unit is left on either side, unless `eval_fraction` is 0: then none is held out.

    Returns:
        (train_units, eval_units), each sorted.

    Raises:
        InputError: the fraction is not in [0, 1), or there are not two units to choose from.
    """
    if not 0 <= eval_fraction < 1:
        raise InputError(f"eval_fraction is {eval_fraction}, expected at least 0 and less than 1")
    num_units = len(unit_bytes)
    if eval_fraction == 0:
        return np.arange(num_units), np.arange(0)
    if num_units < 2:
        raise InputError(
            f"eval_fraction is {eval_fraction}, but the corpus is a single unit (a Parquet row group, a "
            "compressed file or a range of a text file), so none can be held out: name other files under "
            "eval_sources, or set eval_fraction: 0"
        )
    order = _permutation(num_units, stream_key(seed, "eval_split"))
    share = np.cumsum(unit_bytes[order]) / unit_bytes.sum()
    num_eval = min(int(np.searchsorted(share, eval_fraction)) + 1, num_units - 1)
    return np.sort(order[num_eval:]), np.sort(order[:num_eval])


@lru_cache(maxsize=4)
def _epoch(schedule: Schedule, epoch: int) -> tuple[Int64Array, Int64Array]:
    """Return the epoch's units in order, and the edges [groups_per_epoch + 1] that cut them into groups."""
    num_units, num_groups = len(schedule.units), schedule.groups_per_epoch
    order = _permutation(num_units, stream_key(schedule.seed, "epoch", epoch))
    ends = np.cumsum(schedule.unit_bytes[order])
    middles = ends - schedule.unit_bytes[order] / 2
    group = np.arange(1, num_groups)
    edges = np.searchsorted(middles, group * (ends[-1] / num_groups))
    # A unit larger than a group would leave others empty. So each takes a unit at least, and leaves at least
    # one to each that follows.
    edges = np.maximum.accumulate(np.maximum(edges, 1) - group) + group
    edges = np.minimum(edges, num_units - num_groups + group)
    return schedule.units[order], np.concatenate([[0], edges, [num_units]])


def _permutation(length: int, key: np.uint64) -> Int64Array:
    return np.argsort(draws(key, np.arange(length, dtype=np.uint64)), kind="stable")
