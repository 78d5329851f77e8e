"""The training loop, run by every worker of the group."""

import math
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from distil_ray.config import Config
from distil_ray.errors import InputError, OutageError
from distil_ray.models.loading import check_finite_outputs
from distil_ray.outages import Patience
from distil_ray.runs.lease import LeaseLostError
from distil_ray.runs.stopping import Departures
from distil_ray.runs.storage import RunFolder
from distil_ray.training.assembly import build_models, build_tokenizer
from distil_ray.training.checkpoint import Checkpoint, CheckpointWriter, TrainState, open_checkpoint, withdraw_damaged
from distil_ray.training.export import export_student
from distil_ray.training.feed import BlockFeed, Notice, StepRows
from distil_ray.training.heldout import HeldOut
from distil_ray.training.job import Job, Kind, Outcome
from distil_ray.training.learner import Learner
from distil_ray.training.metrics import Reporter, is_writable, read_records

FINISHED_FILE = "finished.json"
NONFINITE_FILE = "nonfinite.json"


def train_loop_per_worker(loop_config: dict[str, Any]) -> Outcome:
    """Train from the last committed checkpoint on, until the run or the pipeline ends."""
    job: Job = loop_config["job"]
    config = job.config
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    group = dist.new_group(backend="gloo") if config.runtime.use_gpu else None

    # 1. Set up what is equal on all workers; if one of them cannot, none begins.
    patience = Patience(config.runtime.outage_seconds, job.events.line)
    folder = job.claim.guard(RunFolder(config.run.storage_path, config.run.name, patience=patience))
    try:
        tokenizer, learner, problem = *_set_up(job), None
    except (InputError, OutageError) as error:
        tokenizer, learner, problem = None, None, error
    if failure := _first_failure(problem, world_size, group):
        return failure
    assert tokenizer is not None
    assert learner is not None
    heldout = HeldOut(
        job.heldout,
        rank=rank,
        world_size=world_size,
        batch_size=config.micro_batch_size,
        device=learner.device,
    )

    # 2. Resume from the last committed checkpoint, which rank 0 verifies; the pipeline must begin there, too.
    checkpoint, complaints = _agree_on_checkpoint(folder, rank, group)
    if job.events.noted("start").get("checkpoint", checkpoint and checkpoint.name) != (checkpoint and checkpoint.name):
        return Outcome("again", "; ".join(complaints))
    state = TrainState() if checkpoint is None else checkpoint.state
    if checkpoint is not None:
        learner.restore(checkpoint)
    checkpoints = CheckpointWriter(folder, config.checkpoint.keep, is_active=rank == 0)
    reporter = Reporter(folder, job.events, is_active=rank == 0)
    departures = Departures()
    resumed_from = None if checkpoint is None else checkpoint.name
    reporter.begin(state, resumed_from, complaints, is_continuation=state.step == job.continues_at)
    feed = BlockFeed(
        ray.train.get_dataset_shard("train").iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2),
        start=state.position,
        start_group_rows=state.group_rows,
        rank=rank,
        world_size=world_size,
        blocks_per_step=config.runtime.max_workers,
        group=group,
        is_stop_wanted=job.events.is_stop_wanted,
        is_node_leaving=departures.are_imminent,
        empty_groups=lambda: job.events.noted("empty"),
    )
    saved_step = evaluated_step = state.step
    if checkpoint is None:
        reporter.record(state, heldout.evaluate(learner))
    meter = learner.new_meter(world_size)
    num_nonfinite, last_finite, is_over = 0, state, False

    try:
        while state.progress < 1:
            # 3. Take the step's rows; all workers agree on what they are, and whether to leave before them.
            rows = feed.next_step()
            if rows is None:
                break

            # 4. Update the student.
            grad_norm, learning_rate = learner.update(rows, state.step, state.progress, meter)
            num_nonfinite = 0 if math.isfinite(grad_norm) else num_nonfinite + 1
            previous, state = state, _advance(state, rows, job, is_skipped=num_nonfinite > 0)
            last_finite = last_finite if num_nonfinite else state

            # 5. Report and evaluate.
            reporter.digest(state, rows.digest)
            record: dict[str, Any] = {}
            if _is_due(state, config.metrics.every_steps):
                record |= {"train/learning_rate": learning_rate, "train/grad_norm": grad_norm}
                record |= meter.record() | {"data/digest": f"{rows.digest:016x}"}
            if _is_due(state, config.eval.every_steps):
                with meter.pause():
                    record |= heldout.evaluate(learner)
                evaluated_step = state.step
            _report(reporter, state, record)

            # 6. Give up when the gradient stays without a finite norm. Nothing was learned since the last finite one.
            if num_nonfinite >= config.optim.max_skipped_updates:
                reporter.sync()
                if last_finite.step > saved_step:
                    checkpoints.save(replace(last_finite, saved_at=time.time()), learner.tensors())
                return _give_up(folder, previous, state, last_finite, num_nonfinite, is_main=rank == 0)

            # 7. Save, and also when a node is announced to go. Progress counts once its checkpoint is committed.
            if departures.are_news() or _is_due(state, config.checkpoint.every_steps):
                reporter.sync()
                checkpoints.save(replace(state, saved_at=time.time()), learner.tensors())
                saved_step = state.step

        # 8. Finish, or leave the rest to the next pass (on other nodes, perhaps) or to another day.
        is_over = True
        if feed.is_at_end and state.step == 0:
            return too_little_text(config, state.step)
        is_finished = state.progress >= 1 or feed.is_at_end
        if is_finished:
            state = replace(state, progress=1.0)
            record = meter.record() if meter.num_steps else {}
            record |= heldout.evaluate(learner) if state.step > evaluated_step else {}
            _report(reporter, state, record)
        reporter.sync()
        if state.step > saved_step:
            checkpoints.save(replace(state, saved_at=time.time()), learner.tensors())
        checkpoints.wait()
    except LeaseLostError as error:
        if is_over:  # no other worker waits for this one
            return Outcome("lost", str(error), step=saved_step)
        raise
    finally:
        checkpoints.wait()
    if feed.has_failed:
        return _unreadable(job.events.noted("unreadable"), state)
    if not is_finished:
        return Outcome(_what_next(feed.notice), step=state.step)
    if rank == 0:
        summary = _summarise(folder, state)
        export_student(folder, learner.student, tokenizer, config, summary)
        folder.write_json(FINISHED_FILE, summary)
    return Outcome("finished", step=state.step)


def _set_up(job: Job) -> tuple[PreTrainedTokenizerBase, Learner]:
    """Load what the run starts from.

    Raises:
        InputError: it cannot be used.
        OutageError: the Hub does not answer.
    """
    tokenizer = build_tokenizer(job.config, job.models)
    models = build_models(job.config, tokenizer, job.models)
    learner = Learner(job.config, *models, device=ray.train.torch.get_device())
    if learner.teacher is not None:
        sample = torch.from_numpy(job.sample.astype(np.int64)).to(learner.device)
        with learner.autocast():
            check_finite_outputs(learner.teacher, sample, "teacher")
    return tokenizer, learner


def _first_failure(problem: Exception | None, world_size: int, group: dist.ProcessGroup | None) -> Outcome | None:
    """Agree on one failure: the first failing worker's; None if all are well."""
    own = None
    if problem is not None:
        where = f"on node {socket.gethostname()}: " if world_size > 1 else ""
        own = Outcome("outage" if isinstance(problem, OutageError) else "bad input", f"{where}{problem}")
    found: list[Outcome | None] = [own]
    if world_size > 1:
        found = [None] * world_size
        dist.all_gather_object(found, own, group=group)
    return next(filter(None, found), None)


def _agree_on_checkpoint(
    folder: RunFolder, rank: int, group: dist.ProcessGroup | None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is complete and undamaged, as rank 0 sees it, and what is wrong with newer ones."""
    checkpoint, complaints = withdraw_damaged(folder) if rank == 0 else (None, [])
    if dist.is_initialized() and dist.get_world_size() > 1:
        choice: list[Any] = [checkpoint and checkpoint.name, complaints]
        dist.broadcast_object_list(choice, src=0, group=group)
        name, complaints = choice
        if rank > 0 and name is not None:
            checkpoint = open_checkpoint(folder, name)
    return checkpoint, complaints


def _unreadable(notes: Mapping[int, tuple[bool, str]], state: TrainState) -> Outcome:
    """The end of a run whose text cannot be read any further: the first of the groups that could not be is at fault."""
    is_input_error, message = notes[min(notes)] if notes else (False, "the text could not be read")
    return Outcome("bad input" if is_input_error else "outage", message, step=state.step)


def _what_next(notice: Notice) -> Kind:
    if notice.is_stop_wanted:
        return "stopped"
    return "moving" if notice.is_node_leaving else "more"


def _is_due(state: TrainState, every_steps: int) -> bool:
    return state.step % every_steps == 0 or state.progress >= 1


def _advance(state: TrainState, rows: StepRows, job: Job, *, is_skipped: bool) -> TrainState:
    """The state after one more step."""
    optim = job.config.optim
    if optim.num_steps is not None:
        progress = (state.step + 1) / optim.num_steps
    else:
        assert job.num_groups is not None
        progress = (rows.position.group + rows.group_share) / job.num_groups
    added = {
        "data/tokens": optim.global_batch_size * job.config.data.max_seq_length,
        **{f"data/{name}": count for name, count in rows.skipped.items()},
        "train/skipped_updates": int(is_skipped),
    }
    counters = {name: state.counters.get(name, 0) + count for name, count in added.items()}
    return TrainState(state.step + 1, rows.position, progress, counters, group_rows=rows.group_rows)


def _report(reporter: Reporter, state: TrainState, record: dict[str, Any]) -> None:
    """Write a record down; an evaluation goes to Ray too, whose controller takes one report per look."""
    if record:
        reporter.record(state, record)
    if "eval/mlm_loss" in record:
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and is_writable(v)}
        ray.train.report({"step": state.step, "run/progress": state.progress} | numbers)


def too_little_text(config: Config, num_steps: int) -> Outcome:
    """The end of a run whose text holds no further step."""
    rows, length = config.optim.global_batch_size, config.data.max_seq_length
    return Outcome(
        "bad input",
        f"the text holds no further step of optim.global_batch_size = {rows} rows of data.max_seq_length = {length} "
        f"tokens (steps done: {num_steps}); expected at least {rows * length:,} tokens: give more text, more "
        "num_epochs, or a smaller batch",
        step=num_steps,
    )


def _give_up(
    folder: RunFolder,
    previous: TrainState,
    state: TrainState,
    last_finite: TrainState,
    num_nonfinite: int,
    *,
    is_main: bool,
) -> Outcome:
    """End the run and write down which rows the last batch had."""
    if is_main:
        folder.write_json(
            NONFINITE_FILE,
            {
                "step": state.step,
                "rows_after": previous.position,
                "up_to": state.position,
                "in_a_row": num_nonfinite,
            },
        )
    return Outcome(
        "diverged",
        f"the gradient had no finite norm in {num_nonfinite} steps in a row, up to step {state.step}; their updates "
        f"were skipped. The last batch's rows stand in {folder.join(NONFINITE_FILE)}. A lower "
        "optim.learning_rate or precision fp32 is the usual remedy",
        step=last_finite.step,
    )


def _summarise(folder: RunFolder, state: TrainState) -> dict[str, Any]:
    """The run's last figures, from its records."""
    last: dict[str, Any] = {}
    for record in read_records(folder):
        last |= record
    figures = {name: value for name, value in last.items() if name.startswith(("eval/", "train/", "data/"))}
    return {
        "step": state.step,
        "tokens": state.counters["data/tokens"],
        "finished_at": time.time(),
        **figures,
    }
