"""What rows become for a model, whatever the kind of the task."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.evaluation.tasks import Rows

Logits = Sequence[npt.NDArray[np.float32]]
"""A model's outputs for each feature: [C], or [2, T] for starts and ends of spans."""


class Window(NamedTuple):
    """A feature that is a part of row ``row``; ``offsets`` [T, 2]: the characters of the context that each piece
    stands for, (0, 0) for pieces that are not the context's.
    """

    row: int
    offsets: npt.NDArray[np.int64]


class Features(NamedTuple):
    """Inputs of a model, and what it should answer.

    Attributes:
        inputs: of each feature, by argument of the model.
        targets: [features] int64 classes, [features] float32 numbers, or [features, 2] int64 positions.
        windows: of each feature, where rows are cut into several.
    """

    inputs: Sequence[dict[str, list[int]]]
    targets: Tensor
    windows: Sequence[Window] = ()

    @property
    def lengths(self) -> list[int]:
        """Pieces of each feature."""
        return [len(one["input_ids"]) for one in self.inputs]


class Adapter(Protocol):
    """What differs between kinds of tasks."""

    def load(self, path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
        """Load an encoder with a new head whose weights are drawn from ``seed``."""

    def check(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> None:
        """Raise InputError if features cannot be made of the rows; quicker than making them."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Features:
        """Make features of rows."""

    def logits(self, outputs: Any, attention_mask: Tensor) -> Tensor:
        """The outputs that the loss is about, in fp32, with classes or positions last."""

    def score(self, rows: Rows, features: Features, logits: Logits) -> dict[str, float]:
        """The official metrics in percent."""

    def constant_score(self, train: Rows, rows: Rows) -> dict[str, float]:
        """The same metrics of one answer to all rows: the commonest class or the mean of ``train``, or no answer."""
