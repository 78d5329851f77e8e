"""A configuration -> a trained student: the checks before a run, its passes, and how it ended."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray.train
from ray.train import UserCallback
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.config import Config, Section, learned, to_yaml
from distil_ray.data.batch import Arrays
from distil_ray.data.parity import check_parity, with_fast_tokenizer
from distil_ray.data.pipeline import heldout_rows, look_at_text, sample_piece_counts
from distil_ray.data.plan import DataPlan
from distil_ray.data.rows import pack_rows
from distil_ray.data.tally import counts_of, text_warnings
from distil_ray.data.tokenization import token_stream
from distil_ray.errors import DivergedError, InputError, OutageError, RunError, Stopped, reason_of
from distil_ray.models.tokenizer import remarks
from distil_ray.runs.cluster import check_fits, connect, reporting_nodes, slots_needed
from distil_ray.runs.console import Console
from distil_ray.runs.events import EventQueue
from distil_ray.runs.lease import Claim, LeaseLostError, holding
from distil_ray.runs.placement import ray_address_for_train, turn_with_room
from distil_ray.runs.stopping import Stopping
from distil_ray.runs.storage import CONFIG_FILE, EXPORT_FOLDER, FINISHED_FILE, RunFolder
from distil_ray.training.assembly import Models, build_plan, build_tokenizer, outline_models, smoothing_weights
from distil_ray.training.checkpoint import latest_checkpoint
from distil_ray.training.identity import SCHEMA, Identity, data_commits, pin_models, text_contents
from distil_ray.training.job import Job, Outcome
from distil_ray.training.passes import run_passes
from distil_ray.training.ray_train import fit
from distil_ray.training.remaining_rows import remaining_rows


def launch(
    config: Config,
    console: Console,
    callbacks: Sequence[UserCallback] = (),
    basis: Identity | None = None,
    claim: Claim | None = None,
) -> None:
    """Do the whole run, or the rest of it. Ray Train's controller calls ``callbacks``.

    Args:
        basis: what models and text are, found out for another run with the same ones.
        claim: to a folder that contains the run's, as a search's contains its trials'; None claims the run's own.

    Raises:
        InputError: bad configuration or input, found before the start where that is possible; the folder is in use.
        RunError: the run started and failed; a `DivergedError` if it would do so again.
        Stopped: a signal has ended it, after a checkpoint if a step had been done.
    """
    folder = RunFolder(config.run.storage_path, config.run.name)
    check_learned_settings(learned(config), folder)
    if _is_finished(config, folder, console):
        return
    own = holding(folder, "distil_ray.train", console.line) if claim is None else nullcontext(claim)
    with own as held:
        if not _is_finished(config, folder, console):  # in the meantime
            _launch(config, console, callbacks, basis, held)


def _is_finished(config: Config, folder: RunFolder, console: Console) -> bool:
    if not folder.exists(FINISHED_FILE):
        return False
    console.line(f"{config.run.name} is finished: the student is in {folder.join(EXPORT_FOLDER)}")
    return True


def _launch(
    config: Config, console: Console, callbacks: Sequence[UserCallback], basis: Identity | None, claim: Claim
) -> None:
    folder = claim.guard(RunFolder(config.run.storage_path, config.run.name))
    known = check_learned_settings(learned(config), folder)
    examined = examine(config, folder, console, known or basis, is_resumed=known is not None)
    console.line(connect(slots_needed(config)["CPU"]))
    for line in check_fits(config):
        console.line(line)
    folder.write_text(CONFIG_FILE, to_yaml(config))
    examined.identity.write(folder)
    console.line(f"run {config.run.name} in {folder.path}")
    events = EventQueue()
    stopping = Stopping(events)
    try:
        with console.following(events), reporting_nodes(events.post_text), stopping.handled():
            outcome = _train(config, examined, folder, events, callbacks, claim)
    except KeyboardInterrupt:
        message = f"stopped at once; {_how_to_resume(folder)}"
        raise Stopped(stopping.signal_number, message) from None
    finally:
        events.close()
    _raise_unless_finished(outcome, folder, stopping)
    counts = counts_of(folder.read_json(FINISHED_FILE))
    for warning in text_warnings(counts, max_lost_fraction=config.data.warn_skipped_fraction):
        console.line(f"warning: {warning}")
    console.line(f"finished: the student is in {folder.join(EXPORT_FOLDER)}")


def _raise_unless_finished(outcome: Outcome, folder: RunFolder, stopping: Stopping) -> None:
    if outcome.kind == "stopped":
        saved = f"step {outcome.step:,} is saved" if outcome.step else "before the first step"
        raise Stopped(stopping.signal_number, f"stopped: {saved}; {_how_to_resume(folder)}")
    if outcome.kind in _ERRORS:
        ending = f"\nSteps done: {outcome.step:,}; {_how_to_resume(folder)}" if outcome.step else ""
        raise _ERRORS[outcome.kind](f"{outcome.message}{ending}")


_ERRORS: dict[str, type[Exception]] = {
    "bad input": InputError,
    "outage": OutageError,
    "diverged": DivergedError,
    "lost": LeaseLostError,
}


def _how_to_resume(folder: RunFolder) -> str:
    """Where the same command continues."""
    try:
        checkpoint, _ = latest_checkpoint(folder, verify_tensors=False)
    except Exception as error:  # file systems raise errors of their own; this must not hide how the run ended
        return f"whether there is a checkpoint could not be determined ({reason_of(error)})"
    if checkpoint is None:
        return "the same command starts again: no checkpoint was complete"
    return f"the same command resumes from {checkpoint.name}"


class Examined(NamedTuple):
    """What a run is made of; ``models``: teacher and student without their weights."""

    identity: Identity
    tokenizer: PreTrainedTokenizerBase
    models: Models
    plan: DataPlan


def examine(
    config: Config, folder: RunFolder, console: Console, known: Identity | None, *, is_resumed: bool = True
) -> Examined:
    """Examine and describe everything that needs neither Ray nor the models' weights.

    Args:
        known: what models and text are, as far as that is known already.
        is_resumed: whether that is of the run in the folder, so that it must not have changed.

    Raises:
        InputError: something cannot be used, or does not belong to the run that is in the folder.
    """
    models = pin_models(config, {} if known is None else known.models)
    if known is not None and is_resumed:
        known.check_models(models, folder)
        if known.schema < SCHEMA:
            console.line("the run was begun by an older version, which did not record the models' content")
    tokenizer = build_tokenizer(config, models)
    outlines = outline_models(config, tokenizer, models)
    for line in [*describe_models(config, *outlines), *remarks(tokenizer)]:
        console.line(line)
    plan = build_plan(config, tokenizer, {} if known is None else known.commits)
    for line in describe_data(config, plan):
        console.line(line)
    folder.check_writable()
    text = text_contents(plan, known.text if known is not None else ())
    if known is not None and is_resumed:
        known.check_data(plan.fingerprint(), text, folder)
    identity = Identity(learned(config), plan.fingerprint(), models, text, data_commits(config, plan))
    return Examined(identity, tokenizer, outlines, plan)


def check_learned_settings(settings: Mapping[str, Any], folder: RunFolder, *roots: type[Section]) -> Identity | None:
    """Return what the run (or the search) in the folder was made with, None if there is none.

    Raises:
        InputError: it was made under settings that teach something else.
    """
    known = Identity.read(folder)
    if known is not None:
        known.check_settings(settings, folder, *roots)
    return known


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
        f"{len(schedule.units):,} to train on in {schedule.groups_per_epoch:,} groups per epoch, "
        f"{len(plan.eval_units):,} held out"
    ]
    lines += [f"left out {file.path}: {file.reason}" for file in corpus.skipped_files]
    if plan.eval_corpus is not corpus:
        lines += [f"left out {file.path}: {file.reason}" for file in plan.eval_corpus.skipped_files]
    return lines


class Prepared(NamedTuple):
    """What must be known about the text before the first step.

    Attributes:
        plan: with the weights of `mlm_smoothing` and the fast tokenizer, if there is one.
        heldout: held-out rows.
        sample: ids of some rows to train on ``[B, T]``, not masked.
        warnings: what the user should look at.
    """

    plan: DataPlan
    heldout: Arrays
    sample: npt.NDArray[np.integer]
    warnings: list[str]


def prepare_data(
    config: Config, tokenizer: PreTrainedTokenizerBase, plan: DataPlan, tell: Callable[[str], None]
) -> Prepared:
    """Try the text and the tokenizer on each other, and read what must be known before the first step.

    Args:
        tell: takes lines for the user.

    Raises:
        InputError: the text cannot be used, or the tokenizer gives other pieces here than in transformers.
    """
    label = config.runtime.data_label
    tally, texts = look_at_text(plan, node_label=label)
    check_parity(tokenizer, plan.vocabulary, texts)
    vocabulary, line = with_fast_tokenizer(plan.vocabulary, texts)
    if line is not None:
        tell(line)
    plan = replace(plan, vocabulary=vocabulary)
    cpus: dict[str, Any] = {"num_cpus": config.runtime.data_cpus, "node_label": label}
    smoothing = config.data.mlm_smoothing
    if smoothing:
        weights = smoothing_weights(sample_piece_counts(plan, **cpus), smoothing)
        plan = replace(plan, settings=replace(plan.settings, piece_weights=weights))
    max_lost = config.data.warn_skipped_fraction
    return Prepared(
        plan,
        heldout_rows(plan, config.eval.num_rows, warn=tell, **cpus),
        _rows_of(plan, texts),
        text_warnings(tally.counts(), tally.first_places, max_lost_fraction=max_lost),
    )


def _rows_of(plan: DataPlan, texts: Sequence[str]) -> npt.NDArray[np.integer]:
    vocabulary = plan.vocabulary
    ids = {"cls_id": vocabulary.cls_id, "sep_id": vocabulary.sep_id}
    stream = token_stream(vocabulary, texts)
    return pack_rows(stream, max_seq_length=plan.settings.max_seq_length, **ids)[:_NUM_SAMPLE_ROWS]


_NUM_SAMPLE_ROWS = 4  # on which the teacher is tried


def _train(
    config: Config,
    examined: Examined,
    folder: RunFolder,
    events: EventQueue,
    callbacks: Sequence[UserCallback],
    claim: Claim,
) -> Outcome:
    identity, tokenizer, _, plan = examined
    with turn_with_room(config, events.post_text):
        plan, heldout, sample, warnings = prepare_data(config, tokenizer, plan, events.post_text)
    for warning in warnings:
        events.post_text(f"warning: {warning}")

    def do_pass(job: Job, overprovision: int) -> Outcome:
        with turn_with_room(config, events.post_text) as turn, ray_address_for_train():

            def make_dataset() -> Any:
                """Runs in Ray Train's controller whenever a worker group starts, so a restart reads on from there."""
                turn.end()  # all workers have their places
                return remaining_rows(config, plan, events, overprovision)

            return fit(job, events, claim, folder, make_dataset, callbacks)

    job = Job(config, identity.models, heldout, sample, plan.schedule.num_groups)
    try:
        return run_passes(job, do_pass, events.post_text)
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:  # the latter: its controller was lost
        raise RunError(_failure_message(config, folder, error)) from error


def _failure_message(config: Config, folder: RunFolder, error: BaseException) -> str:
    """What failed, and where the same command continues."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [f"worker {rank}: {reason_of(cause)}" for rank, cause in sorted(failures.items())]
    listed = "\n".join(f"  {cause}" for cause in causes or [reason_of(error)])
    return (
        f"the run failed (runtime.max_failures = {config.runtime.max_failures}):\n{listed}\n"
        f"To resume: {_how_to_resume(folder)}"
    )
