"""How fast models are on equal inputs, timed in turns so that a busy machine favors none; and how large they are."""

import inspect
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.evaluation.kinds import encode_rows
from distil_ray.evaluation.tasks import Rows
from distil_ray.evaluation.turns import Key, time_in_turns
from distil_ray.models.loading import max_tokens
from distil_ray.models.threads import using_threads
from distil_ray.runs.cluster import usable_cpus

NUM_TOKENS = 128
_NUM_SINGLE_ROWS, _NUM_BATCHES, _BATCH_SIZE, _NUM_WARMUPS = 40, 7, 32, 2
_BYTES_PER_PARAMETER = 4  # fp32, in which students are trained and exported

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""A model as a function of the tokenizer's arrays [B, T] int64 by name; it returns its outputs by name."""


class Contender(NamedTuple):
    """A model to be timed, and its tokenizer."""

    run: Run
    tokenizer: PreTrainedTokenizerBase


class Timing(NamedTuple):
    """Median, first and third quartile of a figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarize at least two values."""
        low, median, high = statistics.quantiles(values, n=4)
        return cls(median, low, high)


class Speed(NamedTuple):
    """``latency_ms`` of one row; ``rows_per_second`` in batches of 32; ``where``: threads, or a GPU's name."""

    where: str
    latency_ms: Timing
    rows_per_second: Timing


class Cost(NamedTuple):
    """``megabytes`` of fp32 weights; ``latency_ms``: median milliseconds of an encoder pass over one row."""

    num_parameters: int
    megabytes: float
    latency_ms: float


def measure_costs(models: Mapping[str, PreTrainedModel]) -> dict[str, Cost]:
    """Measure models on the CPU, on the same row of 128 tokens or as many as all of them take.

    The encoder is timed, which is what a model fine-tuned for a task runs; the vocabulary head serves masked language
    modeling alone. The models are left in eval mode.
    """
    num_tokens = min([NUM_TOKENS, *map(max_tokens, models.values())])
    row = {"input_ids": np.full((1, num_tokens), 10)}
    encoders = {name: as_function(model.eval().base_model, torch.device("cpu")) for name, model in models.items()}
    passes = {name: lambda _, run=run: run(row) for name, run in encoders.items()}
    seconds = time_in_turns(passes, _NUM_SINGLE_ROWS, _NUM_WARMUPS)
    return {
        name: Cost(
            num_parameters=model.num_parameters(),
            megabytes=model.num_parameters() * _BYTES_PER_PARAMETER / 1e6,
            latency_ms=1e3 * statistics.median(seconds[name]),
        )
        for name, model in models.items()
    }


def measure_speed(
    models: Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]], rows: Rows, max_seq_length: int
) -> dict[str, list[Speed]]:
    """Measure on one thread, on all, and on a GPU if there is one (the paper: batches of 1 over STS-B's rows)."""
    speeds: dict[str, list[Speed]] = {name: [] for name in models}

    def measure_on(device: torch.device, where: str) -> None:
        contenders = {
            name: Contender(as_function(model, device), tokenizer) for name, (model, tokenizer) in models.items()
        }
        latency = measure_latency(contenders, rows, max_seq_length)
        seconds = _time_batches(contenders, rows, max_seq_length, _BATCH_SIZE, _NUM_BATCHES)
        for name, (model, _) in models.items():
            rate = Timing.of([_BATCH_SIZE / value for value in seconds[name]])
            speeds[name].append(Speed(where, latency[name], rate))
            model.cpu()

    for num_threads in sorted({1, usable_cpus()}):
        with using_threads(num_threads):
            measure_on(torch.device("cpu"), "1 thread" if num_threads == 1 else f"{num_threads} threads")
    if torch.cuda.is_available():
        measure_on(torch.device("cuda"), torch.cuda.get_device_name())
    return speeds


def measure_latency(contenders: Mapping[Key, Contender], rows: Rows, max_seq_length: int) -> dict[Key, Timing]:
    """Milliseconds of one row of a task at a time."""
    seconds = _time_batches(contenders, rows, max_seq_length, 1, _NUM_SINGLE_ROWS)
    return {name: Timing.of([1e3 * value for value in values]) for name, values in seconds.items()}


def _time_batches(
    contenders: Mapping[Key, Contender], rows: Rows, max_seq_length: int, batch_size: int, num_batches: int
) -> dict[Key, list[float]]:
    """Seconds of each of ``num_batches`` batches of a task's rows, the same rows for all contenders."""
    passes = {}
    for name, (run, tokenizer) in contenders.items():
        batches = list(_batches(tokenizer, rows, max_seq_length, batch_size, _NUM_WARMUPS + num_batches))
        passes[name] = lambda number, run=run, batches=batches: run(batches[number])
    return time_in_turns(passes, num_batches, _NUM_WARMUPS)


def _batches(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int, batch_size: int, count: int
) -> Iterator[dict[str, Array]]:
    """Batches of the rows in their order, from the first again when they are used up."""
    encoded = encode_rows(tokenizer, rows, max_seq_length)
    for number in range(count):
        chosen = [encoded[(number * batch_size + i) % len(encoded)] for i in range(batch_size)]
        padded: Any = tokenizer.pad(chosen, return_tensors="np")
        yield {name: values.astype(np.int64) for name, values in padded.items()}


def as_function(model: PreTrainedModel, device: torch.device) -> Run:
    """A torch model as a function of arrays in this machine's memory; the model is moved and put in eval mode."""
    model.to(device).eval()  # type: ignore[arg-type]
    taken = inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def run(batch: Mapping[str, Array]) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items() if name in taken}
        return {name: values.cpu().numpy() for name, values in model(**tensors).items()}

    return run
