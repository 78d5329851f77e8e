"""Measures how fast one pipeline deals out blocks to many workers, and what that means for a step on many GPUs.

    python benchmarks/scale.py [--consumers 8 32 64] [--steps-per-block 1 8] [--blocks 600] …

The pipeline is a run's own (`train_dataset`, cut into equal blocks and dealt out by Ray Data's equal split), with
blocks of a run's size: k · 4096 / N rows of 512 tokens for N consumers. Only the rows are cheap: arrays of ones stand
in for text and tokenizer, so that dealing out is measured. A consumer is a thread of this process with an iterator of
its own, as a training worker has; it checks that it got the block that is due, and takes the next. All is counted from
the time when a quarter of the blocks has arrived.

blocks/s             by the wall clock: on a small or busy machine, all of Ray and the consumers share its few cores
blocks/CPU s         per second of CPU time of the coordinator, the one process through which all blocks go: the limit
                     where all else has room, and the steadier figure

The table of steps is a model. Measured here: what the coordinator can deal out, in blocks of the most similar size.
Estimated, for H100s, BERT-base into 6 layers and steps of 4096 rows: the
computation, the all-reduce of the gradients, the pauses for checkpoints and evaluations as a share of each step, and
the time of an agreement, a ring of 2 (N - 1) hops, which steps may hide. A step takes as long as all of these, or as
its share of the blocks if that is longer.

Prints tables; the last line is one JSON object with every figure.
"""

import argparse
import itertools
import json
import logging
import math
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import psutil
import ray
from machine import environment
from ray.data import DataContext

from distil_ray.data.batch import SKIPPED, Arrays
from distil_ray.data.pipeline import execution_options, train_dataset
from distil_ray.data.schedule import START
from distil_ray.runs.cluster import SYSTEM_CONFIG
from distil_ray.training.feed import steps_per_round

GLOBAL_BATCH_SIZE, TOKENS, MASKED = 4096, 512, 77
GROUP_ROWS = 3000  # of 8 MiB of English
WARM_UP = 0.25  # share of the blocks


@dataclass(frozen=True)
class Gpus:
    """Estimates for a step on so many GPUs, in milliseconds."""

    number: int
    compute: float
    all_reduce: float
    pause: float


GPUS = (Gpus(8, 418, 1.3, 7.0), Gpus(64, 52, 2.3, 4.4), Gpus(512, 9.4, 3.2, 4.1))
HOP = 0.04  # milliseconds, between two nodes over TCP


class CheapPlan:
    """Stands in for a `DataPlan`: an endless schedule of groups of equal, ready-made rows."""

    settings = SimpleNamespace(max_seq_length=TOKENS, num_masked=MASKED)
    vocabulary = SimpleNamespace(id_dtype=np.dtype(np.uint16))
    schedule = SimpleNamespace(num_groups=None)

    def rows_of(self, split: str, group: int, patience: object) -> tuple[Arrays, Any]:
        rows = ready_made_rows() | {"group": np.full(GROUP_ROWS, group, dtype=np.int32)}
        return rows, SimpleNamespace(unit_errors=[])


def ready_made_rows() -> Arrays:
    return {
        "input_ids": np.ones((GROUP_ROWS, TOKENS), dtype=np.uint16),
        "masked_positions": np.ones((GROUP_ROWS, MASKED), dtype=np.int16),
        "masked_labels": np.ones((GROUP_ROWS, MASKED), dtype=np.uint16),
        "row": np.arange(GROUP_ROWS, dtype=np.int32),
        "group_rows": np.full(GROUP_ROWS, GROUP_ROWS, dtype=np.int32),
        "skipped": np.zeros((GROUP_ROWS, len(SKIPPED)), dtype=np.int32),
    }


class Quiet:
    """A listener to whom nothing is told."""

    def post_text(self, text: str) -> None:
        pass

    def note(self, topic: str, group: int, content: Any) -> None:
        pass


class Rate(NamedTuple):
    """Blocks per second of the wall clock, and of the coordinator's CPU time."""

    steps_per_block: int
    consumers: int
    block_rows: int
    wall: float
    coordinator: float


def measure(num_consumers: int, steps_per_block: int, num_blocks: int, data_cpus: int) -> Rate:
    """Deal out about ``num_blocks`` blocks."""
    num_blocks = -(-num_blocks // num_consumers) * num_consumers
    block_rows = steps_per_block * GLOBAL_BATCH_SIZE // num_consumers
    tokens_taken = num_consumers * block_rows * TOKENS
    DataContext.get_current().execution_options = execution_options(data_cpus, None, tokens_taken_at_once=tokens_taken)
    plan: Any = CheapPlan()
    dataset = train_dataset(
        plan,
        START,
        num_groups=-(-num_blocks * block_rows // GROUP_ROWS),
        block_rows=block_rows,
        filler_blocks=num_consumers,
        num_cpus=data_cpus,
        listener=Quiet(),
        outage_seconds=0,
    )
    first, last = int(WARM_UP * num_blocks), num_blocks - 1
    edges: list[tuple[float, float]] = []  # wall clock and CPU time at the arrival of these blocks
    arrived, lock = itertools.count(), threading.Lock()

    def consume(rank: int, shard: Any) -> None:
        blocks = shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
        for number, block in enumerate(blocks):  # to its end, so that Ray comes to rest
            place = GROUP_ROWS * int(block["group"][0]) + int(block["row"][0])
            if place >= 0:
                assert place == (number * num_consumers + rank) * block_rows
            with lock:
                if next(arrived) in (first, last):
                    edges.append((time.perf_counter(), coordinator_seconds()))

    shards = enumerate(dataset.streaming_split(num_consumers, equal=True))
    threads = [threading.Thread(target=consume, args=shard) for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin, end = edges
    wall, coordinator = ((last - first) / (after - before) for before, after in zip(begin, end, strict=True))
    return Rate(steps_per_block, num_consumers, block_rows, wall, coordinator)


def coordinator_seconds() -> float:
    """CPU time of the process that deals out the blocks."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "SplitCoordinator" in " ".join(process.cmdline()):
                return sum(process.cpu_times()[:2])
    raise RuntimeError("Ray has no process of the name SplitCoordinator")


def step_of(gpus: Gpus, rates: list[Rate], steps_per_block: int, *, is_agreement_hidden: bool) -> dict[str, float]:
    """Milliseconds of a step by part, and the share that is computation."""
    agreement = 2 * (gpus.number - 1) * HOP
    if is_agreement_hidden:  # by the steps of each of the rounds of a super-step
        span = steps_per_round(gpus.number)
        rounds = [min(span, steps_per_block - begin) for begin in range(0, steps_per_block, span)]
        agreement = sum(max(agreement - num_steps * gpus.compute, 0.0) for num_steps in rounds) / steps_per_block
    busy = gpus.compute + gpus.all_reduce + agreement + gpus.pause
    data = 1000 * gpus.number / (steps_per_block * nearest(rates, gpus.number, steps_per_block).coordinator)
    step = max(busy, data)
    parts = {"compute": gpus.compute, "all_reduce": gpus.all_reduce, "agreement": agreement, "pause": gpus.pause}
    return parts | {"data": data, "step": step, "computing_share": gpus.compute / step}


def nearest(rates: list[Rate], num_gpus: int, steps_per_block: int) -> Rate:
    """The rate with blocks of about as many rows, and then with about as many consumers."""
    block_rows = steps_per_block * GLOBAL_BATCH_SIZE / num_gpus

    def distance(rate: Rate) -> tuple[float, float]:
        return abs(math.log(rate.block_rows / block_rows)), abs(math.log(rate.consumers / num_gpus))

    return min(rates, key=distance)


def print_rates(rates: list[Rate]) -> None:
    titles = ("steps a block", "consumers", "rows a block", "blocks/s", "M tokens/s", "blocks/CPU s", "M tokens/CPU s")
    print(" ".join(f"{title:>14}" for title in titles))
    for rate in rates:
        million = rate.block_rows * TOKENS / 1e6
        speeds = (rate.wall, rate.wall * million, rate.coordinator, rate.coordinator * million)
        shape = (rate.steps_per_block, rate.consumers, rate.block_rows)
        print(" ".join([*(f"{count:>14}" for count in shape), *(f"{speed:>14.1f}" for speed in speeds)]))


def print_steps(steps: list[dict[str, Any]]) -> None:
    names = ("compute", "all_reduce", "agreement", "pause", "data", "step")
    print(f"\n{'ms a step':<42} {'GPUs':>5} " + " ".join(f"{name:>10}" for name in names) + f" {'computing':>10}")
    for step in steps:
        figures = " ".join(f"{step[name]:>10.1f}" for name in names)
        print(f"{step['way']:<42} {step['gpus']:>5} {figures} {step['computing_share']:>10.0%}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--consumers", type=int, nargs="+", default=[8, 32, 64], help="(default: %(default)s)")
    parser.add_argument("--steps-per-block", type=int, nargs="+", default=[1, 8], help="(default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=600, help="to deal out each time (default: %(default)s)")
    parser.add_argument("--data-cpus", type=int, default=2, help="CPU slots of the pipeline (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    start = environment(np, ray)
    rates: list[Rate] = []
    for k in options.steps_per_block:
        for num_consumers in options.consumers:
            ray.init(
                address="local",
                num_cpus=options.data_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _system_config=SYSTEM_CONFIG | {"worker_niceness": 0},  # as `data.py`
            )
            rates.append(measure(num_consumers, k, options.blocks, options.data_cpus))
            ray.shutdown()
    ways = [(options.steps_per_block[0], False), *((k, True) for k in options.steps_per_block)]
    steps = [
        {"way": f"{k} step(s) a block, agreement {'ahead' if is_hidden else 'between steps'}", "gpus": gpus.number}
        | step_of(gpus, rates, k, is_agreement_hidden=is_hidden)
        for k, is_hidden in ways
        for gpus in GPUS
    ]
    print_rates(rates)
    print_steps(steps)
    record = {"benchmark": "scale", **start, "load_average_after": os.getloadavg(), **vars(options)}
    print(json.dumps(record | {"blocks_per_second": [rate._asdict() for rate in rates], "steps": steps}))


if __name__ == "__main__":
    main()
