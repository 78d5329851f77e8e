"""Blocks -> steps, with the blocks dealt out to real processes as Ray Data's equal split deals them."""

from itertools import count

import numpy as np
import pytest
from processes import run_workers
from training_parts import K, T, blocks_of, random_rows

from distil_ray.data.batch import SKIPPED, digest, filler_rows
from distil_ray.data.schedule import START, Position
from distil_ray.errors import InputError
from distil_ray.training.feed import BlockFeed, DataError, DataPlaneError, Notice

BLOCK_ROWS, BLOCKS_PER_STEP = 2, 4
STEP_ROWS = BLOCK_ROWS * BLOCKS_PER_STEP


def sequence(*group_rows):
    """The rows of groups 0, 1, … of so many rows, one after the other."""
    groups = [random_rows(num_rows, seed=group) for group, num_rows in enumerate(group_rows)]
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def rows_of(rows, start, stop):
    return {name: values[start:stop] for name, values in rows.items()}


def with_filler(rows, *, is_end=True):
    """The blocks of a pipeline: the rows, and behind them some blocks of filler."""
    filler = filler_rows(BLOCKS_PER_STEP * BLOCK_ROWS, T, K, rows["input_ids"].dtype, is_end=is_end)
    return blocks_of({name: np.concatenate([rows[name], filler[name]]) for name in rows}, BLOCK_ROWS)


def deal(blocks, rank, world_size):
    """The equal split: block j to worker j mod n, and what does not go up evenly is dropped."""
    return blocks[rank : len(blocks) - len(blocks) % world_size : world_size]


def feed_of(blocks, rank=0, world_size=1, start=START):
    return BlockFeed(blocks, start=start, rank=rank, world_size=world_size, blocks_per_step=BLOCKS_PER_STEP, group=None)


def take_all(rank, world_size, rows):
    feed = feed_of(deal(with_filler(rows), rank, world_size), rank, world_size)
    steps = []
    while (step := feed.next_step()) is not None:
        assert not feed.is_at_end
        steps.append(step)
    return steps, feed.is_at_end


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_steps_are_the_same_on_any_number_of_workers(world_size):
    rows = sequence(11, 5, 21, 2, 4)  # 43 rows: five steps, and a rest that makes none
    taken = [take_all(0, 1, rows)] if world_size == 1 else run_workers(take_all, world_size, rows)
    num_steps = len(rows["row"]) // STEP_ROWS
    assert [(len(steps), is_at_end) for steps, is_at_end in taken] == [(num_steps, True)] * world_size
    for number in range(num_steps):
        parts = [steps[number] for steps, _ in taken]
        expected = rows_of(rows, number * STEP_ROWS, (number + 1) * STEP_ROWS)
        last_group, last_row = int(expected["group"][-1]), int(expected["row"][-1])
        for part in parts:
            assert part.position == Position(last_group, last_row)
            assert part.group_share == (last_row + 1) / int(expected["group_rows"][-1])
            assert part.digest == digest(expected)
            assert list(part.skipped) == list(SKIPPED)
            assert list(part.skipped.values()) == expected["skipped"].sum(axis=0).tolist()
            assert part.wait_seconds >= 0
        blocks = sorted((block for part in parts for block in part.blocks), key=lambda block: block.index)
        assert [block.index for block in blocks] == list(range(BLOCKS_PER_STEP))
        for name, values in expected.items():
            np.testing.assert_array_equal(np.concatenate([block.rows[name] for block in blocks]), values)


def test_an_end_at_a_whole_step_is_seen():
    steps, is_at_end = take_all(0, 1, sequence(STEP_ROWS, STEP_ROWS))
    assert [step.position for step in steps] == [Position(0, 7), Position(1, 7)]
    assert [step.group_share for step in steps] == [1.0, 1.0]
    assert is_at_end


def test_the_end_of_a_pipeline_is_told_from_that_of_the_schedule():
    for num_rows in (STEP_ROWS, STEP_ROWS + 5):
        feed = feed_of(with_filler(sequence(num_rows), is_end=False))
        assert feed.next_step() is not None
        assert feed.next_step() is None
        assert not feed.is_at_end


def test_a_block_that_is_filler_in_part_makes_no_step():
    rows = sequence(STEP_ROWS - 1)
    feed = feed_of(with_filler(rows))
    assert feed.next_step() is None
    assert feed.is_at_end


def test_blocks_without_filler_end_too():
    feed = feed_of(blocks_of(sequence(STEP_ROWS + 3), BLOCK_ROWS))
    assert feed.next_step() is not None
    assert feed.next_step() is None


def end_early(rank, world_size, rows):
    """One worker's blocks run out in the middle of a step, as after the equal split; the others have more."""
    blocks = deal(blocks_of(rows, BLOCK_ROWS), rank, world_size)
    feed = feed_of(blocks[:1] if rank == 1 else blocks, rank, world_size)
    return [step if step is None else step.position for step in (feed.next_step() for _ in range(2))]


def test_all_workers_agree_on_the_end():
    assert run_workers(end_early, 2, sequence(2 * STEP_ROWS)) == [[None, None]] * 2


def leave(rank, world_size, rows):
    """One worker alone gets a notice, before the third step."""
    notices = iter([Notice(), Notice(), Notice(is_node_leaving=rank == 1), Notice()])
    feed = BlockFeed(
        deal(with_filler(rows), rank, world_size),
        start=START,
        rank=rank,
        world_size=world_size,
        blocks_per_step=BLOCKS_PER_STEP,
        group=None,
        look_out=lambda: next(notices),
    )
    steps = [feed.next_step() for _ in range(3)]
    return [step if step is None else step.position for step in steps], feed.notice, feed.is_at_end


def test_all_workers_leave_before_the_same_step():
    expected = [Position(0, 7), Position(0, 15), None], Notice(is_node_leaving=True), False
    assert run_workers(leave, 2, sequence(4 * STEP_ROWS)) == [expected, expected]


def test_a_wish_to_stop_is_told_from_a_leaving_node():
    feed = BlockFeed(
        blocks_of(sequence(STEP_ROWS), BLOCK_ROWS),
        start=START,
        rank=0,
        world_size=1,
        blocks_per_step=BLOCKS_PER_STEP,
        group=None,
        look_out=lambda: Notice(is_stop_wanted=True),
    )
    assert feed.next_step() is None
    assert feed.notice == Notice(is_stop_wanted=True, is_node_leaving=False)


# Failures


def fail_after(num_blocks, error):
    """Blocks from a pipeline that fails."""
    yield from blocks_of(sequence(num_blocks * BLOCK_ROWS), BLOCK_ROWS)
    raise error


def read_failing(rank, world_size):
    """Worker 1 meets, in the second step, what Ray Data raises for a damaged file."""
    error = InputError("corpus/x.parquet: not a Parquet file")
    blocks = fail_after(3, error) if rank == 1 else blocks_of(sequence(40), BLOCK_ROWS)
    feed = feed_of(blocks, rank, world_size)
    first = feed.next_step().position
    try:
        feed.next_step()
    except DataError as error:
        return first, str(error), isinstance(error, InputError)


def test_a_failure_on_one_worker_is_raised_on_all_with_its_message():
    # Its blocks are not those of one sequence: only worker 1's block is the last of the first step.
    expected = (Position(0, 3), "corpus/x.parquet: not a Parquet file", True)
    assert run_workers(read_failing, 2) == [expected, expected]


def test_an_input_error_in_a_data_task_is_told_from_its_text():
    """Ray hands on the text of an exception alone, in the middle of its own."""
    text = """ray::SplitCoordinator.get() (pid=1)
  File "…/rows.py", line 5, in make_rows
distil_ray.data.corpus.BadFileError: a.parquet, row group 4: damaged,
on two lines

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block."""
    with pytest.raises(DataError) as caught:
        feed_of(fail_after(0, RuntimeError(text))).next_step()
    assert str(caught.value) == "a.parquet, row group 4: damaged,\non two lines"


def test_any_other_failure_may_pass():
    with pytest.raises(DataPlaneError, match="OSError: disk on fire"):
        feed_of(fail_after(2, OSError("disk on fire"))).next_step()


# The start


@pytest.mark.parametrize(
    ("start", "cut"),
    [
        (START, 0),
        (Position(0, 4), 5),  # within a group
        (Position(0, 8), 9),  # at a group's end
    ],
)
def test_a_resumed_sequence_begins_behind_the_position(start, cut):
    rows = sequence(9, 20)
    feed = feed_of(blocks_of(rows_of(rows, cut, None), BLOCK_ROWS), start=start)
    assert feed.next_step().digest == digest(rows_of(rows, cut, cut + STEP_ROWS))


@pytest.mark.parametrize("start", [START, Position(0, 3), Position(0, 8), Position(1, 4)])
def test_any_other_beginning_is_refused(start):
    rows = sequence(9, 20)
    for cut in set(range(12)) - {start.row + 1 + 9 * start.group, 9 if start.group == 0 else -1}:
        feed = feed_of(blocks_of(rows_of(rows, cut, None), BLOCK_ROWS), start=start)
        with pytest.raises(AssertionError, match="expected the row behind Position"):
            feed.next_step()


def test_only_what_a_step_needs_is_taken():
    """A block that lies behind the step must not be waited for."""
    served = count()
    blocks = iter(blocks_of(sequence(2 * STEP_ROWS), BLOCK_ROWS))
    feed = feed_of(block for block in blocks if next(served) < BLOCKS_PER_STEP or pytest.fail("took too much"))
    assert feed.next_step().position == Position(0, STEP_ROWS - 1)
