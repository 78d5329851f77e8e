"""What a reader has to know beside scores: what they are of, what a constant answer scores, how weights are stored."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distil_ray.errors import InputError
from distil_ray.evaluation.finetuning import adapter_of
from distil_ray.evaluation.protocol import Finetuning, Metric
from distil_ray.evaluation.tasks import Splits, Task
from distil_ray.models.origin import Origin

_DTYPES = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "I8": "int8",
    "U8": "uint8",
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
_HEADER_BYTES = 8  # of a safetensors file: the length of the JSON that follows


class TaskFacts(NamedTuple):
    """What the scores on a task are of.

    Attributes:
        metrics: whose mean the score is.
        num_train_rows: used, of ``num_rows_there``.
        constant_score: in percent, what one answer to all rows scores: the commonest class or the mean of the training
            rows, or "no answer".
    """

    kind: str
    metrics: tuple[Metric, ...]
    num_train_rows: int
    num_rows_there: int
    num_validation_rows: int
    num_epochs: int
    learning_rate: float
    batch_size: int
    max_seq_length: int
    constant_score: float


class StoredWeights(NamedTuple):
    """Bytes of a model's weights on disk, and the number format that most of them have, "" if it is unknown."""

    num_bytes: int
    dtype: str = ""


def facts_of(task: Task, splits: Splits, finetuning: Finetuning) -> TaskFacts:
    """What is to be known of a task as models are fine-tuned on it."""
    train, adapter = splits["train"], adapter_of(task)
    validation = [rows for split, rows in splits.items() if split != "train"]
    scores = [score for rows in validation for score in adapter.constant_score(train, rows).values()]
    return TaskFacts(
        kind=task.kind,
        metrics=task.metrics,
        num_train_rows=len(train.texts),
        num_rows_there=train.drawn_from or len(train.texts),
        num_validation_rows=sum(len(rows.texts) for rows in validation),
        num_epochs=finetuning.num_epochs,
        learning_rate=finetuning.learning_rate,
        batch_size=finetuning.batch_size,
        max_seq_length=finetuning.max_seq_length,
        constant_score=float(np.mean(scores)),
    )


def stored_weights(origin: Origin) -> StoredWeights:
    """The weights that transformers takes of a folder, or of the copy that was fetched from the Hub.

    Raises:
        InputError: there are none.
    """
    folder = Path(origin.path)
    if not origin.is_local:
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "pytorch_model*.bin"]
        snapshot = snapshot_download(
            origin.path, revision=origin.revision, allow_patterns=patterns, local_files_only=True
        )
        folder = Path(snapshot)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"{origin.path} has no weights; expected model.safetensors or pytorch_model.bin")
    num_weights: Counter[str] = Counter()
    for file in files:
        num_weights += _weights_by_dtype(file)
    dtype = num_weights.most_common(1)[0][0] if num_weights else ""
    return StoredWeights(sum(file.stat().st_size for file in files), dtype)


def _weights_by_dtype(file: Path) -> Counter[str]:
    """How many weights of each number format a file has; nothing if it does not say. Loads none of them."""
    found: Counter[str] = Counter()
    if file.suffix == ".safetensors":
        with file.open("rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(_HEADER_BYTES), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                found[_DTYPES.get(tensor["dtype"], tensor["dtype"])] += int(np.prod(tensor["shape"]))
        return found
    try:
        tensors: Any = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except RuntimeError:  # of a format from before PyTorch 1.6
        return found
    for tensor in tensors.values():
        if isinstance(tensor, torch.Tensor):
            found[_DTYPES.get(tensor.dtype, str(tensor.dtype))] += tensor.numel()
    return found
