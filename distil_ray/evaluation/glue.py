"""The GLUE tasks (arXiv 1804.07461): what they ask and how they are scored."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import Metric, OwnTask
from distil_ray.evaluation.tables import Origin
from distil_ray.evaluation.tasks import Task, own_task

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
