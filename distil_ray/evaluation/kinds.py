"""The kinds of task (class, number, span, tags, similarity): text -> features -> outputs -> predictions -> metrics.

Shapes: B features of a batch, T pieces of its longest, C outputs of a model for one: classes, a number, 2 × T, classes
× T, or a vector's D.
"""

import re
import statistics
import string
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nervaluate.evaluator import Evaluator
from scipy import stats
from sklearn import metrics
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.distillation.losses import IGNORE_INDEX
from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import Finetuning, Kind, Metric
from distil_ray.evaluation.tasks import Answers, Rows, Splits, Task
from distil_ray.models.loading import load_classifier, load_span_answerer, load_token_classifier

Array = npt.NDArray[Any]

METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": lambda labels, predictions: metrics.f1_score(labels, predictions, average="binary", zero_division=0.0),
    "macro_f1": lambda labels, predictions: metrics.f1_score(labels, predictions, average="macro", zero_division=0.0),
    "matthews": metrics.matthews_corrcoef,
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions).statistic,
    "spearman": lambda labels, predictions: stats.spearmanr(labels, predictions).statistic,
}


def score(names: Sequence[str], labels: Array, predictions: Array, num_classes: int = 2) -> dict[str, float]:
    """The metrics with these names, in percent. A metric that is undefined, as for constant predictions, is 0.

    F1 is that of class 1, or the mean over the classes if there are more than two.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, about constant input
        found = {}
        for name in names:
            metric = METRICS["macro_f1" if name == "f1" and num_classes > 2 else name]
            found[name] = float(metric(labels, predictions))
    return {name: 100 * value if np.isfinite(value) else 0.0 for name, value in found.items()}


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD's official exact match and F1, in percent: each prediction counts with the answer that it matches best.

    Args:
        answers: the right ones for each question; for one without an answer, an empty prediction is right.
    """
    exact, f1 = [], []
    for prediction, texts in zip(predictions, answers, strict=True):
        given = _normalized(prediction)
        targets = [_normalized(text) for text in texts or [""]]
        exact.append(max(float(given == target) for target in targets))
        f1.append(max(_word_f1(given.split(), target.split()) for target in targets))
    return {"exact_match": 100 * statistics.fmean(exact), "f1": 100 * statistics.fmean(f1)}


def _normalized(text: str) -> str:
    """As in SQuAD's evaluation script: lower case, without punctuation, articles and repeated spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(given: list[str], target: list[str]) -> float:
    if not given or not target:
        return float(given == target)
    common = sum((Counter(given) & Counter(target)).values())
    return 2 * common / (len(given) + len(target))


_OUTSIDE = "O"


def entity_scores(tags: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 over all entities, in percent: one counts if its words and its type are right.

    Entities are read as conlleval does: I- after another type or outside begins one. Without an entity, a figure is 0.

    Args:
        tags: of each row's words, in IOB2, IOBES, BILOU or IO.
        predictions: likewise.
    """
    both = [list(map(_as_iob2, rows)) for rows in (tags, predictions)]
    types = sorted({tag[2:] for rows in both for row in rows for tag in row} - {""})
    found = Evaluator(*both, tags=types, loader="list").evaluate()["overall"]["strict"]
    return {name: 100 * float(getattr(found, name)) for name in ("f1", "precision", "recall")}


def _as_iob2(tags: Sequence[str]) -> list[str]:
    """The same entities without what IOBES and BILOU say beyond: B-, S- and U- begin one, E-, L-, S- and U- end one."""
    pairs = zip([_OUTSIDE, *tags], tags, strict=False)
    return [
        tag if tag == _OUTSIDE else ("B" if tag[0] in "BSU" or before[0] in "ELSU" else "I") + tag[1:]
        for before, tag in pairs
    ]


class Summary(NamedTuple):
    """Scores over ``num_seeds`` seeds: median, lowest and highest, and ``values``, each seed's in their order."""

    median: float
    low: float
    high: float
    num_seeds: int
    values: tuple[float, ...]


def summarize(values: Sequence[float]) -> Summary:
    """Summarize at least one value."""
    return Summary(statistics.median(values), min(values), max(values), len(values), tuple(values))


def macro(scores: Iterable[float]) -> float:
    """The mean over tasks, as in the paper's table 1."""
    return statistics.fmean(scores)


def scored_tasks(tasks: Iterable[str], untuned: Collection[str]) -> list[str]:
    """The tasks that make up the score: those that models are fine-tuned for, as in the paper; all if there is none."""
    tasks = list(tasks)
    return [task for task in tasks if task not in untuned] or tasks


Logits = Sequence[npt.NDArray[np.float32]]
"""A model's outputs for each feature: [C], [2, T] for starts and ends of spans, [C, T] for tags."""


class Window(NamedTuple):
    """A feature that is part of row ``row``; ``offsets`` [T, 2]: start and end of each piece in the context, (0, 0) for
    pieces outside it.
    """

    row: int
    offsets: npt.NDArray[np.int64]


class Features(NamedTuple):
    """Inputs of a model, and its targets.

    Attributes:
        inputs: of each feature, by argument of the model.
        targets: [features] int64 classes, [features] float32 numbers, [features, 2] int64 positions, or [features, T]
            int64 classes of pieces, IGNORE_INDEX where there is none.
        windows: of each feature, where rows are cut into several.
        first_pieces: of each feature, where words have tags: the position of each word's first piece, -1 without one.
    """

    inputs: Sequence[dict[str, list[int]]]
    targets: Tensor
    windows: Sequence[Window] = ()
    first_pieces: Sequence[npt.NDArray[np.int64]] = ()

    @property
    def has_outputs_of_pieces(self) -> bool:
        """Whether outputs are as long as the feature."""
        return bool(self.windows or self.first_pieces)

    @property
    def lengths(self) -> list[int]:
        return [len(one["input_ids"]) for one in self.inputs]


class Labeling:
    """What is specific to classification and regression tasks."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def load(self, path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
        """Load an encoder with a new head, see `load_classifier`; its configuration names the classes."""
        return _naming_classes(load_classifier(path, self._task.num_outputs, seed, revision), self._task.classes)

    def check(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> str:
        """Accept all rows: long ones are truncated."""
        return ""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Features:
        """One feature per row; of a pair that is too long, the longer text is truncated first."""
        dtype = torch.float32 if self._task.kind == "regression" else torch.int64
        return Features(encode_rows(tokenizer, rows, max_seq_length), torch.as_tensor(rows.labels, dtype=dtype))

    def logits(self, outputs: Any, attention_mask: Tensor) -> Tensor:
        """[B, C] in fp32."""
        logits: Tensor = outputs.logits
        return logits.float()

    def score(self, rows: Rows, features: Features, logits: Logits) -> dict[str, float]:
        return self.scores(rows, logits)

    def scores(self, rows: Rows, logits: Logits) -> dict[str, float]:
        """The task's metrics, in percent, of the logits [C] of each row."""
        return self._score(rows, self.predictions(logits))

    def constant_score(self, train: Rows, rows: Rows) -> dict[str, float]:
        """The task's metrics, in percent, of always predicting the most common class or the mean of ``train``."""
        labels = np.asarray(train.labels)
        answer = labels.mean() if self._task.kind == "regression" else np.bincount(labels).argmax()
        return self._score(rows, np.full(len(rows.texts), answer))

    def _score(self, rows: Rows, predictions: npt.NDArray[Any]) -> dict[str, float]:
        return score(self._task.metrics, np.asarray(rows.labels), predictions, len(self._task.classes))

    def predictions(self, logits: Logits) -> npt.NDArray[Any]:
        """The class or the number of each row."""
        outputs = np.stack(logits)
        return outputs[:, 0] if self._task.kind == "regression" else outputs.argmax(1)


def _naming_classes(model: PreTrainedModel, classes: Sequence[str]) -> PreTrainedModel:
    if classes:
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: number for number, name in enumerate(classes)}
    return model


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> list[dict[str, list[int]]]:
    """Tokenize rows into what models take."""
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    encoded: Any = tokenizer(*columns, truncation=True, max_length=max_seq_length)
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(rows.texts))]


_OVERLAP = 1 / 3  # of a window's length: BERT's 128 pieces of 384
_MAX_ANSWER_PIECES = 30  # BERT's
_NO_LOGIT = -1e4  # of padding: no probability, yet finite, so that differences of log-probabilities are


class Spans:
    """What is specific to span tasks."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def load(self, path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
        """Load an encoder with a new head, see `load_span_answerer`."""
        return load_span_answerer(path, seed, revision)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Features:
        """Windows of all rows; the targets are the positions of the first answer's first and last piece, 0 and 0 in a
        window that does not contain all of it.

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

    def check(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> str:
        """Raise InputError if a question leaves no room for a context; there is nothing else to say.

        Only questions with more bytes than there is room for pieces are tokenized, as a piece has at least one byte.
        """
        stride = int(max_seq_length * _OVERLAP)
        around = tokenizer.num_special_tokens_to_add(pair=True) + stride + 1
        questions = {question.strip() for question, _ in rows.texts}
        long = [question for question in questions if len(question.encode()) + around > max_seq_length]
        if not long:
            return ""
        encoded: Any = tokenizer(sorted(long), add_special_tokens=False)
        longest = max(map(len, encoded["input_ids"]))
        if longest + around > max_seq_length:
            raise InputError(
                f"{self._task.name}: its longest question has {longest} pieces, so that finetuning.max_seq_length "
                f"{max_seq_length} leaves no room for a context; expected {int((longest + around - stride) * 1.5) + 1} "
                "or more"
            )
        return ""

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
        scores = squad_scores(found, [answers.texts for answers in rows.labels])
        return {name: scores[name] for name in self._task.metrics}

    def predictions(self, rows: Rows, features: Features, logits: Logits) -> list[str]:
        """The text of the most likely span of each row. In a task in which questions may have no answer, it is empty if
        that is more likely than every span in every window.
        """
        may_be_none = any(not answers.texts for answers in rows.labels)
        pairs = zip(features.windows, logits, strict=True)
        answers = [""] * len(rows.texts)
        for row, group in groupby(pairs, key=lambda pair: pair[0].row):
            best, text = -np.inf, ""
            no_answer = np.inf
            for window, both in group:
                no_answer = min(no_answer, float(both[0, 0] + both[1, 0]))
                value, (start, stop) = _best_span(window.offsets, both)
                if value > best:
                    best, text = value, rows.texts[row][1][start:stop]
            answers[row] = "" if may_be_none and no_answer > best else text
        return answers


def _position(window: Window, answers: Answers) -> tuple[int, int]:
    if not answers.texts:
        return 0, 0
    start, stop = answers.starts[0], answers.starts[0] + len(answers.texts[0])
    is_context = window.offsets[:, 1] > 0
    first = np.flatnonzero(is_context & (window.offsets[:, 0] <= start) & (window.offsets[:, 1] > start))
    last = np.flatnonzero(is_context & (window.offsets[:, 0] < stop) & (window.offsets[:, 1] >= stop))
    return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


def _best_span(offsets: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> tuple[float, tuple[int, int]]:
    """The largest sum of a start's and a later end's logit within the context, and the span in characters."""
    is_context = offsets[:, 1] > 0
    if not is_context.any():
        return -np.inf, (0, 0)
    starts, ends = (np.where(is_context, one, -np.inf) for one in logits)
    sums = starts[:, None] + ends[None, :]
    reach = np.subtract.outer(np.arange(len(starts)), np.arange(len(starts)))  # start - end
    sums[(reach > 0) | (reach <= -_MAX_ANSWER_PIECES)] = -np.inf
    start, end = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[start, end]), (int(offsets[start, 0]), int(offsets[end, 1]))


class Tokens:
    """What is specific to tasks that ask for a tag of each word. A word's tag is that of its first piece."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def load(self, path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
        """Load an encoder with a new head, see `load_token_classifier`; its configuration names the tags."""
        return _naming_classes(load_token_classifier(path, self._task.num_outputs, seed, revision), self._task.classes)

    def check(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> str:
        """Say how many words a model does not see, as rows are cut or a tokenizer makes nothing of them."""
        words = np.concatenate(self.encode(tokenizer, rows, max_seq_length).first_pieces)
        lost = int((words < 0).sum())
        if not lost:
            return ""
        return (
            f"{lost:,} of {len(words):,} words have no piece within finetuning.max_seq_length {max_seq_length}; they "
            f"teach nothing, and are scored as if {_OUTSIDE} were predicted"
        )

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Features:
        """One feature per row, of its words joined by blanks, as tokenizers know them; long ones are truncated."""
        encoded: Any = tokenizer([text for (text,) in rows.texts], truncation=True, max_length=max_seq_length)
        numbers = {name: number for number, name in enumerate(self._task.classes)}
        inputs = [{name: values[i] for name, values in encoded.items()} for i in range(len(rows.texts))]
        targets = np.full((len(inputs), max(len(one["input_ids"]) for one in inputs)), IGNORE_INDEX, dtype=np.int64)
        first_pieces = []
        for index, (words, tags) in enumerate(rows.labels):
            places = _first_pieces(encoded[index], words)
            has_piece = places >= 0
            targets[index, places[has_piece]] = np.array([numbers.get(tag, IGNORE_INDEX) for tag in tags])[has_piece]
            first_pieces.append(places)
        return Features(inputs, torch.from_numpy(targets), first_pieces=first_pieces)

    def logits(self, outputs: Any, attention_mask: Tensor) -> Tensor:
        """[B, C, T] in fp32."""
        logits: Tensor = outputs.logits
        return logits.float().mT

    def score(self, rows: Rows, features: Features, logits: Logits) -> dict[str, float]:
        """The task's metrics, in percent, of entities."""
        return self._score(rows, self.predictions(features, logits))

    def constant_score(self, train: Rows, rows: Rows) -> dict[str, float]:
        """The task's metrics, in percent, of finding no entity."""
        return self._score(rows, [[_OUTSIDE] * len(words) for words, _ in rows.labels])

    def _score(self, rows: Rows, predictions: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = entity_scores([tags for _, tags in rows.labels], predictions)
        return {name: scores[name] for name in self._task.metrics}

    def predictions(self, features: Features, logits: Logits) -> list[list[str]]:
        """The tag of each row's words; "O" of a word without a piece."""
        return [
            [self._task.classes[best[place]] if place >= 0 else _OUTSIDE for place in places]
            for best, places in zip((one.argmax(0) for one in logits), features.first_pieces, strict=True)
        ]


def _first_pieces(encoding: Any, words: Sequence[str]) -> npt.NDArray[np.int64]:
    """The position of each word's first piece in an encoding of the words joined by blanks; -1 if it has none."""
    places, start = [], 0
    for word in words:
        found = (encoding.char_to_token(char) for char in range(start, start + len(word)))
        places.append(next((place for place in found if place is not None), -1))
        start += len(word) + 1
    return np.array(places, dtype=np.int64)


class Similarity:
    """What is specific to the similarity of two texts: nothing is trained, and each text of a row is a feature."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def load(self, path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
        """Load an encoder, without a head."""
        model: Any = load_classifier(path, 1, seed, revision)
        encoder: PreTrainedModel = model.base_model
        return encoder

    def check(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> str:
        """Accept all rows: long ones are truncated."""
        return ""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Features:
        """The features of a row's two texts follow one another; there are no targets."""
        texts: list[tuple[str, ...]] = [(self._task.prompt + text,) for pair in rows.texts for text in pair]
        return Features(encode_rows(tokenizer, Rows(texts, []), max_seq_length), torch.empty(0))

    def logits(self, outputs: Any, attention_mask: Tensor) -> Tensor:
        """The texts' vectors [B, D] in fp32."""
        hidden: Tensor = outputs.last_hidden_state.float()
        if self._task.pooling == "cls":
            return hidden[:, 0]
        is_real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * is_real).sum(1) / is_real.sum(1)

    def score(self, rows: Rows, features: Features, logits: Logits) -> dict[str, float]:
        """The task's metrics, in percent, of the cosines."""
        vectors = np.stack(logits).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return score(self._task.metrics, np.asarray(rows.labels), (vectors[::2] * vectors[1::2]).sum(1))

    def constant_score(self, train: Rows, rows: Rows) -> dict[str, float]:
        """0: with one number for all rows nothing correlates."""
        return dict.fromkeys(self._task.metrics, 0.0)


Adapter = Labeling | Spans | Tokens | Similarity
"""What is specific to a kind of task, with the same methods for all kinds."""

_ADAPTERS: dict[Kind, type[Spans | Tokens | Similarity]] = {"span": Spans, "tokens": Tokens, "similarity": Similarity}


def adapter_of(task: Task) -> Adapter:
    return _ADAPTERS.get(task.kind, Labeling)(task)


class TaskFacts(NamedTuple):
    """What the scores on a task are based on.

    Attributes:
        metrics: the score is their mean.
        num_train_rows: training rows used, of ``num_rows_there``; 0, as are the epochs, where nothing is fine-tuned.
        learning_rates: one, or those of which each model took the best.
        constant_score: in percent, the score of one answer for all rows: the most common class or the mean of the
            training rows, "no answer", or no entity.
    """

    kind: str
    metrics: tuple[Metric, ...]
    num_train_rows: int
    num_rows_there: int
    num_validation_rows: int
    num_epochs: int
    learning_rates: tuple[float, ...]
    batch_size: int
    max_seq_length: int
    constant_score: float

    @property
    def is_tuned(self) -> bool:
        """See `Task.is_tuned`."""
        return self.num_epochs > 0


def facts_of(task: Task, splits: Splits, finetuning: Finetuning) -> TaskFacts:
    """The facts of a task as models are fine-tuned on it."""
    train, adapter = splits.get("train", Rows([], [])), adapter_of(task)
    validation = [rows for split, rows in splits.items() if split != "train"]
    scores = [score for rows in validation for score in adapter.constant_score(train, rows).values()]
    return TaskFacts(
        kind=task.kind,
        metrics=task.metrics,
        num_train_rows=len(train.texts),
        num_rows_there=train.drawn_from or len(train.texts),
        num_validation_rows=sum(len(rows.texts) for rows in validation),
        num_epochs=finetuning.num_epochs if task.is_tuned else 0,
        learning_rates=finetuning.learning_rates,
        batch_size=finetuning.batch_size,
        max_seq_length=finetuning.max_seq_length,
        constant_score=float(np.mean(scores)),
    )
