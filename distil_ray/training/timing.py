"""How long the parts of a step take on one worker, measured with the run's own models on its own rows."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from distil_ray.config import Config
from distil_ray.data.batch import Arrays, to_device
from distil_ray.data.schedule import START
from distil_ray.models.precision import Precision
from distil_ray.training.assembly import build_models, build_tokenizer
from distil_ray.training.feed import Block, StepRows
from distil_ray.training.heldout import batch_sums
from distil_ray.training.identity import Pins
from distil_ray.training.learner import Learner

_MIN_CALLS = 3  # of each part


@dataclass(frozen=True)
class Timing:
    """Seconds of one worker.

    Attributes:
        row: forward and backward passes of one row.
        update: what a step takes besides: clipping and AdamW.
        evaluated_row: evaluation of one row.
        num_threads: threads of the worker.
        core_share: share of the time in which they were computing; well below 1, other work took the cores.
    """

    row: float
    update: float
    evaluated_row: float
    num_threads: int
    core_share: float


def prepare_timing(config: Config, pins: Pins, rows: Arrays, precision: Precision) -> Callable[[], Timing]:
    """Load the models and do an update that is not timed; return what does the timing. On the CPU.

    Args:
        pins: what names on the Hub stand for.
        rows: the rows of a micro-batch, or fewer.
        precision: of the matrix products.

    Raises:
        InputError: as `build_models`.
    """
    torch.default_generator.manual_seed(config.run.seed)
    num_rows = len(rows["row"])
    runtime = config.runtime.model_copy(update={"num_workers": 1, "micro_batch_size": num_rows})
    optim = config.optim.model_copy(update={"global_batch_size": num_rows})
    alone = config.model_copy(update={"runtime": runtime, "optim": optim})
    models = build_models(alone, build_tokenizer(alone, pins), pins)
    learner = Learner(alone, *models, device=torch.device("cpu"), precision=precision)
    _update(learner, [Block(0, rows)])
    return lambda: _time(learner, rows)


def _update(learner: Learner, blocks: list[Block]) -> None:
    rows = StepRows(
        blocks, index=0, position=START, group_rows=1, groups_done=0.0, digest=0, skipped={}, wait_seconds=0.0
    )
    learner.update(rows, 0, 0.0, learner.new_meter(world_size=1))


def _time(learner: Learner, rows: Arrays) -> Timing:
    num_rows, num_threads = len(rows["row"]), torch.get_num_threads()
    began, cpu_began = time.perf_counter(), time.process_time()
    with_rows = _median_seconds(lambda: _update(learner, [Block(0, rows)]), 3.0)
    without = _median_seconds(lambda: _update(learner, []), 0.5)
    core_share = (time.process_time() - cpu_began) / (time.perf_counter() - began) / num_threads
    learner.student.train(False)
    return Timing(
        row=(with_rows - without) / num_rows,
        update=without,
        evaluated_row=_median_seconds(lambda: _evaluate(learner, rows), 0.5) / num_rows,
        num_threads=num_threads,
        core_share=core_share,
    )


@torch.no_grad()
def _evaluate(learner: Learner, rows: Arrays) -> None:
    batch_sums(learner, to_device(rows, 0, len(rows["row"]), learner.device))


def _median_seconds(call: Callable[[], None], min_seconds: float) -> float:
    seconds: list[float] = []
    while len(seconds) < _MIN_CALLS or sum(seconds) < min_seconds:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def repeated(rows: Arrays, num_rows: int) -> Arrays:
    """Exactly ``num_rows`` rows: the first ones, over and over where they are fewer."""
    index = np.arange(num_rows) % len(rows["row"])
    return {name: values[index] for name, values in rows.items()}
