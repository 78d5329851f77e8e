"""What a task asks for, and its rows: GLUE's or a user's, checked as they are read."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import METRICS_OF, Kind, Metric, OwnTask, Protocol
from distil_ray.evaluation.tables import TAG, TO_UTF8, TableSource, read_table

_PAIR = ("sentence1", "sentence2")
_TEXT_OF: dict[Kind, tuple[str, ...]] = {"span": ("question", "context"), "tokens": ("tokens",), "similarity": _PAIR}
_LABEL_OF: dict[Kind, str] = {"span": "answers", "tokens": "ner_tags", "similarity": "score"}
_METRICS_OF: dict[Kind, tuple[Metric, ...]] = METRICS_OF | {"classification": ("accuracy",), "tokens": ("f1",)}

_SAMPLE_SEED = 0  # the rows are the same for all models and seeds
# Numbers below this may leave some out; others are taken as names of classes, as a head has an output per number.
_MAX_PLAIN_CLASSES = 1000
# More values than this, most of them in a single row, are not classes.
_FEW_CLASSES = 100


@dataclass(frozen=True)
class Task:
    """A task of one text or a pair of them.

    Attributes:
        kind: of what is asked for: a class, a number, a span of the second text (possibly none, as in SQuAD 2.0), a tag
            of each word, or, of a model as it is, that the similarity of two texts goes with a number.
        columns: of the text; one or two.
        metrics: official ones, by their names in `METRICS`; the task's score is their mean.
        classes: names of the classes 0, 1, …; empty: those that the training rows have.
        label: column of what is asked for.
        validation: names of the splits to score on; the score is the mean over them.
        limits: lowest and highest number that is asked for.
        pooling, prompt: of a similarity, see `Embedding`; the model's own where pooling is None.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    metrics: tuple[Metric, ...]
    classes: tuple[str, ...] = ()
    label: str = "label"
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)
    limits: tuple[float, float] = (-np.inf, np.inf)
    source: TableSource = field(default_factory=TableSource)
    pooling: Literal["mean", "cls"] | None = None
    prompt: str = ""

    @property
    def is_tuned(self) -> bool:
        """Whether models are fine-tuned on it, so that it has training rows, and seeds matter."""
        return self.kind != "similarity"

    @property
    def num_outputs(self) -> int:
        """Outputs of a head for the task: one per class or tag; one for a number; a start and an end of a span."""
        return {"regression": 1, "span": 2, "similarity": 1}.get(self.kind, len(self.classes))


class Answers(NamedTuple):
    """The right answers to a question: their texts and where they begin in the context; empty if it has no answer."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


class Tagged(NamedTuple):
    """The words of a row, which its text joins by blanks, and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of a split.

    Attributes:
        texts: a tuple of one or two strings per row.
        labels: ``[rows]`` int64 classes or float64 numbers, or a list of `Answers` or `Tagged`.
        drawn_from: how many rows these were sampled from; None if they are all.
    """

    texts: list[tuple[str, ...]]
    labels: npt.NDArray[Any] | list[Any]
    drawn_from: int | None = None

    def sample(self, count: int | None) -> "Rows":
        """This many rows at random, always the same ones, with the classes in their proportions; all rows if there are
        no more.
        """
        if count is None or count >= len(self.texts):
            return self
        return self._take(self._draw(count), drawn_from=len(self.texts))

    def set_aside(self, share: float) -> tuple["Rows", "Rows"]:
        """The other rows, and a share of them drawn like a sample, at least one."""
        drawn = self._draw(max(1, round(share * len(self.texts))))
        return self._take(np.setdiff1d(np.arange(len(self.texts)), drawn)), self._take(drawn)

    def _draw(self, count: int) -> npt.NDArray[np.int64]:
        """The sorted indices of a sample."""
        num_rows = len(self.texts)
        order = np.random.default_rng(_SAMPLE_SEED).permutation(num_rows)
        has_classes = isinstance(self.labels, np.ndarray) and self.labels.dtype == np.int64
        groups = np.asarray(self.labels)[order] if has_classes else np.zeros(num_rows, dtype=np.int64)
        place = np.empty(num_rows)  # of a row within its class, from 0 to 1
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
        return np.sort(order[np.argsort(place, kind="stable")[:count]])

    def _take(self, indices: npt.NDArray[np.int64], drawn_from: int | None = None) -> "Rows":
        labels = [self.labels[i] for i in indices]
        return Rows(
            [self.texts[i] for i in indices],
            labels if isinstance(self.labels, list) else np.array(labels),
            drawn_from=drawn_from,
        )

    def digest(self) -> str:
        """SHA-256 of texts and labels, in their order."""
        digest = hashlib.sha256()
        labels = self.labels if isinstance(self.labels, list) else self.labels.tolist()
        for row in zip(self.texts, labels, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


Splits = dict[str, Rows]  # "train", but for a similarity, and the validation splits


def first_validation(splits: Splits) -> Rows:
    return next(rows for split, rows in splits.items() if split != "train")


def own_task(name: str, spec: OwnTask) -> Task:
    return Task(
        name,
        spec.kind,
        columns=spec.text or _TEXT_OF.get(spec.kind, ("text",)),
        metrics=spec.metrics or _METRICS_OF[spec.kind],
        label=spec.label or _LABEL_OF.get(spec.kind, "label"),
        train=spec.train,
        validation=(spec.validation,),
        source=TableSource(spec.hub, spec.name, option=f"tasks.{name}"),
        pooling=spec.pooling,
    )


def read_tasks(tasks: Iterable[Task], protocol: Protocol) -> tuple[list[Task], dict[str, Splits]]:
    """Read all tasks' rows, before anything is trained.

    Returns:
        The tasks, with their classes, and their rows by name.

    Raises:
        InputError: rows are missing, or a column or a label is not what a task expects.
        OutageError: the Hub does not answer.
    """
    complete: list[Task] = []
    data: dict[str, Splits] = {}
    for task in tasks:
        read = {split: _read_split(task, split) for split in ((task.train,) if task.is_tuned else ()) + task.validation}
        if task.kind == "classification" and not task.classes:
            task, read = _with_classes(task, read)
        elif task.kind == "tokens":
            task, read = _with_tags(task, read)
        data[task.name] = {}
        if task.is_tuned:
            max_train_rows = protocol.finetuning_on(task.name).max_train_rows
            data[task.name]["train"] = _rows(task, read[task.train]).sample(max_train_rows)
        for split in task.validation:
            data[task.name][split if task.source.hub else "validation"] = _rows(task, read[split])
        complete.append(task)
    return complete, data


class _Split(NamedTuple):
    """A split as it is stored.

    Attributes:
        where: what messages call it.
        texts: one or two strings per row, or its words.
        label: the column of what is asked for.
        class_names: those of the classes 0, 1, … if the data set has them, as data sets of the Hub may.
    """

    where: str
    texts: list[tuple[str, ...]]
    label: pa.ChunkedArray
    class_names: tuple[str, ...]


def _read_split(task: Task, split: str) -> _Split:
    hub = task.source.hub
    where = f"{task.name}/{split} of {hub}" if hub else f"{task.name}: {split}"
    table = read_table(task.source, split, of_words=task.kind == "tokens")
    expected = (*task.columns, task.label)
    if missing := [name for name in expected if name not in table.column_names]:
        raise InputError(
            f"{where}: has no column {', '.join(missing)}, but {', '.join(table.column_names)}; expected "
            f"{', '.join(expected)}"
        )
    if not table.num_rows:
        raise InputError(f"{where}: has no rows")
    texts: list[Any]
    if task.kind == "tokens":
        texts = [words or [] for words in table[task.columns[0]].to_pylist()]
    else:
        columns = [_strings(table[name], f"{where}: column {name}") for name in task.columns]
        texts = list(zip(*columns, strict=True))
        if empty := [index for index, row in enumerate(texts) if None in row]:
            raise InputError(f"{where}: row {empty[0]} has no text in {' or '.join(task.columns)}")
    info = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = info.get("info", {}).get("features", {}).get(task.label)
    if isinstance(feature, dict):
        feature = feature.get("feature", feature)  # of a list's elements
    names = feature.get("names") if isinstance(feature, dict) else None
    return _Split(where, texts, table[task.label], tuple(names or ()))


def _strings(column: pa.ChunkedArray, what: str) -> list[str | None]:
    """The values of a column of text, which Arrow may hold as one of several types; nulls are None.

    Raises:
        InputError: it holds something else, or bytes that are not UTF-8.
    """
    values: list[Any] = column.to_pylist()
    for index, value in enumerate(values):
        if isinstance(value, bytes):  # as what is not UTF-8 in a CSV file is read
            try:
                values[index] = value.decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{what}: row {index} is not UTF-8; {TO_UTF8}") from error
        elif not isinstance(value, str | None):
            raise InputError(f"{what} holds {column.type}, expected text")
    return values


def _rows(task: Task, split: _Split) -> Rows:
    if task.kind == "tokens":
        words_and_tags = zip(split.texts, split.label.to_pylist(), strict=True)
        tagged = [Tagged(tuple(words), tuple(tags)) for words, tags in words_and_tags if words]
        if not tagged:
            raise InputError(f"{split.where}: has no words")
        return Rows([(" ".join(one.words),) for one in tagged], tagged)
    if task.kind != "span":
        return Rows(split.texts, _labels(task, split))
    pairs = zip(split.texts, split.label.to_pylist(), strict=True)
    answers = [_answers(f"{split.where}: row {index}", given, text[1]) for index, (text, given) in enumerate(pairs)]
    return Rows(split.texts, answers)


def _labels(task: Task, split: _Split) -> npt.NDArray[Any]:
    """Classes or numbers ``[rows]``, checked against what the task expects."""
    is_number = task.kind in ("regression", "similarity")
    low, high = task.limits if is_number else (0, len(task.classes) - 1)
    if is_number:
        expected = "a number" if np.isinf(high) else f"a number from {low:g} to {high:g}"
    else:
        expected = f"{low} to {high}"
    try:
        labels: npt.NDArray[Any] = split.label.to_numpy().astype(np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{split.where}: labels are of type {split.label.type}, expected {expected}") from error
    is_wrong = ~((labels >= low) & (labels <= high) & np.isfinite(labels))
    if not is_number:
        is_wrong |= labels != np.round(labels)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        hint = "; test splits have no labels" if labels[index] == -1 else ""
        raise InputError(f"{split.where}: row {index} has label {labels[index]:g}, expected {expected}{hint}")
    if task.kind == "similarity" and (labels == labels[0]).all():
        raise InputError(
            f"{split.where}: {task.label} is {labels[0]:g} in all rows, with which nothing correlates; expected "
            "numbers that differ"
        )
    return labels if is_number else labels.astype(np.int64)


def _with_classes(task: Task, splits: dict[str, _Split]) -> tuple[Task, dict[str, _Split]]:
    """Find the classes in the training rows; names of classes become numbers, in alphabetical order.

    Whole numbers from 0 on stay as they are, unless they are so large that they must be names.

    Raises:
        InputError: the labels are not classes.
    """
    train = splits[task.train]
    if train.class_names:
        return replace(task, classes=train.class_names), splits
    labels = {name: _class_labels(task, split) for name, split in splits.items()}
    values = labels[task.train]
    classes = sorted(_checked_classes(task, train.where, values))
    if not isinstance(classes[0], str):
        if classes[0] == -1 and 0 in classes:
            raise InputError(
                f"{train.where}: row {values.index(-1)} has label -1, which says in many data sets that a row has no "
                "label; leave such rows out, or give the classes names"
            )
        if classes[0] >= 0 and classes[-1] < max(_MAX_PLAIN_CLASSES, 2 * len(classes)):
            plain = {name: split._replace(label=pa.chunked_array([labels[name]])) for name, split in splits.items()}
            return replace(task, classes=tuple(map(str, range(int(classes[-1]) + 1)))), plain
    numbered = {}
    for name, split in splits.items():
        numbers = _numbered(task, split.where, labels[name], classes)
        numbered[name] = split._replace(label=pa.chunked_array([numbers]))
    names = tuple(value if isinstance(value, str) else str(int(value)) for value in classes)
    return replace(task, classes=names), numbered


def _with_tags(task: Task, splits: dict[str, _Split]) -> tuple[Task, dict[str, _Split]]:
    """Find the tags: those that the data set names, else those of the training rows; numbers become names.

    Raises:
        InputError: a row has no words or not a tag for each, or a tag is of another scheme or an unknown type.
    """
    train = splits[task.train]
    found = {name: list(_tags(split)) for name, split in splits.items()}
    classes = train.class_names or tuple(sorted({tag for tags in found[task.train] for tag in tags}))
    types = {tag[2:] for tag in classes}
    for name, split in splits.items():
        for index, tags in enumerate(found[name]):
            if unknown := [tag for tag in tags if tag[2:] not in types | {""}]:
                raise InputError(
                    f"{split.where}: row {index} has the tag {unknown[0]!r}, expected a type that {task.train} has: "
                    f"{', '.join(sorted(types - {''}))}"
                )
    return replace(task, classes=classes), {
        name: split._replace(label=pa.chunked_array([pa.array(found[name], pa.list_(pa.string()))]))
        for name, split in splits.items()
    }


def _tags(split: _Split) -> Iterator[tuple[str, ...]]:
    """The tags of each row's words, by name."""
    for index, (words, given) in enumerate(zip(split.texts, split.label.to_pylist(), strict=True)):
        where, tags = f"{split.where}: row {index}", given or []
        are_lists = isinstance(words, list) and isinstance(tags, list)
        if not are_lists or len(words) != len(tags) or not all(isinstance(word, str) for word in words):
            raise InputError(
                f"{where} has {words!r:.60} and {given!r:.60}, expected a list of words and one of their tags"
            )
        names = [split.class_names[tag] if tag in range(len(split.class_names)) else tag for tag in tags]
        if odd := [name for name in names if not (isinstance(name, str) and TAG.fullmatch(name))]:
            raise InputError(
                f"{where} has the tag {odd[0]!r}, expected names of IOB2, IOBES or IO, such as B-PER, I-PER and O"
            )
        yield tuple(names)


def _class_labels(task: Task, split: _Split) -> list[Any]:
    """The labels of a split: all of them text, or all of them numbers.

    Raises:
        InputError: they are of another type, or one is missing.
    """
    labels: list[Any] = split.label.to_pylist()
    if not all(isinstance(label, int | float | None) for label in labels):
        labels = list(_strings(split.label, f"{split.where}: column {task.label}"))
    for index, label in enumerate(labels):
        if label is None or label != label:  # NaN
            raise InputError(f"{split.where}: row {index} has no label in {task.label}")
    return [int(label) if isinstance(label, bool) else label for label in labels]


def _checked_classes(task: Task, where: str, labels: list[Any]) -> list[Any]:
    """The distinct labels.

    Raises:
        InputError: they are not classes.
    """
    classes = list(dict.fromkeys(labels))
    if odd := [value for value in classes if not isinstance(value, str) and value != round(value)]:
        raise InputError(
            f"{where}: row {labels.index(odd[0])} has label {odd[0]:g}, expected whole numbers or names of "
            "classes; for numbers to be predicted, give kind: regression"
        )
    if len(classes) < 2:
        raise InputError(f"{where}: all rows have one label, expected two classes or more")
    if len(classes) > max(_FEW_CLASSES, len(labels) / 2):
        raise InputError(
            f"{where}: column {task.label} has {len(classes):,} different values in {len(labels):,} rows, expected "
            "classes; name the column that has them (label), or give kind: regression"
        )
    return classes


def _numbered(task: Task, where: str, labels: list[Any], classes: list[Any]) -> list[int]:
    """The index of each label in ``classes``.

    Raises:
        InputError: a label is not among them.
    """
    numbers = {value: number for number, value in enumerate(classes)}
    if unknown := [(index, label) for index, label in enumerate(labels) if label not in numbers]:
        index, label = unknown[0]
        known = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
        unlike = ""
        if isinstance(label, str) != isinstance(classes[0], str):
            unlike = "; one is text and the other a number: store both alike"
        raise InputError(
            f"{where}: row {index} has label {label!r}, expected one of those of {task.train}: {known}{unlike}"
        )
    return [numbers[label] for label in labels]


def _answers(where: str, given: Any, context: str) -> Answers:
    """The answers of a row in SQuAD's layout: {text: [...], answer_start: [...]}.

    A question without an answer is written in several ways: null, no text, an empty text at any position.
    """
    if given is None:
        return Answers((), ())
    try:
        texts, starts = _listed(given["text"]), _listed(given["answer_start"])
        pairs = [(str(text), int(start)) for text, start in zip(texts, starts, strict=False) if text]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{where} has answers {given!r:.80}, expected {{text: […], answer_start: […]}}") from error
    if len(texts) != len(starts):
        raise InputError(f"{where} has {len(texts)} texts and {len(starts)} answer_start")
    for text, start in pairs:
        if start < 0 or context[start : start + len(text)] != text:
            raise InputError(f"{where}: {text!r:.80} is not at {start} of the context")
    return Answers(tuple(text for text, _ in pairs), tuple(start for _, start in pairs))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


_ACCURACY: tuple[Metric, ...] = ("accuracy",)
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("validation_matched", "validation_mismatched")
# In the order of the paper's table 1; the classes as the Hub's nyu-mll/glue names them.
TASKS = {
    task.name: task
    for task in (
        Task("cola", "classification", ("sentence",), ("matthews",), ("unacceptable", "acceptable")),
        Task(
            "mnli",
            "classification",
            ("premise", "hypothesis"),
            _ACCURACY,
            ("entailment", "neutral", "contradiction"),
            validation=_MNLI,
        ),
        Task("mrpc", "classification", _PAIR, ("accuracy", "f1"), ("not_equivalent", "equivalent")),
        Task("qnli", "classification", ("question", "sentence"), _ACCURACY, _ENTAILMENT),
        Task(
            "qqp",
            "classification",
            ("question1", "question2"),
            ("accuracy", "f1"),
            ("not_duplicate", "duplicate"),
        ),
        Task("rte", "classification", _PAIR, _ACCURACY, _ENTAILMENT),
        Task("sst2", "classification", ("sentence",), _ACCURACY, ("negative", "positive")),
        Task("stsb", "regression", _PAIR, ("pearson", "spearman"), limits=(0.0, 5.0)),
        Task("wnli", "classification", _PAIR, _ACCURACY, _ENTAILMENT[::-1]),
    )
}


# Those that are to be named: they are no part of the paper's table.
ON_REQUEST = {
    task.name: task
    for task in (
        Task(
            "stsb-similarity",
            "similarity",
            _PAIR,
            METRICS_OF["similarity"],
            limits=(0.0, 5.0),
            source=TableSource(name="stsb"),
        ),
    )
}


def chosen_tasks(names: Sequence[str], source: str, own: Mapping[str, OwnTask]) -> list[Task]:
    """The tasks with these names, GLUE's first, in the paper's order; without a name, GLUE's and the protocol's.

    Args:
        source: of GLUE's rows: a folder laid out like the Hub's data set, or its id there.
        own: the protocol's own tasks, by name.

    Raises:
        InputError: there is no task with such a name.
    """
    ours = TASKS | ON_REQUEST
    known = {
        name: replace(one, source=TableSource(source, one.source.name or name, "--glue")) for name, one in ours.items()
    }
    known |= {name: own_task(name, spec) for name, spec in own.items()}
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"--tasks: given {', '.join(unknown)}, expected some of {', '.join(known)}"
            f"{'' if own else '; a protocol file can describe others (tasks)'}"
        )
    chosen = names or [name for name in known if name in own or name not in ON_REQUEST]
    return [task for name, task in known.items() if name in chosen]
