"""The GLUE tasks (arXiv 1804.07461): what they ask, how they are scored, and where their rows come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distil_ray.errors import InputError

HUB_ID = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """A task of one sentence or a pair of them.

    Attributes:
        columns: of the text; one or two.
        num_labels: classes 0 … num_labels - 1; 1 = a number is asked for, from 0 to ``max_label``.
        metrics: official ones, as `scores.METRICS` names them; the task's score is their mean.
        validation: names of the splits to score on; the score is the mean over them.
    """

    name: str
    columns: tuple[str, ...]
    num_labels: int
    metrics: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)
    max_label: float = 5.0

    @property
    def is_regression(self) -> bool:
        """Whether a number is asked for rather than a class."""
        return self.num_labels == 1


_PAIR = ("sentence1", "sentence2")
# In the order of the paper's table 1.
TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), 2, ("matthews",)),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            3,
            ("accuracy",),
            validation=("validation_matched", "validation_mismatched"),
        ),
        Task("mrpc", _PAIR, 2, ("accuracy", "f1")),
        Task("qnli", ("question", "sentence"), 2, ("accuracy",)),
        Task("qqp", ("question1", "question2"), 2, ("accuracy", "f1")),
        Task("rte", _PAIR, 2, ("accuracy",)),
        Task("sst2", ("sentence",), 2, ("accuracy",)),
        Task("stsb", _PAIR, 1, ("pearson", "spearman")),
        Task("wnli", _PAIR, 2, ("accuracy",)),
    )
}


@dataclass(frozen=True)
class Rows:
    """Rows of a split: ``texts``, a tuple of one or two strings a row, and ``labels`` [rows], int64 or float64."""

    texts: list[tuple[str, ...]]
    labels: npt.NDArray[Any]


def chosen_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names, in the paper's order; all of them if there is none.

    Raises:
        InputError: a name is not one of a task.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise InputError(f"--tasks: given {', '.join(unknown)}, expected some of {', '.join(TASKS)}")
    return [task for name, task in TASKS.items() if name in names or not names]


def read_split(source: str, task: Task, split: str) -> Rows:
    """Read a split from a folder laid out like the Hub's data set, or from the Hub.

    Raises:
        InputError: it is not there, or a column or a label is not what the task expects.
    """
    table = _read_folder(Path(source), task, split) if Path(source).is_dir() else _read_hub(source, task, split)
    where = f"{task.name}/{split} of {source}"
    if missing := [name for name in (*task.columns, "label") if name not in table.column_names]:
        raise InputError(
            f"{where}: has no column {', '.join(missing)}, but {', '.join(table.column_names)}; expected "
            f"{', '.join((*task.columns, 'label'))}"
        )
    texts = list(zip(*(table[name].to_pylist() for name in task.columns), strict=True))
    if empty := [index for index, row in enumerate(texts) if not all(isinstance(text, str) for text in row)]:
        raise InputError(f"{where}: row {empty[0]} has no text in {' or '.join(task.columns)}")
    if not texts:
        raise InputError(f"{where}: has no rows")
    return Rows(texts, _labels(table["label"], task, where))


def _labels(column: pa.ChunkedArray, task: Task, where: str) -> npt.NDArray[Any]:
    expected = f"a number from 0 to {task.max_label:g}" if task.is_regression else f"0 to {task.num_labels - 1}"
    try:
        labels: npt.NDArray[Any] = column.to_numpy().astype(np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: labels are of type {column.type}, expected {expected}") from error
    top = task.max_label if task.is_regression else task.num_labels - 1
    is_wrong = ~((labels >= 0) & (labels <= top))
    if not task.is_regression:
        is_wrong |= labels != np.round(labels)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        hint = "; test splits have no labels" if labels[index] == -1 else ""
        raise InputError(f"{where}: row {index} has label {labels[index]:g}, expected {expected}{hint}")
    return labels if task.is_regression else labels.astype(np.int64)


def _read_folder(folder: Path, task: Task, split: str) -> pa.Table:
    files = sorted((folder / task.name).glob(f"{split}-*.parquet"))
    if not files:
        raise InputError(f"--glue: {folder} has no {task.name}/{split}-*.parquet; expected the layout of {HUB_ID}")
    try:
        return pa.concat_tables([pq.read_table(file) for file in files])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{files[0]}: cannot be read: {error}") from error


def _read_hub(source: str, task: Task, split: str) -> pa.Table:
    from datasets import load_dataset

    try:
        return load_dataset(source, task.name, split=split).data.table
    except Exception as error:  # of many types; each means that there is nothing to read
        reason = " ".join(str(error).split())
        raise InputError(
            f"--glue: {source} is no folder, and its {task.name} cannot be had from the Hub: {reason}; "
            "expected a folder laid out like it, or a network"
        ) from error
