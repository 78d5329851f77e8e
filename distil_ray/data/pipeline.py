"""The data plane on a Ray cluster: groups -> masked rows -> equal blocks, as one Ray Data pipeline.

The only module that imports `ray.data`. One group is one task; `preserve_order` and strict blocks turn the groups'
rows into one global sequence, which the equal streaming split deals out to the workers block by block.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionOptions, ExecutionResources, TaskPoolStrategy

from distil_ray.data.batch import END_OF_SCHEDULE, MORE_FOLLOWS, READ_FAILED, Arrays, filler_rows
from distil_ray.data.plan import DataPlan, TextPlan
from distil_ray.data.schedule import Position
from distil_ray.data.tally import Tally
from distil_ray.errors import InputError, OutageError, RunError
from distil_ray.outages import AT_START, Patience

Result = TypeVar("Result")

MAX_TASKS = 4096
"""Tasks in one pipeline: Ray Data prepares all of them first, at about a millisecond and a few kB each."""

HORIZON_GROUPS = 4 * MAX_TASKS
"""Groups in one pipeline. A task makes several where there are more than tasks; not more than four, as a slot must be
able to work ahead by a whole task, see `_BYTES_AHEAD_PER_CPU`. A longer run continues with a second pipeline at the
position where the first one ended."""

_BYTES_AHEAD_PER_CPU = 64 * 2**20
"""Rows waiting for the workers, about ten groups per CPU slot. Without a limit the pipeline would fill the object store
as fast as it can, and take the CPU from everything else; 16 MiB leave gaps between a slot's tasks."""

_THROTTLE_SECONDS = 0.05

_ROW_BYTES_PER_TOKEN = 4  # of ids in 16 bits and what is masked, generously

_MAX_BYTES_PER_TOKEN = 8
_SPARE_GROUPS = 2

SAMPLE_GROUPS = 8
"""Groups of the first epoch from which pieces are counted for `mlm_smoothing`."""

_TRIAL_SECONDS = 1.0  # of making rows, to know how fast that is


class Listener(Protocol):
    """Receives what happens in the tasks of a pipeline."""

    def post_text(self, text: str) -> None:
        """Take a line for the user."""

    def note(self, topic: str, group: int, content: Any) -> None:
        """Take what happened to a group: it is ``empty`` (``content``: notes), or ``unreadable`` (``content``: whether
        the input is at fault, and why).
        """


def execution_options(
    num_cpus: int, node_label: Mapping[str, str] | None, *, tokens_taken_at_once: int = 0
) -> ExecutionOptions:
    """Options of the pipeline: how many CPU slots it may take, the label of the nodes to run on, and its memory.

    What the workers take at once, a block each, is cut from rows that wait, so both need room, however few slots there
    are: with less, a pipeline crawls.
    """
    num_bytes = num_cpus * _BYTES_AHEAD_PER_CPU + 2 * tokens_taken_at_once * _ROW_BYTES_PER_TOKEN
    return ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources(cpu=num_cpus, object_store_memory=num_bytes),
        label_selector=dict(node_label) if node_label else None,
    )


class IdleThrottle:
    """Pauses the scheduling loop of a pipeline after each turn while a block waits to be fetched.

    With as many rows waiting as its limit allows, the loop would otherwise spin, and take a third of a core from the
    workers. Ray Data calls these methods; those of its other events have nothing to do.
    """

    def on_execution_step(self, executor: Any) -> None:
        is_idling = getattr(executor, "_consumer_idling", None)  # private: without it, the loop is not slowed down
        if is_idling is not None and not is_idling():
            time.sleep(_THROTTLE_SECONDS)

    def before_execution_starts(self, executor: Any) -> None:
        pass

    def after_execution_succeeds(self, executor: Any) -> None:
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        pass


def configure_context() -> None:
    """Prepare the calling process for executing pipelines (the driver's settings do not reach the controller)."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    callbacks: list[Any] = context.custom_execution_callback_classes
    if IdleThrottle not in callbacks:
        callbacks.append(IdleThrottle)
    # A worker that evaluates or compiles takes nothing for a while; that is no reason to end the pipeline.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that there are no progress bars


def num_groups_ahead(plan: DataPlan, start: Position, num_rows: int | None, overprovision: int = 1) -> int:
    """How many groups the pipeline that starts at ``start`` covers, to give ``num_rows`` rows if that is known.

    Ample for English and most other text. Where it is not, another pipeline follows; one that gave no step at all is
    followed by one of greater ``overprovision``.
    """
    schedule = plan.schedule
    num_groups = HORIZON_GROUPS
    if num_rows is not None:
        num_bytes = num_rows * plan.settings.max_seq_length * _MAX_BYTES_PER_TOKEN
        bytes_per_group = int(schedule.unit_bytes.sum()) / schedule.groups_per_epoch
        num_groups = min(num_groups, overprovision * (int(num_bytes / bytes_per_group) + _SPARE_GROUPS))
    if schedule.num_groups is not None:
        num_groups = min(num_groups, schedule.num_groups - start.group)
    return num_groups


def train_dataset(
    plan: DataPlan,
    start: Position,
    *,
    num_groups: int,
    block_rows: int,
    filler_blocks: int,
    num_cpus: int,
    listener: Listener,
    outage_seconds: float,
) -> Dataset:
    """Build the pipeline of training rows after ``start``, in blocks of exactly ``block_rows`` rows.

    Text that cannot be read ends the rows with a mark, so that what was read before it can be trained on.

    Args:
        plan: the run's data.
        start: position of the last row consumed; nothing before its group is read.
        num_groups: how many groups to cover, see `num_groups_ahead`.
        block_rows: rows of a block; one block is one worker's share of one or more steps at the maximal number of
            workers.
        filler_blocks: blocks of filler after the last row. The equal split may drop as many blocks as there are
            workers, less one: it must drop these.
        num_cpus: CPU slots that the pipeline will have.
        listener: receives, in the process that reads, what is left out and what cannot be read.
        outage_seconds: how long to wait out an outage of the text's storage.
    """
    configure_context()
    end = start.group + num_groups
    groups_per_task = -(-num_groups // MAX_TASKS)
    num_tasks = -(-num_groups // groups_per_task)

    def filler(kind: int) -> Arrays:
        settings = plan.settings
        return filler_rows(
            block_rows * filler_blocks,
            settings.max_seq_length,
            settings.num_masked,
            plan.vocabulary.id_dtype,
            kind=kind,
        )

    def make_groups(batch: Any) -> Iterator[Arrays]:
        task = int(batch["id"][0])
        if task == num_tasks:
            yield filler(END_OF_SCHEDULE if end == plan.schedule.num_groups else MORE_FOLLOWS)
            return
        first = start.group + task * groups_per_task
        for group in range(first, min(first + groups_per_task, end)):
            try:
                rows, notes = _make_rows(plan, "train", group, Patience(outage_seconds, listener.post_text))
            except (InputError, OutageError) as error:
                listener.note("unreadable", group, (isinstance(error, InputError), str(error)))
                yield filler(READ_FAILED)
                return
            if not len(rows["row"]):
                listener.note("empty", group, notes)
            for note in notes:
                listener.post_text(note)
            yield {name: values[start.row + 1 :] for name, values in rows.items()} if group == start.group else rows

    tasks = ray.data.range(num_tasks + 1, override_num_blocks=num_tasks + 1)
    return _in_blocks(tasks, make_groups, block_rows, num_cutting_tasks=max(4, num_cpus // 2))


def _in_blocks(
    tasks: Dataset,
    make_rows: Callable[[Any], Iterator[Arrays]],
    block_rows: int,
    *,
    num_cutting_tasks: int,
    **options: Any,
) -> Dataset:
    """Make the rows of each task, and cut all of them into equal blocks, in order.

    Blocks are cut alongside, without a CPU slot, as that needs next to no time. Ray would keep up to half of the slots
    free for it; and a single slot would be used for rows until the last of them are made, with no block until then.
    Without a slot, the cutting tasks need a limit of their own, or each takes a process. `Dataset.repartition` has no
    argument for either.
    """
    rows = tasks.map_batches(make_rows, batch_size=None, batch_format="numpy", zero_copy_batch=True, **options)
    blocks = rows.repartition(target_num_rows_per_block=block_rows, strict=True)
    cutting = _last_operator(blocks)
    cutting.ray_remote_args["num_cpus"] = 0
    object.__setattr__(cutting, "compute", TaskPoolStrategy(size=num_cutting_tasks))
    return blocks


def _last_operator(dataset: Dataset) -> Any:
    """Return a dataset's last operator, of which Ray shows nothing in public."""
    operator = getattr(getattr(dataset, "_logical_plan", None), "dag", None)
    if not hasattr(operator, "ray_remote_args") or not hasattr(operator, "compute"):
        raise RunError(
            f"Ray {ray.__version__} builds its pipelines in another way than Ray 2.60, which distil_ray "
            "was made for; install the versions in constraints.txt, or a newer distil_ray"
        )
    return operator


def heldout_rows(
    plan: DataPlan, num_rows: int, *, num_cpus: int, node_label: Mapping[str, str] | None, warn: Callable[[str], None]
) -> Arrays:
    """Make at most ``num_rows`` held-out rows with fixed masks, an equal share from each held-out unit.

    Returns:
        The arrays of `batch`, in the order of (group, row); a pure function of the plan. Empty if it holds out none.

    Raises:
        InputError: the text cannot be read.
    """
    num_units = len(plan.eval_units)
    if num_units == 0:
        return {}
    quota = -(-num_rows // num_units)

    def make_unit(plan: DataPlan, unit: int) -> tuple[Arrays, list[str]]:
        rows, notes = _make_rows(plan, "eval", unit)
        return {name: values[:quota].copy() for name, values in rows.items()}, notes

    parts = []
    for rows, notes in _run(make_unit, plan, num_units, num_cpus, node_label):
        parts.append(rows)
        for note in notes:
            warn(note)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: values[:num_rows] for name, values in columns.items()}


class Room(NamedTuple):
    """What `evaluated_blocks` takes of the cluster.

    Attributes:
        num_actors: evaluators, at most.
        cpus, gpus: CPU slots and GPUs of each.
        data_cpus: CPU slots for reading and masking; with 0, that is done alongside the evaluators, one task at a time.
        max_restarts: how often an evaluator is restarted after the loss of its process or node.
    """

    num_actors: int
    cpus: float
    gpus: float
    data_cpus: int
    max_restarts: int


def evaluated_blocks(
    plan: TextPlan,
    evaluator: type[Any],
    arguments: Sequence[Any],
    *,
    block_rows: int,
    room: Room,
) -> Iterator[Arrays]:
    """Stream a text through actors, in blocks of exactly ``block_rows`` rows (the last one has the rest).

    Args:
        plan: the rows.
        evaluator: class of the actors; called with the arrays of a block, it returns arrays of one row.
        arguments: of its constructor.
        block_rows: rows of a block.
        room: what to take of the cluster; it changes neither the blocks nor their order.

    Yields:
        What an actor made of each block, in the order of the rows.

    Raises:
        InputError: the text cannot be read.
        RunError: an evaluator failed, or was lost too often.
    """
    configure_context()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs at length what is raised here in a line
    parts = np.array_split(np.arange(len(plan.units)), min(len(plan.units), MAX_TASKS))

    def make_part(batch: Any) -> Iterator[Any]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one task, one core
        for index in parts[int(batch["item"][0])]:
            rows = plan.rows_of(int(index))
            if len(rows["row"]):  # Arrow has no empty tensors
                yield rows

    num_tasks = min(max(room.data_cpus, 1), len(parts))
    # Not `ray.data.range`: its tasks would take a slot even where the evaluators leave none.
    items = ray.data.from_items(list(range(len(parts))), override_num_blocks=len(parts))
    blocks = _in_blocks(
        items,
        make_part,
        block_rows,
        num_cutting_tasks=min(4, len(parts)),
        num_cpus=min(room.data_cpus, 1),
        compute=TaskPoolStrategy(size=num_tasks),
    )
    evaluated = blocks.map_batches(
        evaluator,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="numpy",
        compute=ActorPoolStrategy(min_size=1, max_size=room.num_actors, initial_size=room.num_actors),
        num_cpus=room.cpus,
        num_gpus=room.gpus,
    )
    _last_operator(evaluated).ray_remote_args.update(max_restarts=room.max_restarts, max_task_retries=room.max_restarts)
    evaluated.context.execution_options = ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources(object_store_memory=(room.num_actors + num_tasks) * _BYTES_AHEAD_PER_CPU),
    )
    evaluated.context.raise_original_map_exception = True
    try:
        yield from evaluated.iter_batches(batch_size=None, batch_format="numpy")
    except ray.exceptions.RayError as error:
        raise _in_a_line(error) from None


def _in_a_line(error: ray.exceptions.RayError) -> Exception:
    """What went wrong in a pipeline, without what Ray adds to it."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    message = str(cause).partition("\nFailed to apply UDF transform")[0]
    if isinstance(cause, InputError):
        return InputError(message.strip())
    return RunError(f"the evaluation of the text failed: {type(cause).__name__}: {' '.join(message.split())}")


def look_at_text(plan: DataPlan, *, node_label: Mapping[str, str] | None) -> tuple[Tally, list[str]]:
    """Read some of the training text on a node for data tasks; return what became of it, and its first documents.

    Raises:
        InputError: it cannot be read, or no group of an epoch gives a row.
        OutageError: its storage does not answer.
    """

    def look(plan: DataPlan, _: int) -> tuple[Tally, list[str]]:
        try:
            tally = plan.glance()
        except InputError:
            tally = plan.first_rows()[1]  # or it raises what is wrong
        return tally, plan.first_documents()

    return next(iter(_run(look, plan, 1, 1, node_label)))


def sample_piece_counts(
    plan: DataPlan, *, num_cpus: int, node_label: Mapping[str, str] | None
) -> npt.NDArray[np.int64]:
    """Count the pieces ``[V]`` of the first `SAMPLE_GROUPS` groups: the weights of `mlm_smoothing` rest on them.

    Raises:
        InputError: the text cannot be read.
    """
    num_groups = min(SAMPLE_GROUPS, plan.schedule.groups_per_epoch)

    def count_group(plan: DataPlan, group: int) -> npt.NDArray[np.int64]:
        return plan.piece_counts_of(group)

    counts = list(_run(count_group, plan, num_groups, num_cpus, node_label))
    total: npt.NDArray[np.int64] = np.sum(counts, axis=0, dtype=np.int64)
    return total


def tokens_per_second(plan: DataPlan, *, node_label: Mapping[str, str] | None) -> float:
    """Tokens of rows that a CPU slot of a node for data tasks makes in a second, tried on the first groups.

    Raises:
        InputError: the text cannot be read.
    """

    def time_groups(plan: DataPlan, _: int) -> float:
        _make_rows(plan, "train", 0)  # loads the tokenizer
        num_rows, began, seconds = 0, time.perf_counter(), 0.0
        for group in range(min(SAMPLE_GROUPS, plan.schedule.groups_per_epoch)):
            num_rows += len(_make_rows(plan, "train", group)[0]["row"])
            seconds = time.perf_counter() - began
            if seconds > _TRIAL_SECONDS:
                break
        return num_rows * plan.settings.max_seq_length / seconds

    return next(iter(_run(time_groups, plan, 1, 1, node_label)))


def _make_rows(
    plan: DataPlan, split: Literal["train", "eval"], group: int, patience: Patience = AT_START
) -> tuple[Arrays, list[str]]:
    """The rows of one group, and a note on each unit that is left out, or on why there is no row."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one task, one core: Ray counts on it
    rows, tally = plan.rows_of(split, group, patience)
    notes = [f"left out: {error}" for error in tally.unit_errors]
    if not len(rows["row"]):
        notes.append(f"{split} group {group} gave no row: {tally.why_no_row()}")
    return rows, notes


def _run(
    function: Callable[[DataPlan, int], Result],
    plan: DataPlan,
    num_calls: int,
    num_cpus: int,
    node_label: Mapping[str, str] | None,
) -> Iterator[Result]:
    """Yield ``function(plan, i)`` for i = 0 … num_calls - 1 in order, computed in tasks, ``num_cpus`` at once.

    Plain tasks and no pipeline: that would take seconds to start, for work of about a second.
    """
    options: Any = {
        "num_cpus": 1,
        "label_selector": dict(node_label) if node_label else None,
        "scheduling_strategy": "DEFAULT",  # anywhere: in an actor, it would otherwise be in that actor's own slot
    }
    task = ray.remote(function).options(**options)
    shared_plan = ray.put(plan)
    waiting: deque[Any] = deque()
    try:
        for index in range(num_calls):
            if len(waiting) == num_cpus:
                yield ray.get(waiting.popleft())
            waiting.append(task.remote(shared_plan, index))
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, InputError | RunError) else error from None
