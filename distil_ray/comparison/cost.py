"""What a model costs: parameters, megabytes, and the time of one row on this machine's CPU.

Shapes: T tokens a row.
"""

import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from distil_ray.distillation.models import encode, max_tokens

NUM_TOKENS = 128
NUM_WARMUPS, NUM_ROUNDS = 5, 40
_BYTES_PER_PARAMETER = 4  # fp32, in which students are trained and exported


class Cost(NamedTuple):
    """``megabytes`` of fp32 weights; ``latency_ms``: median milliseconds of an encoder pass over one row."""

    num_parameters: int
    megabytes: float
    latency_ms: float


@torch.inference_mode()
def measure(models: Mapping[str, PreTrainedModel]) -> dict[str, Cost]:
    """Measure models on the CPU at batch 1, rows of 128 tokens or as many as all of them take.

    They take turns, so that whatever else the machine does meets all of them alike. The encoder is timed, which is
    what a model fine-tuned for a task runs; the vocabulary head serves masked language modelling alone.
    """
    num_tokens = min([NUM_TOKENS, *map(max_tokens, models.values())])
    row = torch.full((1, num_tokens), 10)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(NUM_WARMUPS + NUM_ROUNDS):
        for name, model in models.items():
            began = time.perf_counter()
            encode(model.train(False), row)
            seconds[name].append(time.perf_counter() - began)
    return {
        name: Cost(
            num_parameters=model.num_parameters(),
            megabytes=model.num_parameters() * _BYTES_PER_PARAMETER / 1e6,
            latency_ms=1e3 * statistics.median(seconds[name][NUM_WARMUPS:]),
        )
        for name, model in models.items()
    }
