"""Tasks that ask for a span of a context, in the way of SQuAD 1.1 and 2.0 (arXiv 1606.05250, 1806.03822).

A row is cut into windows that overlap; a model gives each piece of a window a logit to be the first and one to be the
last of the answer. The piece at position 0, [CLS], stands for "no answer".

Shapes: B windows of a batch, T pieces of its longest window.
"""

from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.text import squad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.distillation.models import load_span_answerer
from distil_ray.errors import InputError
from distil_ray.evaluation.features import Features, Logits, Window
from distil_ray.evaluation.tasks import Answers, Rows, Task

_OVERLAP = 1 / 3  # of a window's length: BERT's 128 pieces of 384
_MAX_ANSWER_PIECES = 30  # BERT's
_NO_LOGIT = -1e4  # of padding: no probability, and finite, so that differences of its logarithms are


class Spans:
    """How the fine-tuning of a span task differs from others."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def load(self, path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
        """Load an encoder with a new head, see `load_span_answerer`."""
        return load_span_answerer(path, seed, revision)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Features:
        """Windows of all rows; the targets are positions of the first answer's first and last piece, 0 and 0 where a
        window does not have it whole.

        Raises:
            InputError: a question leaves no room for the context.
        """
        self.check(tokenizer, rows, max_seq_length)
        questions, contexts = (list(column) for column in zip(*rows.texts, strict=True))
        questions = [question.strip() for question in questions]
        stride = int(max_seq_length * _OVERLAP)
        encoded: Any = tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=max_seq_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        windows = []
        for index, source in enumerate(sources):
            is_context = np.array([part == 1 for part in encoded.sequence_ids(index)])
            windows.append(Window(source, np.where(is_context[:, None], np.array(offsets[index]), 0)))
        inputs = [{name: values[i] for name, values in encoded.items()} for i in range(len(sources))]
        targets = [_position(window, rows.labels[window.row]) for window in windows]
        return Features(inputs, torch.tensor(targets, dtype=torch.int64), windows)

    def check(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> None:
        """Raise InputError if a question leaves no room for a context.

        Only questions of more bytes than there is room for pieces are tokenized: a piece has a byte at least.
        """
        stride = int(max_seq_length * _OVERLAP)
        around = tokenizer.num_special_tokens_to_add(pair=True) + stride + 1
        long = {
            text for question, _ in rows.texts if len((text := question.strip()).encode()) + around > max_seq_length
        }
        if not long:
            return
        encoded: Any = tokenizer(sorted(long), add_special_tokens=False)
        longest = max(map(len, encoded["input_ids"]))
        if longest + around > max_seq_length:
            raise InputError(
                f"{self._task.name}: its longest question has {longest} pieces, for which finetuning.max_seq_length "
                f"{max_seq_length} leaves no room for a context; expected {int((longest + around - stride) * 1.5) + 1} "
                "or more"
            )

    def logits(self, outputs: Any, attention_mask: Tensor) -> Tensor:
        """[B, 2, T] in fp32: of starts and of ends."""
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1).float()
        return logits.masked_fill(attention_mask.unsqueeze(1) == 0, _NO_LOGIT)

    def score(self, rows: Rows, features: Features, logits: Logits) -> dict[str, float]:
        """Exact match and F1, in percent."""
        return self._score(rows, self.predictions(rows, features, logits))

    def constant_score(self, train: Rows, rows: Rows) -> dict[str, float]:
        """Exact match and F1, in percent, of "no answer" to all questions."""
        return self._score(rows, [""] * len(rows.texts))

    def _score(self, rows: Rows, found: list[str]) -> dict[str, float]:
        predictions: list[Any] = [{"id": str(index), "prediction_text": text} for index, text in enumerate(found)]
        targets: list[Any] = [
            {
                "id": str(index),
                "answers": {"text": list(answers.texts) or [""], "answer_start": list(answers.starts) or [0]},
            }
            for index, answers in enumerate(rows.labels)
        ]
        scores = squad(predictions, targets)
        return {name: float(scores[name]) for name in self._task.metrics}

    def predictions(self, rows: Rows, features: Features, logits: Logits) -> list[str]:
        """The text of the likeliest span of each row; empty where, in a task with questions that have no answer, "no
        answer" is likelier than every span in every window.
        """
        may_be_none = any(not answers.texts for answers in rows.labels)
        pairs = zip(features.windows, logits, strict=True)
        answers = [""] * len(rows.texts)
        for row, group in groupby(pairs, key=lambda pair: pair[0].row):
            best, no_answer, text = -np.inf, np.inf, ""
            for window, both in group:
                no_answer = min(no_answer, float(both[0, 0] + both[1, 0]))
                value, (start, stop) = _best_span(window.offsets, both)
                if value > best:
                    best, text = value, rows.texts[row][1][start:stop]
            answers[row] = "" if may_be_none and no_answer > best else text
        return answers


def _position(window: Window, answers: Answers) -> tuple[int, int]:
    """Positions of the pieces in which the first answer begins and ends."""
    if not answers.texts:
        return 0, 0
    start, stop = answers.starts[0], answers.starts[0] + len(answers.texts[0])
    is_context = window.offsets[:, 1] > 0
    first = np.flatnonzero(is_context & (window.offsets[:, 0] <= start) & (window.offsets[:, 1] > start))
    last = np.flatnonzero(is_context & (window.offsets[:, 0] < stop) & (window.offsets[:, 1] >= stop))
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


def _best_span(offsets: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> tuple[float, tuple[int, int]]:
    """The largest sum of a start's and a later end's logit within the context, and the span's characters."""
    is_context = offsets[:, 1] > 0
    if not is_context.any():
        return -np.inf, (0, 0)
    starts, ends = (np.where(is_context, one, -np.inf) for one in logits)
    sums = starts[:, None] + ends[None, :]
    reach = np.subtract.outer(np.arange(len(starts)), np.arange(len(starts)))  # start - end
    sums[(reach > 0) | (reach <= -_MAX_ANSWER_PIECES)] = -np.inf
    start, end = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[start, end]), (int(offsets[start, 0]), int(offsets[end, 1]))
