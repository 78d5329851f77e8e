"""A model and a task's rows -> a fine-tuned model's scores on the validation rows. Plain torch: no Ray.

Shapes: B rows of a batch, T tokens of its longest row, C labels.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from distil_ray.evaluation.glue import Rows, Task
from distil_ray.evaluation.protocol import Finetuning
from distil_ray.evaluation.scores import score

_MAX_GRAD_NORM = 1.0
_BATCHES_A_POOL = 32  # whose rows are put in order of length, so that little is padded
_EVALUATION_ROWS = 64

Encoded = list[dict[str, list[int]]]


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    train: Rows,
    validation: Mapping[str, Rows],
    protocol: Finetuning,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """Train on all rows and score on each validation split.

    AdamW with linear warm-up and decay, gradients clipped to norm 1 (as in arXiv 1810.04805); no early stopping.

    Args:
        model: with a head for the task; its weights are changed.
        seed: of the order of rows and of dropout; the head's weights come with the model.

    Returns:
        The official metrics in percent by "split/metric", and "score", their mean.
    """
    torch.manual_seed(seed)
    model.to(device)  # type: ignore[arg-type]
    rows = encode_rows(tokenizer, train, protocol.max_seq_length)
    num_steps = -(-len(rows) // protocol.batch_size) * protocol.num_epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=protocol.learning_rate, weight_decay=protocol.weight_decay)
    schedule = get_linear_schedule_with_warmup(optimizer, round(protocol.warmup_fraction * num_steps), num_steps)
    labels = torch.as_tensor(train.labels, dtype=torch.float32 if task.is_regression else torch.int64)
    generator = np.random.default_rng(seed)
    for _ in range(protocol.num_epochs):
        for indices in batches([len(row["input_ids"]) for row in rows], protocol.batch_size, generator):
            logits = _logits(model.train(), tokenizer, [rows[i] for i in indices], protocol, device)
            loss = task_loss(task, logits, labels[indices].to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    found: dict[str, float] = {}
    for split, part in validation.items():
        predictions = predict(model, tokenizer, task, part, protocol, device)
        found |= {f"{split}/{name}": value for name, value in score(task.metrics, part.labels, predictions).items()}
    return found | {"score": float(np.mean(list(found.values())))}


def task_loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of ``logits`` [B, C]: squared error for a number, cross-entropy for classes."""
    if task.is_regression:
        return torch.nn.functional.mse_loss(logits.squeeze(1).float(), labels)
    return torch.nn.functional.cross_entropy(logits.float(), labels)


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Rows,
    protocol: Finetuning,
    device: torch.device,
) -> npt.NDArray[Any]:
    """Return the predicted class or number of each row [rows]."""
    encoded = encode_rows(tokenizer, rows, protocol.max_seq_length)
    order = np.argsort([len(row["input_ids"]) for row in encoded], kind="stable")
    predictions = np.zeros(len(encoded), dtype=np.float64 if task.is_regression else np.int64)
    for start in range(0, len(order), _EVALUATION_ROWS):
        indices = order[start : start + _EVALUATION_ROWS]
        logits = _logits(model.eval(), tokenizer, [encoded[i] for i in indices], protocol, device).float()
        predictions[indices] = (logits.squeeze(1) if task.is_regression else logits.argmax(1)).cpu().numpy()
    return predictions


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Encoded:
    """Tokenize rows; of a pair that is too long the longer text is cut first."""
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    encoded: Any = tokenizer(*columns, truncation=True, max_length=max_seq_length)
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(rows.texts))]


def batches(lengths: list[int], batch_size: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the indices of all rows once, in batches of rows of like length, in an order drawn by ``generator``."""
    order = generator.permutation(len(lengths))
    pool = batch_size * _BATCHES_A_POOL
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort([lengths[i] for i in part], kind="stable")]
        cut = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        for index in generator.permutation(len(cut)):
            yield cut[index]


def _logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Encoded,
    protocol: Finetuning,
    device: torch.device,
) -> Tensor:
    batch: Any = tokenizer.pad(rows, return_tensors="pt").to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bf16"):
        logits: Tensor = model(**batch).logits
    return logits
