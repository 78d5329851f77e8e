"""An ablation: variants of a run are trained one after the other, scored and compared."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from distil_ray.errors import InputError, RunError
from distil_ray.evaluation.finetuning import fine_tune
from distil_ray.evaluation.kinds import Summary, TaskFacts, macro, scored_tasks, summarize
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.results import FinetuneJob, Results
from distil_ray.evaluation.scoreboard import CONSTANT, facts_note, facts_table
from distil_ray.models.origin import resolve
from distil_ray.reporting.plots import line_chart
from distil_ray.reporting.report import NOTHING, Charts, Report, ReportSection, Table, made_by
from distil_ray.runs.console import Console
from distil_ray.studies.settings import AblationPlan
from distil_ray.training.history import History, read_history
from distil_ray.training.launcher import launch

FIGURES = (
    "eval/mlm_loss",
    "eval/mlm_accuracy",
    "eval/kl_to_teacher",
    "eval/teacher_agreement",
    "eval/relation_loss",
    "eval/hidden_loss",
)


@dataclass(frozen=True)
class Outcome:
    """The results of one run.

    Attributes:
        figures: the last held-out ones, by their metric's name.
        tasks: scores by task, in percent.
    """

    variant: str
    seed: int
    figures: dict[str, float]
    history: History
    tasks: dict[str, float] = field(default_factory=dict)


def run_all(plan: AblationPlan, console: Console) -> list[Outcome]:
    """Run or resume each run, one after the other.

    Raises:
        InputError: bad configuration or input.
        RunError: runs failed; says which and why. The others are done.
        Stopped: a signal ended it.
    """
    failures = []
    for number, ((variant, seed), config) in enumerate(plan.runs.items(), start=1):
        console.line(f"\n{variant}, seed {seed}: run {number} of {len(plan.runs)}")
        try:
            launch(config, console, group=plan.config.run.name)
        except RunError as error:
            failures.append(f"{variant}, seed {seed}: {error}")
    if failures:
        raise RunError(f"{len(failures)} of {len(plan.runs)} runs failed:\n  " + "\n  ".join(failures))
    return [_outcome(plan, variant, seed) for variant, seed in plan.runs]


def _outcome(plan: AblationPlan, variant: str, seed: int) -> Outcome:
    history = read_history(plan.runs[variant, seed].run.folder)
    figures = {name: value for name in FIGURES if (value := history.last(name)) is not None}
    return Outcome(variant, seed, figures, history)


def check_tasks(plan: AblationPlan) -> None:
    """Raise InputError if the students would be stored where fine-tuning cannot read them."""
    if "://" in plan.folder:
        raise InputError(
            f"--tasks: given run.storage_path {plan.config.run.storage_path}, expected a folder that "
            "all nodes share, as students are fine-tuned from there; without --tasks, a URL works"
        )


def check_heldout(plan: AblationPlan) -> None:
    """Raise InputError if there is neither held-out text nor a task to compare the variants on."""
    data = plan.config.data
    if data.eval_sources is None and data.eval_fraction == 0:
        raise InputError(
            "ablation: given neither held-out text nor --tasks, so that nothing could be compared; expected "
            "data.eval_fraction above 0, data.eval_sources, or --tasks"
        )


def with_scores(outcomes: Sequence[Outcome], results: Results, console: Console) -> list[Outcome]:
    """Fine-tune the student of each run on each task, with the run's own seed.

    Raises:
        InputError: there are scores of another protocol, other rows or other students.
        RunError: fine-tunings failed; what succeeded is kept.
    """
    students = [Model(one.variant, resolve(one.history.export_path, None)) for one in outcomes]
    jobs = {
        (number, task): FinetuneJob(student, task, outcomes[number].seed)
        for number, student in enumerate(students)
        for task in results.tasks
    }
    fine_tune(list(jobs.values()), results, console)
    return [
        replace(one, tasks={task: results.score(jobs[number, task]) for task in results.tasks})
        for number, one in enumerate(outcomes)
    ]


_NAMES = {
    "score": ("score", 1, 1.0),
    "eval/mlm_loss": ("held-out MLM loss", 3, 1.0),
    "eval/mlm_accuracy": ("accuracy", 1, 100.0),
    "eval/kl_to_teacher": ("KL to teacher", 3, 1.0),
    "eval/teacher_agreement": ("agreement", 1, 100.0),
    "eval/relation_loss": ("relation loss", 3, 1.0),
    "eval/hidden_loss": ("hidden-state loss", 3, 1.0),
}  # by figure: its name, its decimals, and the factor it is shown with
_TASK = "tasks/"


class Comparison:
    """Outcomes of variants, the first of which the others are compared with.

    Args:
        facts: of the tasks that the outcomes have scores on.
    """

    def __init__(self, outcomes: Sequence[Outcome], facts: Mapping[str, TaskFacts] | None = None) -> None:
        self.outcomes, self.facts = outcomes, facts or {}
        self.variants = list(dict.fromkeys(one.variant for one in outcomes))
        self.reference = self.variants[0]
        self.figures = [name for name in _NAMES if self._value(name, outcomes[0]) is not None]

    def values(self, variant: str, figure: str) -> dict[int, float]:
        found = {one.seed: self._value(figure, one) for one in self.outcomes if one.variant == variant}
        return {seed: number for seed, number in found.items() if number is not None}

    def _value(self, figure: str, outcome: Outcome) -> float | None:
        """Of an outcome: its macro score, its score on a task, "tasks/<name>", or a held-out figure."""
        if figure.startswith(_TASK):
            return outcome.tasks.get(figure.removeprefix(_TASK))
        if figure == "score":
            tasks = scored_tasks(outcome.tasks, [name for name, facts in self.facts.items() if not facts.is_tuned])
            return macro(outcome.tasks[task] for task in tasks) if tasks else None
        return outcome.figures.get(figure)

    def change(self, variant: str, figure: str) -> Summary | None:
        """The difference between a figure and the reference's with the same seed: median and range over seeds."""
        own, reference = self.values(variant, figure), self.values(self.reference, figure)
        differences = [own[seed] - reference[seed] for seed in own if seed in reference]
        return summarize(differences) if differences else None

    @property
    def main_figure(self) -> str:
        """What variants are ordered by: the score, otherwise the held-out loss."""
        return self.figures[0]


def table(comparison: Comparison) -> list[list[str]]:
    """A row per variant: the median of each figure over seeds, and its change."""
    header = ["variant"]
    for figure in comparison.figures:
        header += [_NAMES[figure][0], "change"]
    rows = [header]
    for variant in comparison.variants:
        row = [variant]
        for figure in comparison.figures:
            _, decimals, factor = _NAMES[figure]
            values = comparison.values(variant, figure).values()
            row.append(f"{factor * statistics.median(values):.{decimals}f}" if values else NOTHING)
            change = comparison.change(variant, figure) if variant != comparison.reference else None
            row.append(_shown(change, decimals, factor) if change else NOTHING)
        rows.append(row)
    return rows


def task_table(comparison: Comparison) -> list[list[str]]:
    """The reference's median score on each task, and each variant's change; empty without tasks.

    The last row is what one answer for all rows scores.
    """
    tasks = list(comparison.outcomes[0].tasks)
    if not tasks:
        return []
    medians = [statistics.median(comparison.values(comparison.reference, _TASK + task).values()) for task in tasks]
    rows = [["variant", *tasks], [comparison.reference, *(f"{median:.1f}" for median in medians)]]
    for variant in comparison.variants[1:]:
        changes = [comparison.change(variant, _TASK + task) for task in tasks]
        rows.append([variant, *(_shown(change, 1, 1.0) if change else NOTHING for change in changes)])
    if comparison.facts:
        rows.append([CONSTANT, *(f"{comparison.facts[task].constant_score:.1f}" for task in tasks)])
    return rows


def _shown(change: Summary, decimals: int, factor: float) -> str:
    median, low, high = (f"{factor * value:+.{decimals}f}" for value in change[:3])
    return f"{median} ({low} to {high})" if change.num_seeds > 1 else median


def findings(comparison: Comparison) -> list[str]:
    """One sentence per variant, the largest loss first, and whether the seeds agree."""
    figure = comparison.main_figure
    name, decimals, factor = _NAMES[figure]
    worse = -1 if figure == "score" else 1
    changes = {variant: comparison.change(variant, figure) for variant in comparison.variants[1:]}
    found = [(variant, change) for variant, change in changes.items() if change]
    sentences = []
    for variant, change in sorted(found, key=lambda pair: -worse * pair[1].median):
        least, most = sorted((worse * change.low, worse * change.high))
        verdict = "seeds disagree"
        if least > 0:
            verdict = "worse with every seed"
        elif most < 0:
            verdict = "better with every seed"
        sentences.append(f"{variant}: {name} {_shown(change, decimals, factor)}, {verdict}.")
    return sentences


def same_batches(comparison: Comparison) -> str:
    """Whether the variants that were trained saw the same batches, seed by seed."""
    trained = [one for one in comparison.outcomes if not one.history.is_start] or comparison.outcomes
    for seed in {one.seed for one in trained}:
        digests = {tuple(one.history.digests) for one in trained if one.seed == seed}
        if len(digests) > 1:
            return f"The runs with seed {seed} did not train on the same batches: their digests differ."
    num_steps, num_seeds = len(trained[0].history.digests), len({one.seed for one in trained})
    return (
        f"All variants of a seed trained on the same batches in the same order: {num_steps:,} steps of equal digests, "
        f"{num_seeds} seeds. Changes are against {comparison.reference} with the same seed: median (lowest to highest)."
    )


def report_on(comparison: Comparison) -> Report:
    """Findings, tables, curves and, for other programs, every figure."""
    first_seed = comparison.outcomes[0].seed
    curves = {one.variant: one.history.curve("eval/mlm_loss") for one in comparison.outcomes if one.seed == first_seed}
    chart = line_chart(curves, x_label="tokens trained on", y_label="held-out MLM loss", levels={})
    tasks, facts = task_table(comparison), comparison.facts
    return Report(
        title="Ablation",
        findings=findings(comparison),
        sections=[
            ReportSection("Variants", [Table(table(comparison)), same_batches(comparison)]),
            *([ReportSection("Tasks", [Table(tasks)])] if tasks else []),
            *(
                [ReportSection("What the scores are of", [Table(facts_table(facts)), facts_note(facts)])]
                if facts
                else []
            ),
            ReportSection("Curves", [Charts([(f"Held-out MLM loss, seed {first_seed}", chart)])]),
        ],
        footer=made_by(),
        data={
            "reference": comparison.reference,
            "changes": {variant: _changes(comparison, variant) for variant in comparison.variants[1:]},
            "runs": [
                {"variant": one.variant, "seed": one.seed, "student": one.history.export_path}
                | one.figures
                | {"tasks": one.tasks}
                for one in comparison.outcomes
            ],
            "tasks": facts,
        },
    )


def _changes(comparison: Comparison, variant: str) -> dict[str, Summary]:
    changes = {figure: comparison.change(variant, figure) for figure in comparison.figures}
    return {figure: change for figure, change in changes.items() if change}
