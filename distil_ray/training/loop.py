"""The training loop, run by every worker of the group. It knows its surroundings from `World` alone."""

import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from distil_ray.errors import InputError, OutageError
from distil_ray.models.embedding import NO_FILES, StudentFiles, sentence_transformers_files
from distil_ray.models.loading import check_finite_outputs
from distil_ray.models.precision import Precision, common_precision, fastest_precision
from distil_ray.runs.lease import LeaseLostError
from distil_ray.runs.storage import FINISHED_FILE, NONFINITE_FILE
from distil_ray.training.assembly import build_models, build_tokenizer
from distil_ray.training.checkpoint import (
    PARTS,
    Checkpoint,
    CheckpointWriter,
    Tensors,
    TrainState,
    withdraw_damaged,
)
from distil_ray.training.compile_cache import CompileCache
from distil_ray.training.export import export_student
from distil_ray.training.feed import BlockFeed, StepRows, StopReason
from distil_ray.training.gradient_norms import GradientNorms
from distil_ray.training.heldout import HeldOut
from distil_ray.training.job import Job, Kind, Outcome
from distil_ray.training.learner import Learner
from distil_ray.training.metrics import Reporter, is_writable, read_records, summarize
from distil_ray.training.passes import too_little_text
from distil_ray.training.world import World


def train(job: Job, world: World) -> Outcome:
    """Train from the last committed checkpoint until the run or the pipeline ends."""
    # 1. Find the last committed checkpoint; the pipeline must begin there, too.
    config, folder = job.config, world.folder
    found = _find_checkpoint(world)
    if world.events.noted("start").get("checkpoint", found.name) != found.name:
        return Outcome("again", "; ".join(found.complaints))
    state = replace(found.state, precision=_agree_on_precision(job, world, found))
    if config.optim.num_steps == 0:  # there is only something to evaluate and to export
        state = replace(state, progress=1.0)

    # 2. Set up what is equal on all workers; if one of them cannot, none begins.
    setup = _set_up(job, world, state.precision)
    if isinstance(setup, Outcome):
        return setup
    tokenizer, learner, embedding = setup
    if found.name is not None:
        learner.load({part: world.share(found.load(part)) for part in PARTS})
    compiled = CompileCache(folder, is_active=config.runtime.compile, is_main=world.is_main)
    compiled.load()
    checkpoints = CheckpointWriter(
        folder,
        config.checkpoint.keep,
        every_steps=config.checkpoint.every_steps,
        every_minutes=config.checkpoint.every_minutes,
        is_active=world.is_main,
    )
    has_board = "tensorboard" in config.metrics.trackers
    reporter = Reporter(folder, world.events, is_active=world.is_main, has_board=has_board)
    reporter.begin(state, found.name, found.complaints, is_continuation=state.step == job.continues_at)
    if world.is_main:
        for line in embedding.omitted:
            world.events.post_text(line)
    if world.is_main and world.device.type == "cuda":
        world.events.post_text(learner.describe_attention())
    feed = BlockFeed(
        world,
        config.runtime.max_workers,
        config.data.steps_per_block,
        start=state.position,
        start_group_rows=state.group_rows,
        num_done=state.steps_after,
    )
    heldout = HeldOut(job.heldout, world, config.micro_batch_size)
    meter = learner.new_meter(world.world_size)
    saved_step = evaluated_step = state.step
    norms, is_over = GradientNorms(state), False
    if found.name is None:
        reporter.record(state, heldout.evaluate(learner))

    def save(state: TrainState) -> None:
        checkpoints.save(replace(state, saved_at=time.time()), learner.tensors())

    try:
        while state.progress < 1:
            # 3. Take the step's rows; all workers agree on what they are, and whether to leave before them.
            rows = feed.next_step()
            if rows is None:
                break

            # 4. Update the student.
            grad_norm, learning_rate = learner.update(rows, state.step, state.progress, meter)
            compiled.save()
            previous, state = state, _advance(state, rows, job)
            norms.add(state, grad_norm)

            # 5. Report and evaluate.
            reporter.digest(state.step, rows.digest, rows.position)
            record: dict[str, Any] = {}
            if state.is_due(config.metrics.every_steps):
                state = norms.settle(state)
                record |= {"train/learning_rate": learning_rate, "train/grad_norm": norms.latest}
                record |= meter.record() | {"data/digest": f"{rows.digest:016x}"}
            if state.is_due(config.eval.every_steps):
                state = norms.settle(state)
                with meter.pause():
                    record |= heldout.evaluate(learner)
                evaluated_step = state.step
            _report(world, reporter, state, record)

            # 6. Give up when the gradient stays without a finite norm. Nothing was learned since the last finite one.
            if norms.have_diverged(config.optim.max_skipped_updates):
                reporter.sync()
                if norms.last_finite.step > saved_step:
                    save(norms.last_finite)
                return _give_up(world, previous, state, rows, norms)

            # 7. Save, and also when a node's end is announced. Progress counts once its checkpoint is committed.
            if world.preemption.is_new() or checkpoints.is_due(state):
                reporter.sync()
                save(norms.settle(state))
                saved_step = state.step

        # 8. Finish, or leave the rest to the next pass (on other nodes, perhaps) or to another day.
        is_over = True
        if feed.is_at_end and state.step == 0:
            return too_little_text(config, state.step)
        is_finished = state.progress >= 1 or feed.is_at_end
        if is_finished:
            state = replace(norms.settle(state), progress=1.0)
            record = meter.record() if meter.num_steps else {}
            record |= heldout.evaluate(learner) if state.step > evaluated_step else {}
            _report(world, reporter, state, record)
        reporter.sync()
        if state.step > saved_step:
            save(norms.settle(state))
        checkpoints.wait()
    except LeaseLostError as error:
        if is_over:  # no other worker waits for this one
            return Outcome("lost", str(error), step=saved_step)
        raise
    finally:
        checkpoints.wait()
        reporter.close()
    if feed.has_failed:
        return _unreadable(world.events.noted("unreadable"), state)
    if not is_finished:
        return Outcome(_what_next(feed.stop_reason), step=state.step)
    if world.is_main:
        summary = summarize(read_records(folder), state) | {"finished_at": time.time()}
        export_student(folder, learner.student, tokenizer, config, summary, embedding.files)
        folder.write_json(FINISHED_FILE, summary)
    return Outcome("finished", step=state.step)


_Setup = tuple[PreTrainedTokenizerBase, Learner, StudentFiles]


def _set_up(job: Job, world: World, precision: Precision) -> _Setup | Outcome:
    """Load what the run starts from; on all workers, the failure of the first one that cannot."""
    result: _Setup | Outcome
    try:
        result = _load(job, world.device, precision)
    except (InputError, OutageError) as error:
        where = f"on node {socket.gethostname()}: " if world.world_size > 1 else ""
        result = Outcome("outage" if isinstance(error, OutageError) else "bad input", f"{where}{error}")
    failures = world.gather(result if isinstance(result, Outcome) else None)
    return next((failure for failure in failures if failure is not None), result)


def _load(job: Job, device: torch.device, precision: Precision) -> _Setup:
    tokenizer = build_tokenizer(job.config, job.models)
    models = build_models(job.config, tokenizer, job.models)
    # Now and not at the export, when the Hub may be silent.
    teacher = job.models.get("teacher")
    embedding = sentence_transformers_files(teacher.origin, models[1]) if teacher is not None else NO_FILES
    learner = Learner(job.config, *models, device=device, precision=precision)
    if learner.teacher is not None:
        sample = torch.from_numpy(job.sample.astype(np.int64)).to(device)
        with learner.autocast():
            check_finite_outputs(learner.teacher, sample, "teacher")
    return tokenizer, learner, embedding


class _Found(NamedTuple):
    """The newest checkpoint that is complete and undamaged, as rank 0 sees it, and what is wrong with newer ones."""

    name: str | None
    state: TrainState
    complaints: list[str]
    checkpoint: Checkpoint | None = None
    """On rank 0 alone: it reads the tensors once, and passes them on."""

    def load(self, part: str) -> Tensors | None:
        return None if self.checkpoint is None else self.checkpoint.load(part)


def _find_checkpoint(world: World) -> _Found:
    checkpoint, complaints = withdraw_damaged(world.folder) if world.is_main else (None, [])
    own = _Found(None, TrainState(), complaints)
    if checkpoint is not None:
        own = _Found(checkpoint.name, checkpoint.state, complaints)
    return world.gather(own)[0]._replace(checkpoint=checkpoint)


def _agree_on_precision(job: Job, world: World, found: _Found) -> Precision:
    """The configuration's; where it leaves that open, the run's so far, or at its start the fastest for all workers."""
    given = job.config.runtime.precision
    if given != "auto":
        return given
    if found.name is not None:
        return found.state.precision
    return common_precision(world.gather(fastest_precision(world.device)))


def _unreadable(notes: Mapping[int, tuple[bool, str]], state: TrainState) -> Outcome:
    """The end of a run whose text cannot be read any further: the first of the groups that could not be is at fault."""
    is_input_error, message = notes[min(notes)] if notes else (False, "the text could not be read")
    return Outcome("bad input" if is_input_error else "outage", message, step=state.step)


def _what_next(reason: StopReason) -> Kind:
    if reason.is_stop_wanted:
        return "stopped"
    return "moving" if reason.is_node_leaving else "more"


def _advance(state: TrainState, rows: StepRows, job: Job) -> TrainState:
    """The state after one more step."""
    optim = job.config.optim
    if optim.num_steps is not None:
        progress = (state.step + 1) / optim.num_steps
    else:
        assert job.num_groups is not None
        progress = rows.groups_done / job.num_groups
    added = {
        "data/tokens": job.config.tokens_per_step,
        **{f"data/{name}": count for name, count in rows.skipped.items()},
    }
    counters = {name: state.counters.get(name, 0) + count for name, count in added.items()}
    state = replace(
        state,
        step=state.step + 1,
        progress=progress,
        counters=state.counters | counters,
        steps_after=rows.index + 1,
    )
    if rows.index + 1 < job.config.data.steps_per_block:
        return state
    return replace(state, position=rows.position, group_rows=rows.group_rows, steps_after=0)


def _report(world: World, reporter: Reporter, state: TrainState, record: dict[str, Any]) -> None:
    """Write a record to the run's folder; report an evaluation to the world as well."""
    if record:
        reporter.record(state, record)
    if any(name.startswith("eval/") for name in record):
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and is_writable(v)}
        world.report({"step": state.step, "run/progress": state.progress} | numbers)


def _give_up(world: World, previous: TrainState, state: TrainState, rows: StepRows, norms: GradientNorms) -> Outcome:
    """End the run and write down which rows the last batch had: with k steps per block, every k-th from ``first``."""
    if world.is_main:
        found = {"rows_after": previous.position, "up_to": rows.position, "first": rows.index}
        counts = {"step": state.step, "in_a_row": norms.num_in_a_row}
        world.folder.write_json(NONFINITE_FILE, counts | found)
    return Outcome(
        "diverged",
        f"the gradient had no finite norm in {norms.num_in_a_row} steps in a row, up to step {state.step}; their "
        f"updates were skipped. The last batch's rows are listed in {world.folder.join(NONFINITE_FILE)}. A lower "
        "optim.learning_rate or precision fp32 is the usual remedy",
        step=norms.last_finite.step,
    )
