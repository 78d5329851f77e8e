"""Blocks -> steps: which of the global sequence's blocks this worker has, and what all workers know of a step.

The equal split gives worker r of n the blocks j with j mod n = r. A super-step is the next S blocks of the global
sequence, and makes k steps: step i has the rows s with s mod k = i, an equal share of each block. With fewer workers
than S some have more blocks; gradients are sums, so nothing else changes. Ray promises no order, so each super-step's
rows are checked to follow the last one's, on all workers.

Workers agree in rounds: each adds what it knows to one sum, and decides by the total alone. A round says whether to
stop, and, once all workers have their blocks of it, what the next super-step is. There is one for each step, or for a
few if the workers are many; it passes while the steps before are computed. A thread takes the blocks, but the main
thread alone begins and ends rounds, so that all workers do the same collectives in the same order.

Shapes: b rows of a step in a block, k steps, S blocks, C counts of what was skipped.
"""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from distil_ray.data.batch import END_OF_SCHEDULE, FILLER_GROUP, READ_FAILED, SKIPPED, Arrays, row_digests
from distil_ray.data.schedule import Position
from distil_ray.errors import InputError, RunError
from distil_ray.training.world import World

_WORKERS_PER_STEP_OF_ROUND = 128
_CHECK_STOP_SECONDS = 1.0  # between two checks for a reason to stop, while a block is waited for
_NOTE_SECONDS = 5.0  # for a note on an empty group to arrive: it was sent before the rows that follow the group


@dataclass(frozen=True)
class Block:
    """The rows that one block has for a step, and its place in the super-step, 0 … blocks_per_step - 1."""

    index: int
    rows: Arrays


@dataclass(frozen=True)
class StepRows:
    """One step's rows: this worker's blocks, and facts that are equal on all workers.

    Attributes:
        blocks: with rows that are strided views of the whole blocks, [b].
        index: of the step in its super-step, 0 … k - 1.
        position: of the super-step's last row. Once its last step is done, a resume begins after it.
        group_rows: rows of that row's group.
        groups_done: groups of the schedule that are done after the step; each step counts as a k-th of its super-step.
        digest: of the whole global batch, 64 bits.
        skipped: number of documents, rows and units left out before or within the step, by name.
        wait_seconds: how long this worker waited for its blocks.
    """

    blocks: list[Block]
    index: int
    position: Position
    group_rows: int
    groups_done: float
    digest: int
    skipped: dict[str, int]
    wait_seconds: float


class StopReason(NamedTuple):
    """Why the training should end before the next step, to be resumed elsewhere or later."""

    is_stop_wanted: bool = False
    """The driver asks for it."""
    is_node_leaving: bool = False
    """The node of at least one worker is about to be taken away."""


class DataError(InputError):
    """The text cannot be read, as at least one worker found out; raised on all of them."""


class DataPlaneError(RunError):
    """The data plane failed for at least one worker, for a reason that may pass; raised on all of them."""


class BlockFeed:
    """Deals this worker's blocks out in steps, in agreement with the other workers."""

    def __init__(
        self,
        world: World,
        blocks_per_step: int,
        steps_per_block: int = 1,
        *,
        start: Position,
        start_group_rows: int = 0,
        num_done: int = 0,
    ) -> None:
        """Begin after ``start``, where a super-step begins.

        The driver is asked whether to stop by rank 0 before every step, and by every worker that waits for a block.

        Args:
            blocks_per_step: S.
            steps_per_block: k.
            start_group_rows: rows of the group of ``start``, 0 if that is not known.
            num_done: steps of the first super-step that are done already, and are left out.
        """
        self._blocks = iter(world.blocks)
        self._world = world
        self._blocks_per_step, self._steps_per_block = blocks_per_step, steps_per_block
        self._facts = _facts_type(blocks_per_step, steps_per_block)
        self._before = self._last = _Edge(*start, start_group_rows)  # the rows before and at the end of the super-step
        self._num_taken = 0  # blocks of the global sequence
        self._index = num_done  # of the next step in its super-step
        self._current: _Taken | None = None  # the super-step under way: this worker's blocks, everyone's facts
        self._coming: _Record | None = None  # the facts of the next one, once all workers have its blocks
        self._own = _in_background(self._take)  # this worker's blocks of the next one, and what it knows of them
        self._round: tuple[_Record, dist.Work | None] | None = None
        self._steps_in_round = 0
        self.is_at_end = False
        """Whether the schedule ends where `next_step` returned None; if not, another pipeline continues there."""
        self.has_failed = False
        """Whether `next_step` returned None because the text that follows could not be read."""
        self.stop_reason = StopReason()
        """Known to all workers; why `next_step` returned None before the pipeline's end."""

    def next_step(self) -> StepRows | None:
        """Return the next step's rows, or None on all workers if there is no further super-step or a reason to stop.

        A reason that comes up while several workers compute a step ends the training after the step that follows, at
        the latest; with 128 workers or more, whose steps are short, after twice as many as `steps_per_round`.

        Raises:
            DataError: the text is at fault.
            DataPlaneError: anything else failed, such as a node of the data plane, or rows are out of order.
        """
        wait_seconds, is_due = 0.0, self._steps_in_round == steps_per_round(self._world.world_size)
        if self._round is None:
            self._begin_round(ask_driver=self._world.is_main)
            is_due = True
        if is_due or (self._current is None and self._coming is None):
            self.stop_reason = self._end_round()
        while self._current is None and self._coming is None and not any(self.stop_reason):
            began = time.perf_counter()
            wait([self._own], _CHECK_STOP_SECONDS)
            wait_seconds += time.perf_counter() - began
            self._begin_round(ask_driver=True)
            self.stop_reason = self._end_round()
        if any(self.stop_reason) or (self._current is None and not self._begin_super_step()):
            return None
        step = self._next_of_super_step(wait_seconds)
        if self._world.world_size > 1:
            if self._round is None:
                self._begin_round(ask_driver=self._world.is_main)
            self._steps_in_round += 1
        return step

    # --- Rounds

    def _begin_round(self, *, ask_driver: bool) -> None:
        """Begin to add up what the workers know now."""
        facts = np.zeros(1, self._facts)
        if self._coming is None and self._own.done():
            facts[:] = self._own.result().facts
            facts["num_ready"] = 1
        facts["is_stop_wanted"] = ask_driver and self._world.events.is_stop_wanted()
        facts["is_node_leaving"] = self._world.preemption.is_imminent()
        work = None
        if self._world.world_size > 1:
            work = dist.all_reduce(torch.from_numpy(facts.view(np.int64)), group=self._world.group, async_op=True)
        self._round, self._steps_in_round = (facts, work), 0

    def _end_round(self) -> StopReason:
        """Wait for the sum; note the next super-step's facts if all workers have its blocks."""
        assert self._round is not None
        (facts, work), self._round = self._round, None
        if work is not None:
            work.wait()
        if facts["num_ready"] == self._world.world_size:
            self._coming = facts[0]
        return StopReason(*(bool(facts[name][0]) for name in StopReason._fields))

    # --- Super-steps

    def _take(self) -> "_Taken":
        """Take this worker's blocks of the next super-step, in a thread. What fails is told to the other workers."""
        taken = _Taken([], np.zeros(1, self._facts)[0])
        try:
            for index in range(self._blocks_per_step):
                if (self._num_taken + index) % self._world.world_size != self._world.rank:
                    continue
                rows = next(self._blocks, None)
                if rows is None:
                    break
                taken.blocks.append(Block(index, rows))
                _add_block(taken.facts, taken.blocks[-1], self._steps_per_block)
                self._check_within(rows)
        except Exception as error:
            taken.facts["errors"] = 1
            return taken._replace(error=error)
        return taken

    def _begin_super_step(self) -> bool:
        """Make the coming super-step the current one, unless there is not all of it, and begin to take the next."""
        facts, own = self._coming, self._own.result()
        assert facts is not None
        if facts["errors"]:
            raise self._shared_error(own.error)
        if facts["real_blocks"] < self._blocks_per_step:
            self.is_at_end, self.has_failed = bool(facts["ends"]), bool(facts["failures"])
            return False
        self._before = self._last
        self._check_order(facts["edges"])
        self._current, self._coming = _Taken(own.blocks, facts), None
        self._num_taken += self._blocks_per_step
        self._own = _in_background(self._take)
        return True

    def _next_of_super_step(self, wait_seconds: float) -> StepRows:
        assert self._current is not None
        (blocks, facts, _), index, num_steps = self._current, self._index, self._steps_per_block
        share = (index + 1) / num_steps
        high, low = facts["digests"][index].tolist()
        step = StepRows(
            blocks=[Block(block.index, {n: v[index::num_steps] for n, v in block.rows.items()}) for block in blocks],
            index=index,
            position=Position(self._last.group, self._last.row),
            group_rows=self._last.group_rows,
            groups_done=(1 - share) * self._before.groups_done + share * self._last.groups_done,
            digest=((high << 32) + low) % 2**64,
            skipped=dict(zip(SKIPPED, facts["skipped"][index].tolist(), strict=True)),
            wait_seconds=wait_seconds,
        )
        self._index = (index + 1) % num_steps
        if self._index == 0:
            self._current = None
        return step

    def _shared_error(self, error: Exception | None) -> DataError | DataPlaneError:
        """Agree on one error: the first failing worker's."""
        messages = self._world.gather(None if error is None else _message(error))
        is_input_error, message = next(message for message in messages if message is not None)
        return DataError(message) if is_input_error else DataPlaneError(message)

    # --- Order

    def _check_within(self, rows: Arrays) -> None:
        """Check that each row of a block, filler left out, follows the one before."""
        group, row, size = (np.asarray(rows[name], dtype=np.int64) for name in _Edge._fields)
        is_real = (group[1:] != FILLER_GROUP) & (group[:-1] != FILLER_GROUP)
        is_next = (group[1:] == group[:-1]) & (row[1:] == row[:-1] + 1)
        begins = (group[1:] > group[:-1]) & (row[1:] == 0) & (row[:-1] == size[:-1] - 1)
        to_be_checked = is_real & ~is_next & ~(begins & (group[1:] == group[:-1] + 1))
        for at in np.flatnonzero(to_be_checked):
            self._check_follows(*(_Edge(int(group[i]), int(row[i]), int(size[i])) for i in (at, at + 1)))

    def _check_order(self, edges: npt.NDArray[np.int64]) -> None:
        """Check that each block of the super-step follows the one before, and the first one the last super-step's."""
        for first, last in edges.tolist():
            self._check_follows(self._last, _Edge(*first))
            self._last = _Edge(*last)

    def _check_follows(self, before: "_Edge", after: "_Edge") -> None:
        """Check that no row is missing or repeated between two.

        Raises:
            DataPlaneError: one is.
        """
        is_within = after.group == before.group and after.row == before.row + 1
        is_last = before.row == before.group_rows - 1 or not before.group_rows or before.row < 0
        between = set(range(before.group + (before.row >= 0), after.group))
        begins = after.group > before.group and after.row == 0 and is_last
        if is_within or (begins and self._are_empty(between)):
            return
        raise DataPlaneError(
            f"rows are out of order: row {after.row} of group {after.group} came after row {before.row} of group "
            f"{before.group} (of {before.group_rows or 'an unknown number of'} rows)"
        )

    def _are_empty(self, groups: set[int]) -> bool:
        end = time.monotonic() + _NOTE_SECONDS
        while groups and not groups <= set(self._world.events.noted("empty")):
            if time.monotonic() > end:
                return False
            time.sleep(_NOTE_SECONDS / 50)
        return True


def steps_per_round(world_size: int) -> int:
    """Steps during which a round may pass: one takes the longer the more workers there are, and a step the less."""
    return 1 + world_size // _WORKERS_PER_STEP_OF_ROUND


class _Edge(NamedTuple):
    """The first or the last row of a block: its place, and the rows of its group."""

    group: int
    row: int
    group_rows: int

    @property
    def groups_done(self) -> float:
        """Groups of the schedule that are done after the row."""
        return self.group + (self.row + 1) / max(self.group_rows, 1)


_Record = Any
"""A record of `_facts_type`; NumPy does not say in types what it holds."""


class _Taken(NamedTuple):
    """Blocks of a super-step that this worker has, and facts about these or about all."""

    blocks: list[Block]
    facts: _Record
    error: Exception | None = None


def _facts_type(blocks_per_step: int, steps_per_block: int) -> np.dtype[np.void]:
    """What a worker knows before a step, all in int64, to be summed over the workers.

    ``digests`` are in halves, so that sums do not overflow; ``edges`` are each block's first and last row, zeros where
    another worker has the block.
    """
    names = (*StopReason._fields, "num_ready", "errors", "real_blocks", "ends", "failures")
    shapes = {
        "digests": (steps_per_block, 2),
        "skipped": (steps_per_block, len(SKIPPED)),
        "edges": (blocks_per_step, 2, len(_Edge._fields)),
    }
    return np.dtype([(name, np.int64, shapes.get(name, ())) for name in (*names, *shapes)])


def _add_block(facts: _Record, block: Block, steps_per_block: int) -> None:
    """Add what a block holds to what a worker knows of its super-step."""
    rows = block.rows
    is_filler = rows["group"] == FILLER_GROUP
    facts["real_blocks"] += not is_filler.any()
    facts["ends"] += (is_filler & (rows["row"] == END_OF_SCHEDULE)).any()
    facts["failures"] += (is_filler & (rows["row"] == READ_FAILED)).any()
    words = row_digests(rows).reshape(-1, steps_per_block).sum(axis=0, dtype=np.uint64)
    facts["digests"] += np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)
    facts["skipped"] += rows["skipped"].reshape(-1, steps_per_block, len(SKIPPED)).sum(axis=0, dtype=np.int64)
    facts["edges"][block.index] = [[rows[name][i] for name in _Edge._fields] for i in (0, -1)]


def _in_background(take: Callable[[], _Taken]) -> "Future[_Taken]":
    """Call ``take`` in a thread of its own, which no process waits for at its end."""
    future: Future[_Taken] = Future()
    threading.Thread(target=lambda: future.set_result(take()), daemon=True, name="blocks").start()
    return future


# Of an exception in a data task only the text arrives here, in the middle of Ray's own.
_INPUT_ERROR = re.compile(
    r"^distil_ray\.[\w.]*\b(?:InputError|BadFileError): (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL
)


def _message(error: Exception) -> tuple[bool, str]:
    """Whether the user's input is at fault, and the message."""
    if isinstance(error, InputError):
        return True, str(error)
    if isinstance(error, DataPlaneError):
        return False, str(error)
    if found := _INPUT_ERROR.search(str(error)):
        return True, found[1].strip()
    return False, f"{type(error).__name__}: {error}"
