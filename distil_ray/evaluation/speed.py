"""How fast models are on this machine's CPU, on equal texts, taking turns so that a busy machine favours none."""

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.evaluation.labelling import encode_rows
from distil_ray.evaluation.tasks import Rows

_NUM_SINGLE_ROWS, _NUM_BATCHES, _BATCH_SIZE, _NUM_WARMUPS = 40, 7, 32, 2


class Timing(NamedTuple):
    """Median, first and third quartile of a figure."""

    median: float
    low: float
    high: float


class Speed(NamedTuple):
    """``latency_ms`` of one row at a time; ``rows_per_second`` in batches of 32; on ``threads`` threads."""

    threads: int
    latency_ms: Timing
    rows_per_second: Timing


Contender = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def measure_speed(contenders: Mapping[str, Contender], rows: Rows, max_seq_length: int) -> dict[str, list[Speed]]:
    """Measure on one thread and on all of them (the paper: batches of 1 over STS-B's validation rows)."""
    speeds: dict[str, list[Speed]] = {name: [] for name in contenders}
    for threads in sorted({1, os.cpu_count() or 1}):
        with _threads(threads):
            single = _times(contenders, rows, max_seq_length, 1, _NUM_SINGLE_ROWS)
            batched = _times(contenders, rows, max_seq_length, _BATCH_SIZE, _NUM_BATCHES)
        for name in contenders:
            latency = _timing([1e3 * seconds for seconds in single[name]])
            speeds[name].append(Speed(threads, latency, _timing([_BATCH_SIZE / seconds for seconds in batched[name]])))
    return speeds


def _times(
    contenders: Mapping[str, Contender], rows: Rows, max_seq_length: int, batch_size: int, count: int
) -> dict[str, list[float]]:
    """Seconds of ``count`` forward passes of each contender, after some that do not count."""
    batches = {
        name: list(_batches(tokenizer, rows, max_seq_length, batch_size, count + _NUM_WARMUPS))
        for name, (_, tokenizer) in contenders.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for turn in range(count + _NUM_WARMUPS):
            for name, (model, _) in contenders.items():
                began = time.perf_counter()
                model.eval()(**batches[name][turn])
                seconds[name].append(time.perf_counter() - began)
    return {name: values[_NUM_WARMUPS:] for name, values in seconds.items()}


def _batches(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int, batch_size: int, count: int
) -> Iterator[Any]:
    """Batches of the rows in their order, from the first again when they are used up."""
    encoded = encode_rows(tokenizer, rows, max_seq_length)
    for number in range(count):
        chosen = [encoded[(number * batch_size + i) % len(encoded)] for i in range(batch_size)]
        yield tokenizer.pad(chosen, return_tensors="pt")


def _timing(values: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
