"""A configuration -> a trained student: the checks before a run, its passes, and how it ended."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import UserCallback

from distil_ray.config import Config, Section, learned, to_yaml
from distil_ray.data.tally import counts_of, text_warnings
from distil_ray.errors import DivergedError, InputError, OutageError, RunError, Stopped, reason_of
from distil_ray.runs.cluster import check_fits, connect, reporting_nodes, slots_needed
from distil_ray.runs.console import Console
from distil_ray.runs.events import EventQueue
from distil_ray.runs.lease import Claim, LeaseLostError, holding
from distil_ray.runs.placement import ray_address_for_train, turn_with_room
from distil_ray.runs.stopping import Stopping
from distil_ray.runs.storage import CONFIG_FILE, EXPORT_FOLDER, FINISHED_FILE, RunFolder
from distil_ray.runs.trackers import check_trackers, tracking
from distil_ray.training.checkpoint import latest_checkpoint
from distil_ray.training.identity import Identity
from distil_ray.training.job import Job, Outcome
from distil_ray.training.passes import run_passes
from distil_ray.training.ray_train import fit
from distil_ray.training.remaining_rows import remaining_rows

if TYPE_CHECKING:  # imported late: `connect` loads transformers while it waits for Ray
    from distil_ray.training.examination import Examined


def launch(
    config: Config,
    console: Console,
    callbacks: Sequence[UserCallback] = (),
    basis: Identity | None = None,
    claim: Claim | None = None,
    group: str | None = None,
) -> None:
    """Do the whole run, or the rest of it. Ray Train's controller calls ``callbacks``.

    Args:
        basis: what models and text are, found out for another run with the same ones.
        claim: to a folder that contains the run's, as a search's contains its trials'; None claims the run's own.
        group: the search or the ablation that the run belongs to, for trackers.

    Raises:
        InputError: bad configuration or input, found before the start where that is possible; the folder is in use.
        RunError: the run started and failed; a `DivergedError` if it would do so again.
        Stopped: a signal has ended it, after a checkpoint if a step had been done.
    """
    check_trackers(config)
    folder = RunFolder(config.run.storage_path, config.run.name)
    check_learned_settings(learned(config), folder)
    if _is_finished(config, folder, console):
        return
    own = holding(folder, "distil-ray train", console.line) if claim is None else nullcontext(claim)
    with own as held:
        if not _is_finished(config, folder, console):  # in the meantime
            _launch(config, console, callbacks, basis, held, group)


def _is_finished(config: Config, folder: RunFolder, console: Console) -> bool:
    if not folder.exists(FINISHED_FILE):
        return False
    console.line(f"{config.run.name} is finished: the student is in {folder.join(EXPORT_FOLDER)}")
    return True


def _launch(
    config: Config,
    console: Console,
    callbacks: Sequence[UserCallback],
    basis: Identity | None,
    claim: Claim,
    group: str | None,
) -> None:
    folder = claim.guard(RunFolder(config.run.storage_path, config.run.name))
    known = check_learned_settings(learned(config), folder)
    console.line(connect(slots_needed(config)["CPU"]))
    from distil_ray.training.examination import examine

    examined = examine(config, folder, console, known or basis, is_resumed=known is not None)
    for line in check_fits(config):
        console.line(line)
    folder.write_text(CONFIG_FILE, to_yaml(config))
    examined.identity.write(folder)
    console.line(f"run {config.run.name} in {folder.path}")
    events = EventQueue()
    stopping = Stopping(events)
    with tracking(config, folder, partial(console.show, "line"), group) as trackers:
        watched = trackers.watching(events)
        try:
            with console.following(watched), reporting_nodes(events.post_text), stopping.handled():
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


def check_learned_settings(settings: Mapping[str, Any], folder: RunFolder, *roots: type[Section]) -> Identity | None:
    """Return what the run (or the search) in the folder was made with, None if there is none.

    Raises:
        InputError: it was made under settings that teach something else.
    """
    known = Identity.read(folder)
    if known is not None:
        known.check_settings(settings, folder, *roots)
    return known


def _train(
    config: Config,
    examined: "Examined",
    folder: RunFolder,
    events: EventQueue,
    callbacks: Sequence[UserCallback],
    claim: Claim,
) -> Outcome:
    from distil_ray.training.examination import prepare_data

    identity, tokenizer, _, plan = examined
    with turn_with_room(config, events.post_text) as first_turn:
        plan, heldout, sample, warnings = prepare_data(config, tokenizer, plan, events.post_text)
        for warning in warnings:
            events.post_text(f"warning: {warning}")
        turns = [first_turn]  # with which the first pass goes on

        def do_pass(job: Job, overprovision: int) -> Outcome:
            own_turn = nullcontext(turns.pop()) if turns else turn_with_room(config, events.post_text)
            with own_turn as turn, ray_address_for_train():

                def make_dataset() -> Any:
                    """Runs in Ray Train's controller at each start of a worker group: a restart reads on from there."""
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
