"""Blocks -> steps: which of the global sequence's blocks this worker has, and what all workers know of a step.

The equal split gives worker r of n the blocks j with j mod n = r. A step is the next ``blocks_per_step`` blocks of the
global sequence, so with fewer workers than blocks some workers have more of them; gradients are sums, so nothing else
changes.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

from distil_ray.data.batch import END_OF_SCHEDULE, FILLER_GROUP, SKIPPED, Arrays, digest
from distil_ray.data.schedule import Position
from distil_ray.errors import InputError, RunError


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
        group_share: share of that row's group that lies behind after it, in (0, 1].
        digest: of the whole global batch, 64 bits.
        skipped: number of documents, rows and units left out before or within the step, by name.
        wait_seconds: how long this worker waited for its blocks.
    """

    blocks: list[Block]
    position: Position
    group_share: float
    digest: int
    skipped: dict[str, int]
    wait_seconds: float


class Notice(NamedTuple):
    """Why the training should end before the next step, to be taken up elsewhere or later."""

    is_stop_wanted: bool = False
    """The driver asks for it."""
    is_node_leaving: bool = False
    """The node of at least one worker is about to be taken away."""


# What each worker knows of a step's blocks; their sums over the workers are what all know.
_FACTS = (
    "errors",
    *Notice._fields,
    "real_blocks",
    "ends",
    "digest_high",
    "digest_low",
    "group",
    "row",
    "group_rows",
    *SKIPPED,
)


def _facts(blocks: list[Block], blocks_per_step: int, error: Exception | None, notice: Notice) -> dict[str, int]:
    facts = dict.fromkeys(_FACTS, 0) | notice._asdict()
    facts["errors"] = int(error is not None)
    for index, rows in ((block.index, block.rows) for block in blocks):
        is_filler = rows["group"] == FILLER_GROUP
        facts["real_blocks"] += int(not is_filler.any())
        facts["ends"] += int((is_filler & (rows["row"] == END_OF_SCHEDULE)).any())
        word = digest(rows)
        facts["digest_high"] += word >> 32
        facts["digest_low"] += word & 0xFFFFFFFF
        for name, count in zip(SKIPPED, rows["skipped"].sum(axis=0, dtype="int64").tolist(), strict=True):
            facts[name] += count
        if index == blocks_per_step - 1:
            facts |= {name: int(rows[name][-1]) for name in ("group", "row", "group_rows")}
    return facts


class DataError(InputError):
    """The text cannot be read, as at least one worker found out; raised on all of them."""


class DataPlaneError(RunError):
    """The data plane failed for at least one worker, for a reason that may pass; raised on all of them."""


class BlockFeed:
    """Deals this worker's blocks out in steps, in agreement with the other workers."""

    def __init__(
        self,
        blocks: Iterable[Arrays],
        *,
        start: Position,
        rank: int,
        world_size: int,
        blocks_per_step: int,
        group: dist.ProcessGroup | None,
        look_out: Callable[[], Notice] = Notice,
    ) -> None:
        """``look_out`` is asked before every step what this worker knows of a reason to end."""
        self._blocks = iter(blocks)
        self._start = start
        self._rank = rank
        self._world_size = world_size
        self._blocks_per_step = blocks_per_step
        self._group = group
        self._look_out = look_out
        self._num_steps = 0
        self.is_at_end = False
        """Whether the schedule ends where `next_step` returned None; if not, another pipeline goes on there."""
        self.notice = Notice()
        """The reason, known to all workers, if `next_step` returned None before the pipeline's end."""

    def next_step(self) -> StepRows | None:
        """Return the next step's rows, or None on all workers if there is no further whole step or a notice.

        Raises:
            DataError: the text is at fault.
            DataPlaneError: anything else failed, such as a node of the data plane.
        """
        began = time.perf_counter()
        blocks, error = self._take()
        wait_seconds = time.perf_counter() - began
        facts = self._agree(_facts(blocks, self._blocks_per_step, error, self._look_out()))
        if facts["errors"]:
            raise self._shared_error(error)
        self.notice = Notice(*(facts[name] > 0 for name in Notice._fields))
        if any(self.notice):
            return None
        if facts["real_blocks"] < self._blocks_per_step:
            self.is_at_end = facts["ends"] > 0
            return None
        if self._num_steps == 0:
            self._check_start(blocks)
        self._num_steps += 1
        return StepRows(
            blocks=blocks,
            position=Position(facts["group"], facts["row"]),
            group_share=(facts["row"] + 1) / facts["group_rows"],
            digest=((facts["digest_high"] << 32) + facts["digest_low"]) % 2**64,
            skipped={name: facts[name] for name in SKIPPED},
            wait_seconds=wait_seconds,
        )

    def _take(self) -> tuple[list[Block], Exception | None]:
        blocks = []
        try:
            for index in self._own_indices():
                rows = next(self._blocks, None)
                if rows is None:
                    break
                blocks.append(Block(index, rows))
        except Exception as error:  # whatever the data plane raises must reach the other workers too
            return blocks, error
        return blocks, None

    def _own_indices(self) -> Iterator[int]:
        first = self._num_steps * self._blocks_per_step
        return (i for i in range(self._blocks_per_step) if (first + i) % self._world_size == self._rank)

    def _agree(self, facts: dict[str, int]) -> dict[str, int]:
        """Add the workers' facts up."""
        if self._world_size == 1:
            return facts
        values = torch.tensor([facts[name] for name in _FACTS], dtype=torch.int64)
        dist.all_reduce(values, group=self._group)
        return dict(zip(_FACTS, values.tolist(), strict=True))

    def _shared_error(self, error: Exception | None) -> DataError | DataPlaneError:
        """Agree on one error: the first failing worker's."""
        own = None if error is None else _message(error)
        messages: list[tuple[bool, str] | None] = [own]
        if self._world_size > 1:
            messages = [None] * self._world_size
            dist.all_gather_object(messages, own, group=self._group)
        is_input_error, message = next(message for message in messages if message is not None)
        return DataError(message) if is_input_error else DataPlaneError(message)

    def _check_start(self, blocks: list[Block]) -> None:
        """The first row of the sequence must be the one behind the position that the run resumes from."""
        for block in blocks:
            if block.index == 0:
                group, row = int(block.rows["group"][0]), int(block.rows["row"][0])
                follows = (
                    row == self._start.row + 1 if group == self._start.group else group > self._start.group and row == 0
                )
                assert follows, f"expected the row behind {self._start}, got group {group}, row {row}"


# Of an exception in a data task only the text arrives here, in the middle of Ray's own.
_INPUT_ERROR = re.compile(
    r"^distil_ray\.[\w.]*\b(?:InputError|BadFileError): (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL
)


def _message(error: Exception) -> tuple[bool, str]:
    """Whether the user's input is at fault, and what to say of it."""
    if isinstance(error, InputError):
        return True, str(error)
    if found := _INPUT_ERROR.search(str(error)):
        return True, found[1].strip()
    return False, f"{type(error).__name__}: {error}"
