"""Blocks -> steps, with the blocks dealt out to real processes as Ray Data's equal split deals them."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from processes import run_workers
from training_parts import CPU, K, T, blocks_of, random_rows

from distil_ray.data.batch import END_OF_SCHEDULE, MORE_FOLLOWS, READ_FAILED, SKIPPED, digest, filler_rows
from distil_ray.data.schedule import START, Position
from distil_ray.errors import InputError
from distil_ray.training import feed as feed_module
from distil_ray.training.feed import BlockFeed, DataError, DataPlaneError, StopReason
from distil_ray.training.world import PreemptionWatch, World

BLOCK_ROWS, BLOCKS_PER_STEP = 2, 4
STEP_ROWS = BLOCK_ROWS * BLOCKS_PER_STEP


def sequence(*group_rows):
    """The rows of groups 0, 1, … of so many rows, one after the other."""
    groups = [random_rows(num_rows, seed=group) for group, num_rows in enumerate(group_rows)]
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def rows_of(rows, start, stop):
    return {name: values[start:stop] for name, values in rows.items()}


def every(rows, k, first):
    return {name: values[first::k] for name, values in rows.items()}


def with_filler(rows, *, kind=END_OF_SCHEDULE, k=1):
    """The blocks of a pipeline: the rows, and after them some blocks of filler."""
    filler = filler_rows(BLOCKS_PER_STEP * BLOCK_ROWS * k, T, K, rows["input_ids"].dtype, kind=kind)
    return blocks_of({name: np.concatenate([rows[name], filler[name]]) for name in rows}, BLOCK_ROWS * k)


def deal(blocks, rank, world_size):
    """The equal split: block j to worker j mod n, and what does not go up evenly is dropped."""
    return blocks[rank : len(blocks) - len(blocks) % world_size : world_size]


class Driver:
    """What a feed asks the driver."""

    def __init__(self, is_stop_wanted=lambda: False, empty_groups=()):
        self.is_stop_wanted = is_stop_wanted
        self._notes = {"empty": dict.fromkeys(empty_groups)}

    def noted(self, topic):
        return self._notes[topic]


def feed_of(blocks, rank=0, world_size=1, start=START, start_group_rows=0, preemption=None, k=1, num_done=0, **driver):
    preemption = preemption or PreemptionWatch()
    world = World(rank, world_size, CPU, None, blocks, Driver(**driver), preemption=preemption)
    return BlockFeed(world, BLOCKS_PER_STEP, k, start=start, start_group_rows=start_group_rows, num_done=num_done)


def take_all(rank, world_size, rows, k=1, num_done=0):
    feed = feed_of(deal(with_filler(rows, k=k), rank, world_size), rank, world_size, k=k, num_done=num_done)
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
            assert part.groups_done == last_group + (last_row + 1) / int(expected["group_rows"][-1])
            assert part.digest == digest(expected)
            assert list(part.skipped) == list(SKIPPED)
            assert list(part.skipped.values()) == expected["skipped"].sum(axis=0).tolist()
            assert part.wait_seconds >= 0
        blocks = sorted((block for part in parts for block in part.blocks), key=lambda block: block.index)
        assert [block.index for block in blocks] == list(range(BLOCKS_PER_STEP))
        for name, values in expected.items():
            np.testing.assert_array_equal(np.concatenate([block.rows[name] for block in blocks]), values)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("k", "num_done"), [(3, 0), (3, 2), (8, 5)])
def test_the_steps_of_a_super_step_have_every_kth_row(world_size, k, num_done):
    num_super_steps = 2 + (k == 3)
    size = STEP_ROWS * k
    rows = sequence(11, num_super_steps * size - 1, 2)  # and a rest of 12, which makes no super-step
    arguments = (rows, k, num_done)
    taken = [take_all(0, 1, *arguments)] if world_size == 1 else run_workers(take_all, world_size, *arguments)
    numbers = range(num_done, num_super_steps * k)
    assert [(len(steps), is_at_end) for steps, is_at_end in taken] == [(len(numbers), True)] * world_size

    groups_done = []
    for at, number in enumerate(numbers):
        whole = rows_of(rows, number // k * size, (number // k + 1) * size)
        expected = every(whole, k, number % k)
        parts = [steps[at] for steps, _ in taken]
        for part in parts:
            assert part.index == number % k
            assert part.position == Position(int(whole["group"][-1]), int(whole["row"][-1]))
            assert part.digest == digest(expected)
            assert list(part.skipped.values()) == expected["skipped"].sum(axis=0).tolist()
            assert part.groups_done == parts[0].groups_done
        groups_done.append(parts[0].groups_done)
        if part.index == k - 1:
            assert part.groups_done == part.position.group + (part.position.row + 1) / part.group_rows
        blocks = sorted((block for part in parts for block in part.blocks), key=lambda block: block.index)
        for name, values in expected.items():
            np.testing.assert_array_equal(np.concatenate([block.rows[name] for block in blocks]), values)
    assert groups_done == sorted(set(groups_done))


def test_the_rows_of_a_step_are_views_of_its_blocks():
    blocks = blocks_of(sequence(4 * STEP_ROWS), BLOCK_ROWS * 4)
    for block, whole in zip(feed_of(blocks, k=4).next_step().blocks, blocks, strict=True):
        assert np.shares_memory(block.rows["input_ids"], whole["input_ids"])


def test_an_end_at_a_whole_step_is_seen():
    steps, is_at_end = take_all(0, 1, sequence(STEP_ROWS, STEP_ROWS))
    assert [step.position for step in steps] == [Position(0, 7), Position(1, 7)]
    assert [step.groups_done for step in steps] == [1.0, 2.0]
    assert is_at_end


def test_the_end_of_a_pipeline_is_told_from_that_of_the_schedule():
    for num_rows in (STEP_ROWS, STEP_ROWS + 5):
        feed = feed_of(with_filler(sequence(num_rows), kind=MORE_FOLLOWS))
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


def leave(rank, world_size, rows, k):
    """One worker alone is told, in the first step, that its node goes."""
    told = []
    blocks = deal(with_filler(rows, k=k), rank, world_size)
    feed = feed_of(blocks, rank, world_size, k=k, preemption=PreemptionWatch(lambda: told[-1] if told else None))
    steps = [feed.next_step()]
    if rank == 1:
        told.append(SimpleNamespace(deadline_ms=None))
    steps += [feed.next_step() for _ in range(2)]
    return [step and step.digest for step in steps], feed.stop_reason, feed.is_at_end


def agree_seldom(rank, world_size, rows, k):
    """Rounds of three steps, as hundreds of workers have; the driver wants the run to end in step 10."""
    feed_module._WORKERS_PER_STEP_OF_ROUND = 1
    steps = []
    blocks = deal(with_filler(rows, k=k), rank, world_size)
    feed = feed_of(blocks, rank, world_size, k=k, is_stop_wanted=lambda: len(steps) > 10)
    while (step := feed.next_step()) is not None:
        steps.append(step.digest)
    return steps, feed.stop_reason, feed.is_at_end


@pytest.mark.parametrize("k", [1, 2, 8])
def test_workers_that_agree_seldom_do_the_same(k):
    rows = sequence(9 * STEP_ROWS, 39 * STEP_ROWS)
    (steps, *ending), other = run_workers(agree_seldom, 2, rows, k)
    assert other == (steps, *ending)
    assert ending == [StopReason(is_stop_wanted=True), False]
    assert 11 <= len(steps) <= 17
    size = k * STEP_ROWS
    expected = [digest(every(rows_of(rows, i // k * size, (i // k + 1) * size), k, i % k)) for i in range(len(steps))]
    assert steps == expected


@pytest.mark.parametrize("k", [1, 3])
def test_all_workers_leave_before_the_same_step(k):
    """With k = 3 in the middle of a super-step, after the step whose round had begun."""
    (steps, *ending), other = run_workers(leave, 2, sequence(12 * STEP_ROWS), k)
    assert other == (steps, *ending)
    assert ending == [StopReason(is_node_leaving=True), False]
    assert steps[2] is None
    assert k == 1 or steps[1] is not None


def test_a_wish_to_stop_is_told_from_a_leaving_node():
    feed = feed_of(blocks_of(sequence(STEP_ROWS), BLOCK_ROWS), is_stop_wanted=lambda: True)
    assert feed.next_step() is None
    assert feed.stop_reason == StopReason(is_stop_wanted=True, is_node_leaving=False)


def wait_in_vain(rank, world_size, rows):
    """Worker 1's blocks stay out after the first step; the driver wants the run to end while it waits."""
    began = time.monotonic()

    def blocks():
        own = deal(blocks_of(rows, BLOCK_ROWS), rank, world_size)
        for number, block in enumerate(own):
            if rank == 1 and number == 2:
                threading.Event().wait()
            yield block

    feed = feed_of(blocks(), rank, world_size, is_stop_wanted=lambda: rank == 1 and time.monotonic() - began > 0.5)
    return feed.next_step().position, feed.next_step(), feed.stop_reason


def test_a_stop_needs_no_further_step():
    expected = (Position(0, 7), None, StopReason(is_stop_wanted=True))
    assert run_workers(wait_in_vain, 2, sequence(2 * STEP_ROWS)) == [expected, expected]


# Order


def shuffled(rank, world_size, order):
    """All steps of blocks that come in another order, or what is said of it."""
    rows = sequence(3 * STEP_ROWS)
    blocks = [blocks_of(rows, BLOCK_ROWS)[index] for index in order]
    feed = feed_of(deal(blocks, rank, world_size), rank, world_size)
    try:
        return [feed.next_step().position for _ in range(2)]
    except DataPlaneError as error:
        return str(error)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    ("order", "place"),
    [
        ([0, 1, 2, 3, 4, 6, 5, 7], "row 12 of group 0 came after row 9 of group 0"),  # two swapped
        ([0, 1, 2, 3, 5, 6, 7, 8], "row 10 of group 0 came after row 7 of group 0"),  # one lost between steps
        ([0, 1, 2, 4, 5, 6, 7, 8], "row 8 of group 0 came after row 5 of group 0"),  # one lost within a step
        ([0, 1, 2, 3, 3, 4, 5, 6], "row 6 of group 0 came after row 7 of group 0"),  # one repeated
    ],
)
def test_a_gap_and_a_repetition_are_failures_on_all_workers(world_size, order, place):
    found = [shuffled(0, 1, order)] if world_size == 1 else run_workers(shuffled, world_size, order)
    assert found == [f"rows are out of order: {place} (of {3 * STEP_ROWS} rows)"] * world_size


def without(rows, keep):
    return {name: values[keep] for name, values in rows.items()}


@pytest.mark.parametrize("lost", [3, 8, 9, 15, 20])
def test_a_row_that_is_missing_within_a_block_is_a_failure(lost):
    rows = sequence(9, 20)
    feed = feed_of(blocks_of(without(rows, np.arange(len(rows["row"])) != lost), BLOCK_ROWS))
    with pytest.raises(DataPlaneError, match="rows are out of order: row"):
        list(iter(feed.next_step, None))


@pytest.mark.parametrize("num_rows", [7, 8])  # the missing group would lie within a block, or between two
def test_a_group_may_be_missing_only_if_it_is_known_to_be_empty(num_rows, monkeypatch):
    monkeypatch.setattr(feed_module, "_NOTE_SECONDS", 0.1)
    rows = sequence(num_rows, 4, 21)
    blocks = blocks_of(without(rows, rows["group"] != 1), BLOCK_ROWS)

    feed = feed_of(blocks, empty_groups=[1])
    assert [feed.next_step().position.group for _ in range(3)] == [2 if num_rows < 8 else 0, 2, 2]
    feed = feed_of(blocks)
    with pytest.raises(DataPlaneError, match=f"row 0 of group 2 came after row {num_rows - 1} of group 0"):
        list(iter(feed.next_step, None))


def test_text_that_could_not_be_read_ends_the_steps_before_it():
    feed = feed_of(with_filler(sequence(STEP_ROWS + 3), kind=READ_FAILED))
    assert feed.next_step() is not None
    assert feed.next_step() is None
    assert feed.has_failed
    assert not feed.is_at_end


# Failures


def fail_after(blocks, error):
    """Blocks from a pipeline that fails."""
    yield from blocks
    raise error


def read_failing(rank, world_size):
    """Worker 1 meets, in the second step, what Ray Data raises for a damaged file."""
    error = InputError("corpus/x.parquet: not a Parquet file")
    blocks = deal(blocks_of(sequence(40), BLOCK_ROWS), rank, world_size)
    feed = feed_of(fail_after(blocks[:3], error) if rank == 1 else blocks, rank, world_size)
    first = feed.next_step().position
    try:
        feed.next_step()
    except DataError as error:
        return first, str(error), isinstance(error, InputError)


def test_a_failure_on_one_worker_is_raised_on_all_with_its_message():
    expected = (Position(0, 7), "corpus/x.parquet: not a Parquet file", True)
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
        feed_of(fail_after([], RuntimeError(text))).next_step()
    assert str(caught.value) == "a.parquet, row group 4: damaged,\non two lines"


def test_any_other_failure_may_pass():
    with pytest.raises(DataPlaneError, match="OSError: disk on fire"):
        feed_of(fail_after(blocks_of(sequence(4), BLOCK_ROWS), OSError("disk on fire"))).next_step()


# The start


@pytest.mark.parametrize("group_rows", [0, 9])  # an older version did not note it
@pytest.mark.parametrize(
    ("start", "cut"),
    [
        (START, 0),
        (Position(0, 4), 5),  # within a group
        (Position(0, 8), 9),  # at a group's end
    ],
)
def test_a_resumed_sequence_begins_after_the_position(start, cut, group_rows):
    rows = sequence(9, 20)
    feed = feed_of(blocks_of(rows_of(rows, cut, None), BLOCK_ROWS), start=start, start_group_rows=group_rows)
    assert feed.next_step().digest == digest(rows_of(rows, cut, cut + STEP_ROWS))


@pytest.mark.parametrize("start", [START, Position(0, 3), Position(0, 8), Position(1, 4)])
def test_any_other_beginning_is_refused(start):
    rows = sequence(9, 20)
    for cut in set(range(12)) - {start.row + 1 + 9 * start.group, 9 if start.group == 0 else -1}:
        blocks = blocks_of(rows_of(rows, cut, None), BLOCK_ROWS)
        feed = feed_of(blocks, start=start, start_group_rows=9 if start.group == 0 else 20)
        with pytest.raises(DataPlaneError, match="rows are out of order"):
            feed.next_step()


def never_more(blocks):
    """Blocks from a pipeline that gives no further one, and does not end."""
    yield from blocks
    threading.Event().wait()


def take_without_more(rank, world_size, rows, k):
    feed = feed_of(never_more(deal(blocks_of(rows, BLOCK_ROWS * k), rank, world_size)), rank, world_size, k=k)
    return [feed.next_step().index for _ in range(k)]


@pytest.mark.parametrize("k", [1, 3])
def test_a_block_that_comes_later_is_not_waited_for(k):
    assert take_without_more(0, 1, sequence(k * STEP_ROWS), k) == list(range(k))
    assert run_workers(take_without_more, 2, sequence(k * STEP_ROWS), k) == [list(range(k))] * 2


def look_ahead(rank, world_size, rows, k):
    """Whether each step but the first few had its facts before it was asked for."""
    feed = feed_of(deal(with_filler(rows, k=k), rank, world_size), rank, world_size, k=k)
    is_known = []
    while feed.next_step() is not None:
        time.sleep(0.05)  # a step's computation
        is_known.append(feed._round is not None and feed._round[1].is_completed())
    return is_known


def test_workers_agree_on_the_next_step_while_one_is_computed():
    assert run_workers(look_ahead, 2, sequence(4 * STEP_ROWS), 2) == [[True] * 4] * 2
