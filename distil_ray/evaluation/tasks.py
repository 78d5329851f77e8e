"""What a task asks for, and its rows: GLUE's, or from files, a folder laid out like a Hub data set, or the Hub."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import METRICS_OF, Metric, OwnTask, Protocol
from distil_ray.evaluation.tables import TO_UTF8, Origin, read_table

Kind = Literal["classification", "regression", "span"]

_TEXT_OF = {"classification": ("text",), "regression": ("text",), "span": ("question", "context")}
_LABEL_OF = {"classification": "label", "regression": "label", "span": "answers"}
_METRICS_OF = METRICS_OF | {"classification": ("accuracy",)}

_SAMPLE_SEED = 0  # the rows are the same for all models and seeds
# Numbers below this may leave some out; others are taken for names of classes, as a head has an output a number.
_MAX_PLAIN_CLASSES = 1000
# More classes than this, most of which stand at one row, are not classes.
_FEW_CLASSES = 100


@dataclass(frozen=True)
class Task:
    """A task of one text or a pair of them.

    Attributes:
        kind: of what is asked for: a class, a number, or a span of the second text (none, in SQuAD 2.0's way).
        columns: of the text; one or two.
        metrics: official ones, as `scores` names them; the task's score is their mean.
        classes: names of the classes 0, 1, …; empty = those that the training rows have.
        label: column of what is asked for.
        validation: names of the splits to score on; the score is the mean over them.
        limits: of a number that is asked for.
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
    origin: Origin = field(default_factory=Origin)

    @property
    def num_outputs(self) -> int:
        """Outputs of a head for the task: one a class; one for a number; a start and an end of a span."""
        return {"regression": 1, "span": 2}.get(self.kind, len(self.classes))


class Answers(NamedTuple):
    """The right answers to a question: their texts and where in the context they begin; none = it has no answer."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of a split.

    Attributes:
        texts: a tuple of one or two strings per row.
        labels: ``[rows]`` int64 classes or float64 numbers, or a list of `Answers`.
        drawn_from: how many rows there were, if these are a sample of them.
    """

    texts: list[tuple[str, ...]]
    labels: npt.NDArray[Any] | list[Answers]
    drawn_from: int | None = None

    def sample(self, count: int | None) -> "Rows":
        """So many rows at random, always the same ones, with the classes in their proportions; all rows if there are
        not more.
        """
        num_rows = len(self.texts)
        if count is None or count >= num_rows:
            return self
        order = np.random.default_rng(_SAMPLE_SEED).permutation(num_rows)
        has_classes = isinstance(self.labels, np.ndarray) and self.labels.dtype == np.int64
        groups = np.asarray(self.labels)[order] if has_classes else np.zeros(num_rows, dtype=np.int64)
        place = np.empty(num_rows)  # of a row within its class, from 0 to 1
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
        chosen = np.sort(order[np.argsort(place, kind="stable")[:count]])
        labels = [self.labels[i] for i in chosen]
        return Rows(
            [self.texts[i] for i in chosen],
            labels if isinstance(self.labels, list) else np.array(labels),
            drawn_from=num_rows,
        )

    def digest(self) -> str:
        """SHA-256 of texts and labels, in their order."""
        digest = hashlib.sha256()
        labels = self.labels if isinstance(self.labels, list) else self.labels.tolist()
        for row in zip(self.texts, labels, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


Splits = dict[str, Rows]  # "train" and the validation splits


def first_validation(splits: Splits) -> Rows:
    return next(rows for split, rows in splits.items() if split != "train")


def own_task(name: str, spec: OwnTask) -> Task:
    return Task(
        name,
        spec.kind,
        columns=spec.text or _TEXT_OF[spec.kind],
        metrics=spec.metrics or _METRICS_OF[spec.kind],
        label=spec.label or _LABEL_OF[spec.kind],
        train=spec.train,
        validation=(spec.validation,),
        origin=Origin(spec.hub, spec.name, option=f"tasks.{name}"),
    )


def read_tasks(tasks: Iterable[Task], protocol: Protocol) -> tuple[list[Task], dict[str, Splits]]:
    """Read all tasks' rows, before anything is trained.

    Returns:
        The tasks, with their classes, and their rows by name.

    Raises:
        InputError: rows are not there, or a column or a label is not what a task expects.
        OutageError: the Hub does not answer.
    """
    complete, data = [], {}
    for task in tasks:
        tables = {split: read_table(task.origin, split) for split in (task.train, *task.validation)}
        if task.kind == "classification" and not task.classes:
            task, tables = _with_classes(task, tables)
        train = _rows(task, task.train, tables[task.train])
        data[task.name] = {"train": train.sample(protocol.finetuning_on(task.name).max_train_rows)}
        for split in task.validation:
            name = split if task.origin.hub else "validation"
            data[task.name][name] = _rows(task, split, tables[split])
        complete.append(task)
    return complete, data


def _where(task: Task, split: str) -> str:
    return f"{task.name}/{split} of {task.origin.hub}" if task.origin.hub else f"{task.name}: {split}"


def _rows(task: Task, split: str, table: pa.Table) -> Rows:
    where = _where(task, split)
    expected = (*task.columns, task.label)
    if missing := [name for name in expected if name not in table.column_names]:
        raise InputError(
            f"{where}: has no column {', '.join(missing)}, but {', '.join(table.column_names)}; expected "
            f"{', '.join(expected)}"
        )
    if not table.num_rows:
        raise InputError(f"{where}: has no rows")
    texts = list(
        zip(*(_as_text(table[name], f"{where}: column {name}").to_pylist() for name in task.columns), strict=True)
    )
    if empty := [index for index, row in enumerate(texts) if not all(isinstance(text, str) for text in row)]:
        raise InputError(f"{where}: row {empty[0]} has no text in {' or '.join(task.columns)}")
    column = table[task.label]
    if task.kind == "span":
        return Rows(
            texts, [_answers(where, index, row, texts[index][1]) for index, row in enumerate(column.to_pylist())]
        )
    return Rows(texts, _labels(column, task, where))


def _as_text(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """A column of strings, whatever Arrow's type for them is; nulls stay.

    Raises:
        InputError: it holds something else.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type) or _is_text(column.type):
        return column
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise InputError(f"{what} holds {column.type}, expected text")
    try:  # what is not UTF-8 in a CSV file is read as bytes
        return column.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        index = next(index for index, value in enumerate(column.to_pylist()) if value and not _is_utf8(value))
        raise InputError(f"{what}: row {index} is not UTF-8; {TO_UTF8}") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _labels(column: pa.ChunkedArray, task: Task, where: str) -> npt.NDArray[Any]:
    is_number = task.kind == "regression"
    low, high = task.limits if is_number else (0, len(task.classes) - 1)
    if is_number:
        expected = "a number" if np.isinf(high) else f"a number from {low:g} to {high:g}"
    else:
        expected = f"{low} to {high}"
    try:
        labels: npt.NDArray[Any] = column.to_numpy().astype(np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: labels are of type {column.type}, expected {expected}") from error
    is_wrong = ~((labels >= low) & (labels <= high) & np.isfinite(labels))
    if not is_number:
        is_wrong |= labels != np.round(labels)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        hint = "; test splits have no labels" if labels[index] == -1 else ""
        raise InputError(f"{where}: row {index} has label {labels[index]:g}, expected {expected}{hint}")
    return labels if is_number else labels.astype(np.int64)


def _with_classes(task: Task, tables: dict[str, pa.Table]) -> tuple[Task, dict[str, pa.Table]]:
    """Find the classes in the training rows; names of classes become numbers, in the order of the alphabet.

    Whole numbers from 0 on stay as they are, unless they are so large that they must be names.

    Raises:
        InputError: the labels are not classes.
    """
    train = tables[task.train]
    if any(task.label not in table.column_names for table in tables.values()):
        return task, tables  # which is complained about like any other missing column
    if names := _declared_classes(train, task.label):
        return replace(task, classes=names), tables
    tables = {split: _with_plain_labels(task, split, table) for split, table in tables.items()}
    column, where = tables[task.train][task.label], _where(task, task.train)
    values = column.unique().to_pylist()
    _check_classes(values, column, task, where)
    if not _is_text(column.type):
        numbers = sorted(map(int, values))
        if numbers[0] == -1 and 0 in numbers:
            raise InputError(
                f"{where}: row {column.index(-1).as_py()} has label -1, which says in many data sets that a row has no "
                "label; leave such rows out, or give the classes names"
            )
        if numbers[0] >= 0 and numbers[-1] < max(_MAX_PLAIN_CLASSES, 2 * len(numbers)):
            return replace(task, classes=tuple(map(str, range(numbers[-1] + 1)))), tables
    ordered = sorted(values)
    numbered = {split: _numbered(task, split, table, ordered) for split, table in tables.items()}
    return replace(task, classes=tuple(_name_of(value) for value in ordered)), numbered


def _name_of(value: Any) -> str:
    return value if isinstance(value, str) else str(int(value))


def _declared_classes(table: pa.Table, label: str) -> tuple[str, ...]:
    """The names of the classes as a data set of the Hub keeps them beside its rows, if it does."""
    found = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = found.get("info", {}).get("features", {}).get(label)
    return tuple(feature.get("names") or ()) if isinstance(feature, dict) else ()


def _with_plain_labels(task: Task, split: str, table: pa.Table) -> pa.Table:
    """The table with labels that are text or numbers, none of them null."""
    where, column = _where(task, split), table[task.label]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    column = column.cast(kind) if is_number else _as_text(column, f"{where}: column {task.label}")
    is_missing = column.is_null(nan_is_null=True).to_pylist()
    if True in is_missing:
        raise InputError(f"{where}: row {is_missing.index(True)} has no label in {task.label}")
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int64())
    return table.set_column(table.column_names.index(task.label), task.label, column)


def _check_classes(values: list[Any], column: pa.ChunkedArray, task: Task, where: str) -> None:
    """Raise InputError unless the distinct ``values`` of a column may be classes."""
    if odd := [value for value in values if not isinstance(value, str) and value != round(value)]:
        raise InputError(
            f"{where}: row {column.index(odd[0]).as_py()} has label {odd[0]:g}, expected whole numbers or names of "
            "classes; for numbers to be predicted, give kind: regression"
        )
    if len(values) < 2:
        raise InputError(f"{where}: all rows have one label, expected two classes or more")
    if len(values) > max(_FEW_CLASSES, len(column) / 2):
        raise InputError(
            f"{where}: column {task.label} has {len(values):,} different values in {len(column):,} rows, expected "
            "classes; name the column that has them (label), or give kind: regression"
        )


def _numbered(task: Task, split: str, table: pa.Table, classes: list[Any]) -> pa.Table:
    """The table with the place of each label among the ``classes``."""
    numbers = {value: number for number, value in enumerate(classes)}
    labels = table[task.label].to_pylist()
    if unknown := [(index, label) for index, label in enumerate(labels) if label not in numbers]:
        index, label = unknown[0]
        known = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
        unlike = ""
        if isinstance(label, str) != isinstance(classes[0], str):
            unlike = "; one is text and the other a number, write both alike"
        raise InputError(
            f"{_where(task, split)}: row {index} has label {label!r}, expected one of those of {task.train}: {known}"
            f"{unlike}"
        )
    place = table.column_names.index(task.label)
    return table.set_column(place, task.label, pa.array([numbers[label] for label in labels]))


def _answers(where: str, index: int, given: Any, context: str) -> Answers:
    """The answers of a row in SQuAD's layout: {text: [...], answer_start: [...]}.

    That there is none is written in several ways: null, no text, an empty text at any place.
    """
    if given is None:
        return Answers((), ())
    try:
        texts, starts = _listed(given["text"]), _listed(given["answer_start"])
        if len(texts) != len(starts):
            raise InputError(f"{where}: row {index} has {len(texts)} texts and {len(starts)} answer_start")
        pairs = [(str(text), int(start)) for text, start in zip(texts, starts, strict=True) if text]
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{where}: row {index} has answers {given!r:.80}, expected {{text: […], answer_start: […]}}"
        ) from error
    for text, start in pairs:
        if start < 0 or context[start : start + len(text)] != text:
            raise InputError(f"{where}: row {index}: {text!r:.80} does not stand at {start} of the context")
    return Answers(tuple(text for text, _ in pairs), tuple(start for _, start in pairs))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


_PAIR = ("sentence1", "sentence2")
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


def chosen_tasks(names: Sequence[str], source: str, own: Mapping[str, OwnTask]) -> list[Task]:
    """The tasks of these names, GLUE's first, in the paper's order; all of them if there is none.

    Args:
        source: of GLUE's rows: a folder laid out like the Hub's data set, or its id.
        own: tasks as a protocol describes them, by name.

    Raises:
        InputError: a name is not one of a task.
    """
    known = {name: replace(task, origin=Origin(source, name, "--glue")) for name, task in TASKS.items()}
    known |= {name: own_task(name, spec) for name, spec in own.items()}
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"--tasks: given {', '.join(unknown)}, expected some of {', '.join(known)}"
            f"{'' if own else '; a protocol file can describe others (tasks)'}"
        )
    return [task for name, task in known.items() if name in names or not names]
