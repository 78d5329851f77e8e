"""What a task asks for, and its rows: read from files, a folder laid out like a Hub data set, or the Hub."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import METRICS_OF, Metric, OwnTask, Protocol
from distil_ray.evaluation.tables import Origin, read_table

Kind = Literal["classification", "regression", "span"]

_TEXT_OF = {"classification": ("text",), "regression": ("text",), "span": ("question", "context")}
_LABEL_OF = {"classification": "label", "regression": "label", "span": "answers"}
_METRICS_OF = METRICS_OF | {"classification": ("accuracy",)}


@dataclass(frozen=True)
class Task:
    """A task of one text or a pair of them.

    Attributes:
        kind: of what is asked for: a class, a number, or a span of the second text (none, in SQuAD 2.0's way).
        columns: of the text; one or two.
        label: column of what is asked for.
        num_labels: classes 0 … num_labels - 1; None = as many as the training rows have.
        metrics: official ones, as `scores` names them; the task's score is their mean.
        validation: names of the splits to score on; the score is the mean over them.
        limits: of a number that is asked for.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    metrics: tuple[Metric, ...]
    num_labels: int | None = None
    label: str = "label"
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)
    limits: tuple[float, float] = (-np.inf, np.inf)
    origin: Origin = field(default_factory=Origin)

    @property
    def num_outputs(self) -> int:
        """Outputs of a head for the task: one a class; one for a number; a start and an end of a span."""
        return {"regression": 1, "span": 2}.get(self.kind, self.num_labels or 0)


class Answers(NamedTuple):
    """The right answers to a question: their texts and where in the context they begin; none = it has no answer."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of a split: ``texts``, a tuple of one or two strings a row, and ``labels`` [rows]: int64 classes, float64
    numbers, or a list of `Answers`.
    """

    texts: list[tuple[str, ...]]
    labels: npt.NDArray[Any] | list[Answers]

    def sample(self, count: int | None) -> "Rows":
        """So many rows at equal distances (a data set may be sorted by label), or all if there are not more."""
        if count is None or count >= len(self.texts):
            return self
        chosen = np.arange(count) * len(self.texts) // count
        labels = [self.labels[i] for i in chosen]
        return Rows([self.texts[i] for i in chosen], labels if isinstance(self.labels, list) else np.array(labels))


Splits = dict[str, Rows]  # "train" and the validation splits


def first_validation(splits: Splits) -> Rows:
    """The rows of the first validation split."""
    return next(rows for split, rows in splits.items() if split != "train")


def own_task(name: str, spec: OwnTask) -> Task:
    """The task that a protocol describes."""
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
        The tasks, with the number of their classes, and their rows by name.

    Raises:
        InputError: rows are not there, or a column or a label is not what a task expects.
    """
    complete, data = [], {}
    for task in tasks:
        tables = {split: read_table(task.origin, split) for split in (task.train, *task.validation)}
        if task.kind == "classification" and task.num_labels is None:
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
    texts = list(zip(*(table[name].to_pylist() for name in task.columns), strict=True))
    if empty := [index for index, row in enumerate(texts) if not all(isinstance(text, str) for text in row)]:
        raise InputError(f"{where}: row {empty[0]} has no text in {' or '.join(task.columns)}")
    if not texts:
        raise InputError(f"{where}: has no rows")
    column = table[task.label]
    if task.kind == "span":
        return Rows(
            texts, [_answers(where, index, row, texts[index][1]) for index, row in enumerate(column.to_pylist())]
        )
    return Rows(texts, _labels(column, task, where))


def _labels(column: pa.ChunkedArray, task: Task, where: str) -> npt.NDArray[Any]:
    is_number = task.kind == "regression"
    low, high = task.limits if is_number else (0, (task.num_labels or 0) - 1)
    if is_number:
        expected = "a number" if np.isinf(high) else f"a number from {low:g} to {high:g}"
    else:
        expected = f"{low} to {high}"
    try:
        labels: npt.NDArray[Any] = column.to_numpy().astype(np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: labels are of type {column.type}, expected {expected}") from error
    is_wrong = ~((labels >= low) & (labels <= high))
    if not is_number:
        is_wrong |= labels != np.round(labels)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        hint = "; test splits have no labels" if labels[index] == -1 else ""
        raise InputError(f"{where}: row {index} has label {labels[index]:g}, expected {expected}{hint}")
    return labels if is_number else labels.astype(np.int64)


def _with_classes(task: Task, tables: dict[str, pa.Table]) -> tuple[Task, dict[str, pa.Table]]:
    """Count the classes of the training rows; names of classes become numbers, in the order of the alphabet."""
    train = tables[task.train]
    if task.label not in train.column_names:
        return task, tables  # which is complained about like any other missing column
    values = train[task.label].unique().to_pylist()
    if all(isinstance(value, str) for value in values):
        numbers = {name: number for number, name in enumerate(sorted(values))}
        tables = {split: _numbered(task, split, table, numbers) for split, table in tables.items()}
        num_labels = len(numbers)
    else:
        num_labels = max(2, 1 + max((int(value) for value in values if isinstance(value, int | float)), default=0))
    if len(values) < 2:
        raise InputError(f"{_where(task, task.train)}: all rows have one label, expected two classes or more")
    return replace(task, num_labels=num_labels), tables


def _numbered(task: Task, split: str, table: pa.Table, numbers: dict[str, int]) -> pa.Table:
    if task.label not in table.column_names:
        return table
    names = table[task.label].to_pylist()
    if unknown := [(index, name) for index, name in enumerate(names) if name not in numbers]:
        index, name = unknown[0]
        known = ", ".join(list(numbers)[:5]) + (", …" if len(numbers) > 5 else "")
        raise InputError(
            f"{_where(task, split)}: row {index} has label {name!r}, expected one of those of {task.train}: {known}"
        )
    place = table.column_names.index(task.label)
    return table.set_column(place, task.label, pa.array([numbers[name] for name in names]))


def _answers(where: str, index: int, given: Any, context: str) -> Answers:
    """The answers of a row in SQuAD's layout: {text: [...], answer_start: [...]}."""
    try:
        found = Answers(tuple(map(str, given["text"])), tuple(map(int, given["answer_start"])))
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{where}: row {index} has answers {given!r:.80}, expected {{text: […], answer_start: […]}}"
        ) from error
    if len(found.texts) != len(found.starts):
        raise InputError(f"{where}: row {index} has {len(found.texts)} texts and {len(found.starts)} answer_start")
    for text, start in zip(*found, strict=True):
        if context[start : start + len(text)] != text:
            raise InputError(f"{where}: row {index}: {text!r:.80} does not stand at {start} of the context")
    return found
