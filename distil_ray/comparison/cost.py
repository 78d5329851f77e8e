"""What a model costs: parameters, megabytes, and the time of one row on this machine's CPU.

Shapes: T tokens a row.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from distil_ray.distillation.models import max_tokens
from distil_ray.evaluation.speed import as_function, measure_latency_of_one

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
    modelling alone.
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
