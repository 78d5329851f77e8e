"""A configuration -> a fitted `TorchTrainer`: the checks before a run, its passes, and how it ended."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import ray.train
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.config import Config, difference, learned, to_yaml
from distil_ray.data.batch import Arrays
from distil_ray.data.pipeline import (
    HORIZON_GROUPS,
    execution_options,
    heldout_rows,
    num_groups_ahead,
    sample_piece_counts,
    train_dataset,
)
from distil_ray.data.plan import DataPlan, explain_fingerprints
from distil_ray.errors import DivergedError, InputError, RunError, Stopped, reason_of
from distil_ray.training.assembly import build_models, build_plan, build_tokenizer, smoothing_weights
from distil_ray.training.checkpoint import TrainState, latest_checkpoint
from distil_ray.training.cluster import check_fits, connect, slots_needed, worker_resources
from distil_ray.training.console import Console
from distil_ray.training.events import Line
from distil_ray.training.export import EXPORT_FOLDER
from distil_ray.training.job import Job, Outcome
from distil_ray.training.lease import Claim, holding
from distil_ray.training.loop import FINISHED_FILE, too_little_text, train_loop_per_worker
from distil_ray.training.stopping import Stopping
from distil_ray.training.storage import RunFolder
from distil_ray.training.waiting import telling_of_nodes

CONFIG_FILE = "config.yaml"
IDENTITY_FILE = "identity.json"


def launch(
    config: Config, console: Console, callbacks: Sequence[UserCallback] = (), claim: Claim | None = None
) -> None:
    """Do the whole run, or what is left of it. Ray Train's controller calls ``callbacks``.

    Args:
        claim: to a folder around the run's, as a trial has it from its search; without one, the run's own is held.

    Raises:
        InputError: bad configuration or input, found before the start where that is possible; the folder is in use.
        RunError: the run started and failed; a `DivergedError` if it would do so again.
        Stopped: a signal has ended it, behind a checkpoint if a step had been done.
    """
    folder = RunFolder(config.run.storage_path, config.run.name)
    check_learned_settings(learned(config), folder)
    if _is_finished(config, folder, console):
        return
    own = holding(folder, "distil_ray.train", console.line) if claim is None else nullcontext(claim)
    with own as held:
        if not _is_finished(config, folder, console):  # in the meantime
            _launch(config, console, callbacks, held)


def _is_finished(config: Config, folder: RunFolder, console: Console) -> bool:
    if not folder.exists(FINISHED_FILE):
        return False
    console.line(f"{config.run.name} is finished: the student is in {folder.join(EXPORT_FOLDER)}")
    return True


def _launch(config: Config, console: Console, callbacks: Sequence[UserCallback], claim: Claim) -> None:
    folder = claim.guard(RunFolder(config.run.storage_path, config.run.name))
    plan = examine(config, folder, console).plan
    console.line(connect(slots_needed(config)["CPU"]))
    for line in check_fits(config):
        console.line(line)
    folder.write_text(CONFIG_FILE, to_yaml(config))
    folder.write_json(IDENTITY_FILE, {"learned": learned(config), "data": plan.fingerprint()})
    console.line(f"run {config.run.name} in {folder.path}")
    events = Line()
    stopping = Stopping(events)
    try:
        with console.following(events), telling_of_nodes(events.line), stopping.handled():
            outcome = _train(config, plan, folder, events, stopping, callbacks, claim)
    except KeyboardInterrupt:
        message = "stopped at once; the same command goes on from the last checkpoint"
        raise Stopped(stopping.signal_number, message) from None
    finally:
        events.close()
    _raise_unless_finished(outcome, stopping)
    console.line(f"finished: the student is in {folder.join(EXPORT_FOLDER)}")


def _raise_unless_finished(outcome: Outcome, stopping: Stopping) -> None:
    if outcome.kind == "stopped":
        saved = f"step {outcome.step:,} is saved" if outcome.step else "before the first step"
        raise Stopped(stopping.signal_number, f"stopped: {saved}; the same command goes on from there")
    if outcome.kind == "failed":
        raise InputError(outcome.message) if outcome.is_input_error else DivergedError(outcome.message)


class Examined(NamedTuple):
    """What a run is made of."""

    tokenizer: PreTrainedTokenizerBase
    teacher: PreTrainedModel | None
    student: PreTrainedModel
    plan: DataPlan


def examine(config: Config, folder: RunFolder, console: Console) -> Examined:
    """Load and list everything that can be had without Ray, and say what it is.

    Raises:
        InputError: something cannot be used, or does not belong to the run that is in the folder.
    """
    tokenizer = build_tokenizer(config)
    teacher, student = build_models(config, tokenizer)
    for line in describe_models(config, teacher, student):
        console.line(line)
    plan = build_plan(config, tokenizer)
    for line in describe_data(config, plan):
        console.line(line)
    folder.check_writable()
    check_corpus(plan, folder)
    return Examined(tokenizer, teacher, student, plan)


def check_learned_settings(settings: Mapping[str, Any], folder: RunFolder) -> None:
    """Refuse to go on with a run (or a search) under settings, by dotted key, that would teach something else.

    Raises:
        InputError: with each difference.
    """
    if not folder.exists(IDENTITY_FILE):
        return
    differences = difference(folder.read_json(IDENTITY_FILE, "learned")["learned"], settings)
    if differences:
        _refuse(folder, "was started with other settings", differences)


def check_corpus(plan: DataPlan, folder: RunFolder) -> None:
    """Refuse to go on with a run on other text.

    Raises:
        InputError: with what changed.
    """
    if not folder.exists(IDENTITY_FILE):
        return
    reasons = explain_fingerprints(folder.read_json(IDENTITY_FILE, "data")["data"], plan.fingerprint())
    if reasons:
        _refuse(folder, "was started on other text", reasons)


def _refuse(folder: RunFolder, what: str, reasons: list[str]) -> None:
    listed = "\n".join(f"  {reason}" for reason in reasons)
    raise InputError(
        f"the run in {folder.path} {what}:\n{listed}\nGive it a new run.name, or set back what changed to go on"
    )


def describe_models(config: Config, teacher: PreTrainedModel | None, student: PreTrainedModel) -> list[str]:
    """Lines about teacher, student and the losses."""
    lines = []
    if teacher is not None and config.teacher is not None:
        lines.append(f"teacher: {config.teacher.path}, {_describe_model(teacher)}")
    share = f" ({student.num_parameters() / teacher.num_parameters():.0%} of the teacher)" if teacher else ""
    lines.append(f"student: {_describe_model(student)}{share}")
    weights = ", ".join(f"{name} {share:.3f}" for name, share in config.distill.shares.items())
    lines.append(f"loss weights, as shares of their sum: {weights}")
    return lines


def _describe_model(model: PreTrainedModel) -> str:
    config = model.config
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{model.num_parameters():,} parameters"
    )


def describe_data(config: Config, plan: DataPlan) -> list[str]:
    """Lines about the corpus and its order."""
    corpus, schedule = plan.corpus, plan.schedule
    lines = [
        f"text: {len(corpus.files):,} files, {corpus.num_bytes / 1e6:,.1f} MB in {corpus.num_units:,} units; "
        f"{len(schedule.units):,} to train on in {schedule.groups_per_epoch:,} groups an epoch, "
        f"{len(plan.eval_units):,} held out"
    ]
    lines += [f"left out {file.path}: {file.reason}" for file in corpus.skipped_files]
    if plan.eval_corpus is not corpus:
        lines += [f"left out {file.path}: {file.reason}" for file in plan.eval_corpus.skipped_files]
    return lines


def prepare_data(config: Config, plan: DataPlan, warn: Callable[[str], None]) -> tuple[DataPlan, Arrays]:
    """Read what must be known before the first step: piece counts for smoothing, and the held-out rows."""
    cpus: dict[str, Any] = {"num_cpus": config.runtime.data_cpus, "node_label": config.runtime.data_label}
    smoothing = config.data.mlm_smoothing
    if smoothing:
        weights = smoothing_weights(sample_piece_counts(plan, **cpus), smoothing)
        plan = replace(plan, settings=replace(plan.settings, piece_weights=weights))
    return plan, heldout_rows(plan, config.eval.num_rows, warn=warn, **cpus)


def _train(
    config: Config,
    plan: DataPlan,
    folder: RunFolder,
    events: Line,
    stopping: Stopping,
    callbacks: Sequence[UserCallback],
    claim: Claim,
) -> Outcome:
    """Fit once for each stretch of the schedule that one pipeline covers: once, but for enormous runs."""
    plan, heldout = prepare_data(config, plan, events.line)
    job = Job(config, heldout, plan.schedule.num_groups, events, claim)
    generosity = 1
    try:
        while (outcome := _fit(job, plan, folder, generosity, stopping, callbacks)).kind in ("more", "moving"):
            if outcome.kind == "moving":
                events.line(f"a node is leaving: step {outcome.step:,} is saved, the run goes on without that node")
            else:
                generosity = generosity * 16 if outcome.step == (job.continues_at or 0) else 1
            if generosity > HORIZON_GROUPS:
                return too_little_text(config, outcome.step)
            job = replace(job, continues_at=outcome.step)
    except ray.train.TrainingFailedError as error:
        raise RunError(_failure_message(config, folder, error)) from error
    return outcome


def _fit(
    job: Job,
    plan: DataPlan,
    folder: RunFolder,
    generosity: int,
    stopping: Stopping,
    callbacks: Sequence[UserCallback],
) -> Outcome:
    config = job.config

    def train_from_last_checkpoint() -> Any:
        """Runs in Ray Train's controller whenever a worker group starts, so a restart reads on from there."""
        checkpoint, _ = latest_checkpoint(folder)
        state = TrainState() if checkpoint is None else checkpoint.state
        steps_left = None if config.optim.num_steps is None else config.optim.num_steps - state.step
        rows_left = None if steps_left is None else steps_left * config.optim.global_batch_size
        return train_dataset(
            plan,
            state.position,
            num_groups=num_groups_ahead(plan, state.position, rows_left, generosity),
            block_rows=config.block_rows,
            filler_blocks=config.runtime.max_workers,
            num_cpus=config.runtime.data_cpus,
            warn=job.events.line,
        )

    # How often Ray Train's controller looks at the workers, seconds: it takes one report, and sees the end, per look.
    # Ray's own 2.0 can be a good part of a short run; 0.5 costs one small call a worker.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Ray Train still counts on a node that is drained or has just died, and tries that for so long (its own: 60).
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    loop: Any = train_loop_per_worker  # Ray hands on what it returns; its annotations do not say so
    num_workers: Any = config.runtime.num_workers  # nor do they know of (min, max)
    run_config: Any = RunConfig  # nor of the logging configuration
    trainer = _Trainer(
        loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.runtime.use_gpu,
            resources_per_worker=worker_resources(config),
        ),
        run_config=run_config(
            name=config.run.name,
            storage_path=folder.storage_path,
            storage_filesystem=folder.arrow_filesystem,
            failure_config=FailureConfig(max_failures=config.runtime.max_failures),
            callbacks=list(callbacks),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
        datasets={"train": train_from_last_checkpoint},
        dataset_config=DataConfig(
            execution_options=execution_options(config.runtime.data_cpus, config.runtime.data_label)
        ),
    )
    trainer.stopping = stopping
    result: Any = trainer.fit()
    assert isinstance(result.return_value, Outcome)
    return result.return_value


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to us: Ray's own handler ends the process without a word and with the status of a failed run."""

    stopping: Stopping

    def _register_sigint_handler(self, controller: Any) -> None:
        self.stopping.controller = controller


def _failure_message(config: Config, folder: RunFolder, error: BaseException) -> str:
    """What failed, and from where the same command goes on."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [f"worker {rank}: {reason_of(cause)}" for rank, cause in sorted(failures.items())]
    checkpoint, _ = latest_checkpoint(folder, verify_tensors=False)
    again = f"goes on from {checkpoint.name}" if checkpoint else "starts again: no checkpoint was complete"
    listed = "\n".join(f"  {cause}" for cause in causes or [reason_of(error)])
    return f"the run failed (runtime.max_failures = {config.runtime.max_failures}):\n{listed}\nThe same command {again}"
