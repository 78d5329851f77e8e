"""Tasks that ask for a class or a number: rows -> features, outputs -> predictions -> scores.

Shapes: B rows of a batch, C outputs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.distillation.models import load_classifier
from distil_ray.evaluation.features import Features, Logits
from distil_ray.evaluation.scores import score
from distil_ray.evaluation.tasks import Rows, Task


class Labelling:
    """How the fine-tuning of a classification or regression task differs from others."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def load(self, path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
        """Load an encoder with a new head, see `load_classifier`; its configuration names the classes."""
        model = load_classifier(path, self._task.num_outputs, seed, revision)
        if self._task.classes:
            model.config.id2label = dict(enumerate(self._task.classes))
            model.config.label2id = {name: number for number, name in enumerate(self._task.classes)}
        return model

    def check(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> None:
        """Whatever is too long is cut."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Features:
        """One feature a row; of a pair that is too long the longer text is cut first."""
        dtype = torch.float32 if self._task.kind == "regression" else torch.int64
        return Features(encode_rows(tokenizer, rows, max_seq_length), torch.as_tensor(rows.labels, dtype=dtype))

    def logits(self, outputs: Any, attention_mask: Tensor) -> Tensor:
        """[B, C] in fp32."""
        logits: Tensor = outputs.logits
        return logits.float()

    def score(self, rows: Rows, features: Features, logits: Logits) -> dict[str, float]:
        """The task's metrics, in percent."""
        return self.scores(rows, logits)

    def scores(self, rows: Rows, logits: Logits) -> dict[str, float]:
        """The task's metrics, in percent, of the logits [C] of each row."""
        return self._score(rows, self.predictions(logits))

    def constant_score(self, train: Rows, rows: Rows) -> dict[str, float]:
        """The task's metrics, in percent, of the commonest class or the mean number of ``train``."""
        labels = np.asarray(train.labels)
        answer = labels.mean() if self._task.kind == "regression" else np.bincount(labels).argmax()
        return self._score(rows, np.full(len(rows.texts), answer))

    def _score(self, rows: Rows, predictions: npt.NDArray[Any]) -> dict[str, float]:
        return score(self._task.metrics, np.asarray(rows.labels), predictions, len(self._task.classes))

    def predictions(self, logits: Logits) -> npt.NDArray[Any]:
        """The class or the number of each row."""
        outputs = np.stack(logits)
        return outputs[:, 0] if self._task.kind == "regression" else outputs.argmax(1)


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> list[dict[str, list[int]]]:
    """Tokenize rows into what models take."""
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    encoded: Any = tokenizer(*columns, truncation=True, max_length=max_seq_length)
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(rows.texts))]
