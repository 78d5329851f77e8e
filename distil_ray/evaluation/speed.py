"""How fast models are on equal inputs, taking turns so that a busy machine favours none; and how large they are."""

import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.evaluation.kinds import encode_rows
from distil_ray.evaluation.tasks import Rows
from distil_ray.models.loading import max_tokens
from distil_ray.runs.cluster import usable_cpus

_NUM_SINGLE_ROWS, _NUM_BATCHES, _BATCH_SIZE, _NUM_WARMUPS = 40, 7, 32, 2

Key = TypeVar("Key")
Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""A model as a function of the tokenizer's arrays [B, T] int64 by name; it returns its outputs by name."""


class Timing(NamedTuple):
    """Median, first and third quartile of a figure."""

    median: float
    low: float
    high: float


class Speed(NamedTuple):
    """``latency_ms`` of one row; ``rows_per_second`` in batches of 32; ``where``: threads, or a GPU's name."""

    where: str
    latency_ms: Timing
    rows_per_second: Timing


Passes = tuple[Run, Sequence[Mapping[str, Array]]]
"""A model, and what it is run on pass by pass."""


class Contender(NamedTuple):
    """A model to be timed, and its tokenizer."""

    run: Run
    tokenizer: PreTrainedTokenizerBase


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def measure_speed(models: Mapping[str, Loaded], rows: Rows, max_seq_length: int) -> dict[str, list[Speed]]:
    """Measure on one thread, on all, and on a GPU if there is one (the paper: batches of 1 over STS-B's rows)."""
    speeds: dict[str, list[Speed]] = {name: [] for name in models}
    for threads in sorted({1, usable_cpus()}):
        where = "1 thread" if threads == 1 else f"{threads} threads"
        with using_threads(threads):
            _measure(speeds, where, torch.device("cpu"), models, rows, max_seq_length)
    if torch.cuda.is_available():
        _measure(speeds, torch.cuda.get_device_name(), torch.device("cuda"), models, rows, max_seq_length)
    return speeds


def _measure(
    speeds: Mapping[str, list[Speed]],
    where: str,
    device: torch.device,
    models: Mapping[str, Loaded],
    rows: Rows,
    max_seq_length: int,
) -> None:
    contenders = {name: Contender(as_function(model, device), tokenizer) for name, (model, tokenizer) in models.items()}
    latency = measure_latency(contenders, rows, max_seq_length)
    batched = _times(_passes(contenders, rows, max_seq_length, _BATCH_SIZE, _NUM_BATCHES))
    for name, (model, _) in models.items():
        rate = _timing([_BATCH_SIZE / seconds for seconds in batched[name]])
        speeds[name].append(Speed(where, latency[name], rate))
        model.cpu()


def measure_latency(contenders: Mapping[Key, Contender], rows: Rows, max_seq_length: int) -> dict[Key, Timing]:
    """Milliseconds of one row of a task at a time."""
    return _latency(_passes(contenders, rows, max_seq_length, 1, _NUM_SINGLE_ROWS))


def measure_latency_of_one(runs: Mapping[Key, Run], batch: Mapping[str, Array]) -> dict[Key, Timing]:
    """Milliseconds of one row, the same one for all and each time."""
    return _latency({name: (run, [batch] * (_NUM_WARMUPS + _NUM_SINGLE_ROWS)) for name, run in runs.items()})


def _latency(passes: Mapping[Key, Passes]) -> dict[Key, Timing]:
    return {name: _timing([1e3 * value for value in values]) for name, values in _times(passes).items()}


def as_function(model: PreTrainedModel, device: torch.device) -> Run:
    """A torch model as a function that takes and returns what lies in this machine's memory; it is put in eval mode."""
    model.to(device).eval()  # type: ignore[arg-type]
    taken = inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def run(batch: Mapping[str, Array]) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items() if name in taken}
        return {name: values.cpu().numpy() for name, values in model(**tensors).items()}

    return run


def _passes(
    contenders: Mapping[Key, Contender], rows: Rows, max_seq_length: int, batch_size: int, count: int
) -> dict[Key, Passes]:
    """Each contender and its batches: ``count``, after some that do not count."""
    return {
        name: (run, list(_batches(tokenizer, rows, max_seq_length, batch_size, _NUM_WARMUPS + count)))
        for name, (run, tokenizer) in contenders.items()
    }


def _times(passes: Mapping[Key, Passes]) -> dict[Key, list[float]]:
    """Seconds of each pass but the first ones: models take turns, so that whatever else the machine does meets all."""
    seconds: dict[Key, list[float]] = {name: [] for name in passes}
    (count,) = {len(batches) for _, batches in passes.values()}
    for turn in range(count):
        for name, (run, batches) in passes.items():
            began = time.perf_counter()
            run(batches[turn])
            seconds[name].append(time.perf_counter() - began)
    return {name: values[_NUM_WARMUPS:] for name, values in seconds.items()}


def _batches(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int, batch_size: int, count: int
) -> Iterator[dict[str, Array]]:
    """Batches of the rows in their order, from the first again when they are used up."""
    encoded = encode_rows(tokenizer, rows, max_seq_length)
    for number in range(count):
        chosen = [encoded[(number * batch_size + i) % len(encoded)] for i in range(batch_size)]
        padded: Any = tokenizer.pad(chosen, return_tensors="np")
        yield {name: values.astype(np.int64) for name, values in padded.items()}


def _timing(values: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


NUM_TOKENS = 128
_BYTES_PER_PARAMETER = 4  # fp32, in which students are trained and exported


class Cost(NamedTuple):
    """``megabytes`` of fp32 weights; ``latency_ms``: median milliseconds of an encoder pass over one row."""

    num_parameters: int
    megabytes: float
    latency_ms: float


def measure(models: Mapping[str, PreTrainedModel]) -> dict[str, Cost]:
    """Measure models on the CPU at batch 1, rows of 128 tokens or as many as all of them take; they are in eval mode
    then.

    The encoder is timed, which is what a model fine-tuned for a task runs; the vocabulary head serves masked language
    modeling alone.
    """
    num_tokens = min([NUM_TOKENS, *map(max_tokens, models.values())])
    encoders = {name: as_function(model.eval().base_model, torch.device("cpu")) for name, model in models.items()}
    latency = measure_latency_of_one(encoders, {"input_ids": np.full((1, num_tokens), 10)})
    return {
        name: Cost(
            num_parameters=model.num_parameters(),
            megabytes=model.num_parameters() * _BYTES_PER_PARAMETER / 1e6,
            latency_ms=latency[name].median,
        )
        for name, model in models.items()
    }
