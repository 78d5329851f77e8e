"""A run as passes over the schedule of its text, each with a pipeline of its own. Imports no Ray."""

from collections.abc import Callable
from dataclasses import replace

from distil_ray.config import Config
from distil_ray.errors import RunError
from distil_ray.training.job import Job, Outcome

_MAX_AGAIN = 3  # damaged checkpoints that are met at the start of workers, one after the other
_MAX_OVERPROVISION = 16**3


def run_passes(job: Job, do_pass: Callable[[Job, int], Outcome], tell: Callable[[str], None]) -> Outcome:
    """Do one pass for each stretch of the schedule that one pipeline covers: a single one, except in enormous runs.

    Args:
        do_pass: does one, given the job and a factor: how much more text than usual its pipeline should cover.

    Raises:
        RunError: damaged checkpoints kept turning up.
    """
    overprovision, num_again = 1, 0
    while (outcome := do_pass(job, overprovision)).kind in ("more", "moving", "again"):
        if outcome.kind == "again":
            num_again += 1
            if num_again > _MAX_AGAIN:
                raise RunError(f"no worker can load a checkpoint of the run: {outcome.message}")
            continue
        if outcome.kind == "moving":
            tell(f"a node is leaving: step {outcome.step:,} is saved, the run continues without that node")
        else:
            overprovision = overprovision * 16 if outcome.step == (job.continues_at or 0) else 1
        if overprovision > _MAX_OVERPROVISION:
            return too_little_text(job.config, outcome.step)
        job = replace(job, continues_at=outcome.step)
    return outcome


def too_little_text(config: Config, num_steps: int) -> Outcome:
    """The end of a run whose text holds no further step."""
    rows, length, steps = config.optim.global_batch_size, config.data.max_seq_length, config.data.steps_per_block
    what, less = ("no further step", "a smaller batch")
    if steps > 1:
        what, less = f"no further data.steps_per_block = {steps} steps", f"{less}, or fewer steps per block"
    return Outcome(
        "bad input",
        f"the text holds {what} of optim.global_batch_size = {rows} rows of data.max_seq_length = {length} "
        f"tokens (steps done: {num_steps}); expected at least {steps * config.tokens_per_step:,} tokens: give "
        f"more text, more num_epochs, or {less}",
        step=num_steps,
    )
