"""How long a run takes and what bounds it, from what a step has to do and how fast each part of the run does that.

Pure arithmetic: what is measured for it, and how it is shown, is in `forecast`. Seconds, bytes and FLOP throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedConfig

from distil_ray.config import Config
from distil_ray.data.masking import num_masked_positions
from distil_ray.models.flops import flops_per_token
from distil_ray.training.timing import Timing

DEFAULT_MFU = 0.3
"""Model FLOPs utilization: published trainings of encoders of this size reach 0.24 (HF BERT-base in Composer, 8 × A100)
to 0.25 (ModernBERT-base, 8 × H100), GPT-2 124M in llm.c 0.37 to 0.40 (8 × H100). Not measured with this package yet."""

_BLOCKS_PER_SECOND = 110
"""Blocks that one pipeline hands out: 110 to 176 were seen on two cores, fewer the larger the blocks."""

_DISK_BYTES_PER_SECOND, _REMOTE_BYTES_PER_SECOND = 500e6, 100e6
"""Assumed of a checkpoint that is hashed and written to a disk, or to S3 or the like."""

_MIN_CORE_SHARE = 0.8  # of workers that are timed, to take their time for that of a quiet machine

_SERIAL_START_SECONDS = 15.0
"""Of a start, one after the other whatever the cores: imports of the driver, of the controller, of a worker."""


@dataclass(frozen=True)
class Length:
    """How long a run is, given how many rows its text has."""

    rows_per_epoch: int
    num_steps: int
    num_epochs: float


def run_length(config: Config, rows_per_epoch: int) -> Length:
    """Steps and epochs of a run."""
    optim = config.optim
    if optim.num_steps is not None:
        return Length(
            rows_per_epoch, optim.num_steps, optim.num_steps * optim.global_batch_size / max(rows_per_epoch, 1)
        )
    assert optim.num_epochs is not None
    rows, steps_per_block = rows_per_epoch * optim.num_epochs, config.data.steps_per_block
    num_steps = rows // (optim.global_batch_size * steps_per_block) * steps_per_block
    return Length(rows_per_epoch, num_steps, float(optim.num_epochs))


@dataclass(frozen=True)
class Flops:
    """FLOP of a step, and of an evaluation on all held-out rows."""

    step: float
    evaluation: float


def run_flops(config: Config, teacher: PreTrainedConfig | None, student: PreTrainedConfig, num_heldout: int) -> Flops:
    """Count what `flops_per_token` counts. An evaluation is a forward pass of both models."""
    length = config.data.max_seq_length
    count = partial(
        flops_per_token,
        max_seq_length=length,
        num_masked=num_masked_positions(length, config.data.mlm_probability),
        ce_positions=config.distill.ce_positions,
    )
    terms = {name for name, share in config.distill.shares.items() if share > 0}
    heads = [(teacher, config.teacher and config.teacher.head), (student, config.student.head)]
    # Trained on MLM alone, a model takes three times its forward pass with the head at the masked positions.
    passes = [count(None, model, terms={"mlm"} - {head and "mlm"}) for model, head in heads if model is not None]
    forward = sum(passes) / 3
    return Flops(
        step=count(teacher, student, terms=terms) * length * config.optim.global_batch_size,
        evaluation=forward * length * num_heldout,
    )


def num_evaluations(config: Config, num_steps: int) -> int:
    """Evaluations of a run: before the first step, every so many steps, and after the last."""
    return 1 + math.ceil(num_steps / config.eval.every_steps)


def start_seconds(config: Config, num_cores: int) -> float:
    """Seconds from the command to the first step on one machine, with models and text in place.

    Nearly all are imports. In CPU seconds: a launch with two workers takes 40 to 45, of which a worker 4.4 and a data
    task 1.3.
    """
    cpu_seconds = 31.0 + 4.4 * config.runtime.max_workers + 1.3 * config.runtime.data_cpus
    return max(cpu_seconds / num_cores, _SERIAL_START_SECONDS)


@dataclass(frozen=True)
class Part:
    """A part of a run that works beside the others. ``seconds``: what a step takes it; ``basis``: why."""

    name: str
    seconds: float
    basis: str


def computation_on_gpus(step_flops: float, num_gpus: float, peak_flops: float, mfu: float) -> Part:
    """The workers' part, from the peak FLOP/s of a GPU and the share of it that is reached."""
    basis = f"{mfu:g} of {peak_flops / 1e12:,.0f} TFLOP/s (--mfu)"
    return Part("the step's computation", step_flops / (num_gpus * peak_flops * mfu), basis)


def computation_as_timed(config: Config, timings: Sequence[Timing], num_timed: int, precision: str) -> Part:
    """The workers' part, from timings of some of them at once; a step waits for the slowest.

    Args:
        num_timed: rows of the micro-batches that were timed.
    """
    seconds = max(_step_seconds(config, timing) for timing in timings)
    basis = (
        f"timed here with {num_timed} rows on {len(timings)} workers at once, threads of each: "
        f"{timings[0].num_threads}, {precision}"
    )
    return Part("the step's computation", seconds, basis)


def other_parts(config: Config, tokens_per_second: float, checkpoint_bytes: float, *, is_local: bool) -> list[Part]:
    """Data plane, coordinator and storage.

    Args:
        tokens_per_second: that one CPU slot makes into rows.
        checkpoint_bytes: of one checkpoint.
        is_local: whether checkpoints go to a disk.
    """
    cpus, checkpoint = config.runtime.data_cpus, config.checkpoint
    every = f"{checkpoint.every_steps:,} steps" if checkpoint.every_steps else f"{checkpoint.every_minutes:g} minutes"
    blocks_per_step = config.runtime.max_workers / config.data.steps_per_block
    storage_speed = _DISK_BYTES_PER_SECOND if is_local else _REMOTE_BYTES_PER_SECOND
    return [
        Part(
            "the data plane",
            config.tokens_per_step / (cpus * tokens_per_second),
            f"{cpus} slots of {tokens_per_second:,.0f} tokens/s each, timed here",
        ),
        Part(
            "the coordinator",
            blocks_per_step / _BLOCKS_PER_SECOND,
            f"{blocks_per_step:g} blocks at {_BLOCKS_PER_SECOND} blocks/s",
        ),
        Part(
            "storage",
            # By time alone, a save is over long before the next one is due.
            checkpoint_bytes / storage_speed / checkpoint.every_steps if checkpoint.every_steps else 0.0,
            f"{checkpoint_bytes / 1e9:.2f} GB every {every}, assumed at {storage_speed / 1e6:.0f} MB/s",
        ),
    ]


def _step_seconds(config: Config, timing: Timing) -> float:
    return timing.row * config.optim.global_batch_size / config.runtime.max_workers + timing.update


def busy_warnings(config: Config, timings: Sequence[Timing]) -> list[str]:
    """What to say if other work took the workers' cores while they were timed."""
    share = min(timing.core_share for timing in timings)
    if share >= _MIN_CORE_SHARE:
        return []
    seconds = max(timing.core_share * _step_seconds(config, timing) for timing in timings)
    return [
        f"warning: the workers had {share:.0%} of their cores while they were timed, as other work took the rest; "
        f"without it, a step takes about {seconds:.3g} s"
    ]


@dataclass(frozen=True)
class Estimate:
    """Parts that work side by side: the slowest sets the pace. ``evaluation_seconds``: of all evaluations."""

    num_steps: int
    parts: Sequence[Part]
    evaluation_seconds: float

    @property
    def bound(self) -> Part:
        """The slowest part."""
        return max(self.parts, key=lambda part: part.seconds)

    @property
    def seconds(self) -> float:
        """Of all steps and evaluations, without start-up."""
        return self.num_steps * self.bound.seconds + self.evaluation_seconds
