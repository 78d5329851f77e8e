"""What a run will take, in words: the measurements that `estimate` needs, and how its figures are shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from distil_ray.config import Config
from distil_ray.data.batch import Arrays
from distil_ray.data.pipeline import tokens_per_second
from distil_ray.data.plan import DataPlan
from distil_ray.errors import InputError, RunError
from distil_ray.models.flops import peak_flops
from distil_ray.models.precision import Precision
from distil_ray.runs.cluster import gpu_types, usable_cpus, worker_resources
from distil_ray.runs.figures import format_seconds
from distil_ray.runs.prices import Hire, PricedCluster, nodes_for, read_prices
from distil_ray.runs.side_by_side import call_side_by_side
from distil_ray.training.estimate import (
    DEFAULT_MFU,
    Estimate,
    Flops,
    Length,
    Part,
    busy_warnings,
    computation_as_timed,
    computation_on_gpus,
    num_evaluations,
    other_parts,
    run_flops,
    start_seconds,
)
from distil_ray.training.identity import Pins
from distil_ray.training.timing import prepare_timing, repeated

_COMMON_GPUS = ("A100", "H100")
_MAX_TIMED_FLOPS = 1e11  # of a micro-batch: a second or so of a core


@dataclass(frozen=True)
class Assumptions:
    """What the user assumes of the machines that the run is to be on.

    Attributes:
        mfu: share of the GPUs' peak FLOP/s that is reached; None: `DEFAULT_MFU`.
        hire: their nodes and prices, if they are known from a cluster's YAML.
    """

    mfu: float | None = None
    cluster: PricedCluster | None = None
    hire: Hire | None = None


def assumptions(config: Config, mfu: float | None, cluster: Path | None) -> Assumptions:
    """Check and read what the options of a dry run say.

    Args:
        cluster: YAML of a cluster with prices.

    Raises:
        InputError: they cannot be used, or not for this run.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise InputError(f"--mfu: given {mfu:g}, expected a share of the GPUs' peak, above 0 and at most 1")
    if mfu is not None and not config.runtime.use_gpu:
        raise InputError("--mfu: given without runtime.use_gpu; on processors, the run is timed instead")
    if cluster is None:
        return Assumptions(mfu)
    prices = read_prices(cluster)
    return Assumptions(mfu, prices, nodes_for(config, prices))


class Subject(NamedTuple):
    """The run that is estimated, as far as a dry run has prepared it. ``models``: without weights will do."""

    config: Config
    pins: Pins
    models: tuple[PreTrainedModel | None, PreTrainedModel]
    plan: DataPlan
    rows: Arrays
    num_heldout: int
    length: Length
    precision: Precision
    worker_bytes: float


def forecast(subject: Subject, assumed: Assumptions, data_label: dict[str, str] | None) -> Iterator[str]:
    """Yield lines on work, speed, time and price.

    Args:
        data_label: of nodes on which making rows can be timed.

    Raises:
        InputError: the text cannot be read.
    """
    config, length = subject.config, subject.length
    teacher, student = subject.models
    flops = run_flops(config, None if teacher is None else teacher.config, student.config, subject.num_heldout)
    evaluations = num_evaluations(config, length.num_steps) if subject.num_heldout else 0
    yield (
        f"work: {flops.step / config.tokens_per_step / 1e6:,.1f} MFLOP per token, {length.num_steps * flops.step:.3g} "
        f"FLOP in {length.num_steps:,} steps, {evaluations * flops.evaluation:.3g} in {evaluations:,} evaluations"
    )
    checkpoint_bytes = 12.0 * student.num_parameters()  # fp32 weights and AdamW's two moments
    data_speed = tokens_per_second(subject.plan, node_label=data_label)
    is_local = "://" not in config.run.storage_path
    others = other_parts(config, data_speed, checkpoint_bytes, is_local=is_local)
    for part in others:
        yield _in_words(part)
    yield (
        f"start-up: about {start_seconds(config, usable_cpus()):.0f} s before the first step on this machine's "
        f"{usable_cpus()} cores, with models and text in place; not in the estimate, nor are minutes until nodes are up"
    )
    try:
        speeds = _on_gpus(config, flops, assumed) if config.runtime.use_gpu else _on_cpus(subject, flops)
    except RunError as error:
        yield f"no estimate of the time: a step could not be timed: {error}"
        return
    if config.runtime.use_gpu and subject.precision == "fp32":
        yield "warning: the peak is that of bf16, of which runtime.precision fp32 reaches a small part"
    for speed in speeds:
        estimate = Estimate(length.num_steps, [speed.part, *others], evaluations * speed.evaluation_seconds)
        yield _in_words(speed.part)
        yield _time(speed, estimate)
        yield _price(estimate, assumed)
        yield from speed.warnings


class Speed(NamedTuple):
    """Of the workers. ``evaluation_seconds``: of one evaluation."""

    where: str
    part: Part
    evaluation_seconds: float
    num_gpus: float = 0.0
    warnings: Sequence[str] = ()


def _on_gpus(config: Config, flops: Flops, assumed: Assumptions) -> list[Speed]:
    """For the GPUs of the cluster that is priced, or that is there; else for common ones."""
    there = [assumed.hire.of_workers.gpu] if assumed.hire else gpu_types()
    known = {gpu: peak for gpu in there if (peak := peak_flops(gpu))}
    common = {gpu: peak for gpu in _COMMON_GPUS if (peak := peak_flops(gpu))}
    num_gpus = config.runtime.max_workers * min(worker_resources(config)["GPU"], 1.0)  # a worker computes on one
    mfu = assumed.mfu or DEFAULT_MFU
    speeds = []
    for gpu, peak in (known or common).items():
        part = computation_on_gpus(flops.step, num_gpus, peak, mfu)
        where = f"{num_gpus:g} × {gpu}{'' if known else ' (no GPU is known)'}"
        speeds.append(Speed(where, part, flops.evaluation / (num_gpus * peak * mfu), num_gpus))
    return speeds


def _on_cpus(subject: Subject, flops: Flops) -> list[Speed]:
    """As timed here; raises RunError if that is not possible."""
    config = subject.config
    row_flops = flops.step / config.optim.global_batch_size
    num_rows = min(config.micro_batch_size, max(int(_MAX_TIMED_FLOPS / row_flops), 1))
    rows = repeated(subject.rows, num_rows)
    prepare = partial(prepare_timing, config, subject.pins, rows, subject.precision)
    timings = call_side_by_side(config, prepare, memory_bytes=subject.worker_bytes)
    evaluated_rows = -(-subject.num_heldout // config.runtime.max_workers)
    where = f"{config.runtime.max_workers} workers on processors like this one"
    part = computation_as_timed(config, timings, num_rows, subject.precision)
    evaluation_seconds = evaluated_rows * max(timing.evaluated_row for timing in timings)
    return [Speed(where, part, evaluation_seconds, warnings=busy_warnings(config, timings))]


def _in_words(part: Part) -> str:
    return f"  {part.name}: {part.seconds:.3g} s per step ({part.basis})"


def _time(speed: Speed, estimate: Estimate) -> str:
    hours, evaluation = estimate.seconds / 3600, estimate.evaluation_seconds / max(estimate.seconds, 1e-9)
    gpu_hours = f", {hours * speed.num_gpus:,.2f} GPU-hours" if speed.num_gpus else ""
    return (
        f"estimate for {speed.where}: {format_seconds(estimate.seconds)} ({hours:,.2f} hours), bound by "
        f"{estimate.bound.name}; {evaluation:.0%} of it evaluation{gpu_hours}"
    )


def _price(estimate: Estimate, assumed: Assumptions) -> str:
    if assumed.hire is None or assumed.cluster is None:
        return "price: not known; --cluster FILE takes it from a cluster's YAML, such as cluster/aws.yaml"
    usd = assumed.hire.usd_per_hour * estimate.seconds / 3600
    nodes = ", ".join(f"{count} × {node_type}" for node_type, count in assumed.hire.counts.items())
    return (
        f"price: about {usd:,.2f} USD, {assumed.hire.usd_per_hour:,.2f} an hour for {nodes} ({assumed.cluster.basis})"
    )
