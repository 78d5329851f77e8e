"""The runs of an ablation -> what each came to: held-out figures and, if asked for, scores on tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distil_ray.ablation.settings import Plan
from distil_ray.distillation.origin import resolve
from distil_ray.errors import InputError, RunError
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.results import Cell, Results
from distil_ray.evaluation.standings import fine_tune
from distil_ray.evaluation.tasks import Splits, Task
from distil_ray.training.console import Console
from distil_ray.training.history import History, read_history
from distil_ray.training.launcher import launch

FIGURES = ("eval/mlm_loss", "eval/mlm_accuracy", "eval/kl_to_teacher", "eval/teacher_agreement")


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        figures: the last held-out ones, by their metric's name.
        tasks: scores by task, in percent.
    """

    variant: str
    seed: int
    figures: dict[str, float]
    history: History
    tasks: dict[str, float] = field(default_factory=dict)


def run_all(plan: Plan, console: Console) -> list[Outcome]:
    """Do each run, or what is left of it, one after the other.

    Raises:
        InputError: bad configuration or input.
        RunError: runs that failed, with why; the others are done.
        Stopped: a signal has ended it.
    """
    failures = []
    for number, ((variant, seed), config) in enumerate(plan.runs.items(), start=1):
        console.line(f"\n{variant}, seed {seed}: run {number} of {len(plan.runs)}")
        try:
            launch(config, console)
        except RunError as error:
            failures.append(f"{variant}, seed {seed}: {error}")
    if failures:
        raise RunError(f"{len(failures)} of {len(plan.runs)} runs failed:\n  " + "\n  ".join(failures))
    return [_outcome(plan, variant, seed) for variant, seed in plan.runs]


def _outcome(plan: Plan, variant: str, seed: int) -> Outcome:
    config = plan.runs[variant, seed].run
    history = read_history(f"{config.storage_path}/{config.name}")
    figures = {name: value for name in FIGURES if (value := history.last(name)) is not None}
    return Outcome(variant, seed, figures, history)


def check_tasks(plan: Plan) -> None:
    """Raise InputError where the students would lie in a place that fine-tuning cannot read from."""
    if "://" in plan.folder:
        raise InputError(
            f"--tasks: given run.storage_path {plan.config.run.storage_path}, expected a folder that "
            "all nodes share, as students are fine-tuned from there; without --tasks a URL will do"
        )


def check_heldout(plan: Plan) -> None:
    """Raise InputError where neither tasks nor held-out text would tell the variants apart."""
    data = plan.config.data
    if data.eval_sources is None and data.eval_fraction == 0:
        raise InputError(
            "ablation: given neither held-out text nor --tasks, so that nothing could be compared; expected "
            "data.eval_fraction above 0, data.eval_sources, or --tasks"
        )


def with_scores(
    outcomes: Sequence[Outcome],
    tasks: Sequence[Task],
    data: Mapping[str, Splits],
    folder: Path,
    protocol: Protocol,
    console: Console,
) -> list[Outcome]:
    """Fine-tune the student of each run on each task, with the run's own seed.

    Raises:
        InputError: scores of another protocol, of other rows or other students are there.
        RunError: fine-tunings failed; what succeeded is kept.
    """
    results = Results(folder, protocol, tasks, data)
    cells = {
        (number, task.name): Cell(one.variant, resolve(one.history.export_path, None), task.name, one.seed)
        for number, one in enumerate(outcomes)
        for task in tasks
    }
    fine_tune(list(cells.values()), tasks, data, protocol, results, console)
    return [
        Outcome(
            one.variant,
            one.seed,
            one.figures,
            one.history,
            {task.name: results.score(cells[number, task.name]) for task in tasks},
        )
        for number, one in enumerate(outcomes)
    ]
