"""Blocks -> steps: which of the global sequence's blocks this worker has, and what all workers know of a step.

The equal split gives worker r of n the blocks j with j mod n = r. A step is the next ``blocks_per_step`` blocks of the
global sequence, so with fewer workers than blocks some workers have more of them; gradients are sums, so nothing else
changes. Ray promises no order, so each step's rows are checked to follow the last step's, on all workers.

Shapes: B rows of a block, S blocks of a step.
"""

import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from distil_ray.data.batch import END_OF_SCHEDULE, FILLER_GROUP, READ_FAILED, SKIPPED, Arrays, digest
from distil_ray.data.schedule import Position
from distil_ray.errors import InputError, RunError
from distil_ray.training.world import World

_CHECK_STOP_SECONDS = 1.0  # between two checks for a reason to stop, while a block is waited for
_NOTE_SECONDS = 5.0  # for a note on an empty group to arrive: it was sent before the rows that follow the group


@dataclass(frozen=True)
class Block:
    """One block of rows and its place in the step, 0 … blocks_per_step - 1."""

    index: int
    rows: Arrays


@dataclass(frozen=True)
class StepRows:
    """One step's rows: this worker's blocks, and facts that are equal on all workers.

    Attributes:
        position: of the step's last row.
        group_rows: rows of that row's group.
        digest: of the whole global batch, 64 bits.
        skipped: number of documents, rows and units left out before or within the step, by name.
        wait_seconds: how long this worker waited for its blocks.
    """

    blocks: list[Block]
    position: Position
    group_rows: int
    digest: int
    skipped: dict[str, int]
    wait_seconds: float

    @property
    def group_share(self) -> float:
        """Share of the last row's group that is done after it, in (0, 1]."""
        return (self.position.row + 1) / self.group_rows


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
        *,
        start: Position,
        start_group_rows: int = 0,
    ) -> None:
        """Begin after ``start``; ``start_group_rows``: rows of its group, 0 if that is not known.

        The driver is asked whether to stop by rank 0 before every step, and by every worker that waits for a block.
        """
        self._blocks = _Blocks(world.blocks)
        self._world = world
        self._last = _Edge(*start, start_group_rows)
        self._blocks_per_step = blocks_per_step
        self._num_steps = 0
        self.is_at_end = False
        """Whether the schedule ends where `next_step` returned None; if not, another pipeline continues there."""
        self.has_failed = False
        """Whether `next_step` returned None because the text that follows could not be read."""
        self.stop_reason = StopReason()
        """Known to all workers; why `next_step` returned None before the pipeline's end."""

    def next_step(self) -> StepRows | None:
        """Return the next step's rows, or None on all workers if there is no further whole step or a reason to stop.

        Raises:
            DataError: the text is at fault.
            DataPlaneError: anything else failed, such as a node of the data plane, or rows are out of order.
        """
        began = time.perf_counter()
        reason = self._check_stop(ask_driver=self._world.is_main)
        blocks, reason, error = self._take(reason)
        wait_seconds = time.perf_counter() - began
        sums, edges = self._agree(_sums_of(blocks, error, reason), _edges_of(blocks, self._blocks_per_step))
        if sums["errors"]:
            raise self._shared_error(error)
        self.stop_reason = StopReason(*(sums[name] > 0 for name in StopReason._fields))
        if any(self.stop_reason):
            return None
        if sums["real_blocks"] < self._blocks_per_step:
            self.is_at_end, self.has_failed = sums["ends"] > 0, sums["failures"] > 0
            return None
        self._check_order(edges)
        self._num_steps += 1
        return StepRows(
            blocks=blocks,
            position=Position(self._last.group, self._last.row),
            group_rows=self._last.group_rows,
            digest=((sums["digest_high"] << 32) + sums["digest_low"]) % 2**64,
            skipped={name: sums[name] for name in SKIPPED},
            wait_seconds=wait_seconds,
        )

    def _check_stop(self, *, ask_driver: bool) -> StopReason:
        return StopReason(ask_driver and self._world.events.is_stop_wanted(), self._world.preemption.is_imminent())

    def _take(self, reason: StopReason) -> tuple[list[Block], StopReason, Exception | None]:
        """Take this worker's blocks of the step, unless there is a reason to stop before they come."""
        blocks: list[Block] = []
        try:
            for index in self._own_indices():
                rows = self._blocks.get(_CHECK_STOP_SECONDS)
                while rows is _Blocks.WAITING and not any(reason):
                    reason = self._check_stop(ask_driver=True)
                    rows = self._blocks.get(_CHECK_STOP_SECONDS)
                if rows is None or isinstance(rows, str):
                    break
                blocks.append(Block(index, rows))
                self._check_within(rows)
        except Exception as error:  # any error of the data plane must reach the other workers too
            return blocks, reason, error
        return blocks, reason, None

    def _own_indices(self) -> Iterator[int]:
        first = self._num_steps * self._blocks_per_step
        return (i for i in range(self._blocks_per_step) if (first + i) % self._world.world_size == self._world.rank)

    def _agree(
        self, sums: dict[str, int], edges: list[tuple["_Edge", "_Edge"]]
    ) -> tuple[dict[str, int], list[tuple["_Edge", "_Edge"]]]:
        """Add up the workers' sums, and combine what each knows about its own blocks."""
        if self._world.world_size == 1:
            return sums, edges
        flat = [value for first, last in edges for value in (*first, *last)]
        values = torch.tensor([*sums.values(), *flat], dtype=torch.int64)
        dist.all_reduce(values, group=self._world.group)
        together = values.tolist()
        flat = together[len(sums) :]
        width = len(_Edge._fields)
        pairs = [
            (_Edge(*flat[start : start + width]), _Edge(*flat[start + width : start + 2 * width]))
            for start in range(0, len(flat), 2 * width)
        ]
        return dict(zip(sums, together, strict=False)), pairs

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

    def _check_order(self, edges: list[tuple["_Edge", "_Edge"]]) -> None:
        """Check that each block of the step follows the one before, and the first one the last step's."""
        for first, last in edges:
            self._check_follows(self._last, first)
            self._last = last

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


class _Edge(NamedTuple):
    """The first or the last row of a block: its place, and the rows of its group."""

    group: int
    row: int
    group_rows: int


_NO_EDGE = _Edge(0, 0, 0)


def _edges_of(blocks: list[Block], blocks_per_step: int) -> list[tuple[_Edge, _Edge]]:
    """The first and the last row of each block of the step, [S]; zeros for those of other workers."""
    edges = [(_NO_EDGE, _NO_EDGE)] * blocks_per_step
    for block in blocks:
        first, last = (_Edge(*(int(block.rows[name][i]) for name in _Edge._fields)) for i in (0, -1))
        edges[block.index] = first, last
    return edges


def _sums_of(blocks: list[Block], error: Exception | None, reason: StopReason) -> dict[str, int]:
    """What this worker knows about a step's blocks, to be summed over the workers."""
    sums = {"errors": int(error is not None)} | {name: int(value) for name, value in reason._asdict().items()}
    sums |= dict.fromkeys(("real_blocks", "ends", "failures", "digest_high", "digest_low", *SKIPPED), 0)
    for rows in (block.rows for block in blocks):
        is_filler = rows["group"] == FILLER_GROUP
        sums["real_blocks"] += int(not is_filler.any())
        sums["ends"] += int((is_filler & (rows["row"] == END_OF_SCHEDULE)).any())
        sums["failures"] += int((is_filler & (rows["row"] == READ_FAILED)).any())
        word = digest(rows)
        sums["digest_high"] += word >> 32
        sums["digest_low"] += word & 0xFFFFFFFF
        for name, count in zip(SKIPPED, rows["skipped"].sum(axis=0, dtype="int64").tolist(), strict=True):
            sums[name] += count
    return sums


class _Blocks:
    """Takes blocks from a pipeline in a thread, one when it is asked for, so that waiting can be given up."""

    WAITING = "waiting"

    def __init__(self, blocks: Iterable[Arrays]) -> None:
        self._blocks = iter(blocks)
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[Arrays | Exception | None] = queue.SimpleQueue()
        self._is_asked = False
        threading.Thread(target=self._run, daemon=True, name="blocks").start()

    def get(self, timeout: float) -> Arrays | str | None:
        """Return the next block, None after the last one, or `WAITING` if it does not come within ``timeout`` seconds.

        Raises:
            Exception: as the pipeline raises it.
        """
        if not self._is_asked:
            self._asked.put(None)
            self._is_asked = True
        try:
            taken = self._taken.get(timeout=timeout)
        except queue.Empty:
            return self.WAITING
        self._is_asked = False
        if isinstance(taken, Exception):
            raise taken
        return taken

    def _run(self) -> None:
        while True:
            self._asked.get()
            try:
                self._taken.put(next(self._blocks, None))
            except Exception as error:  # raised where it is waited for
                self._taken.put(error)


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
