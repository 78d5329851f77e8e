"""Scores and speeds -> a report with the paper's tables, which also go into the students' model cards."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distil_ray.errors import InputError
from distil_ray.evaluation.deployment import TOLERANCE, Deployed
from distil_ray.evaluation.intrinsic import Intrinsic
from distil_ray.evaluation.kinds import Summary, TaskFacts, macro, scored_tasks, summarize
from distil_ray.evaluation.results import SECOND_STEP, write_file
from distil_ray.evaluation.speed import Speed, Timing
from distil_ray.reporting.plots import scatter_chart
from distil_ray.reporting.report import NOTHING, Block, Charts, Report, ReportSection, Table, number

_NOT_LEARNED = " †"  # marks a task on which the teacher does not beat one answer for all rows
CONSTANT = "one answer for all rows"


@dataclass(frozen=True)
class ModelResult:
    """The results of a model.

    Attributes:
        tasks: scores by task, in percent.
        learning_rates: by task, where each model took the best of several.
        num_bytes, dtype: of its weights on disk, and the number format of most of them; "" if unknown.
        revision: commit of a model on the Hub; None of a folder.
        untuned: the tasks that nothing was fine-tuned for.
    """

    name: str
    path: str
    num_parameters: int
    num_bytes: int
    tasks: dict[str, Summary] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)
    text: Intrinsic | None = None
    on_device: list[Deployed] = field(default_factory=list)
    dtype: str = ""
    revision: str | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    untuned: Collection[str] = ()

    @property
    def score(self) -> float | None:
        """The mean of the medians of the tasks that were fine-tuned for; of all, if none was."""
        return self.score_of(scored_tasks(self.tasks, self.untuned))

    def score_of(self, tasks: Collection[str]) -> float | None:
        """The mean of these tasks' medians; None without a task."""
        return macro(self.tasks[task].median for task in tasks) if tasks else None

    def scores_by_seed(self, tasks: Collection[str]) -> list[float]:
        """The mean of these tasks' scores with each seed."""
        return [macro(scores) for scores in zip(*(self.tasks[task].values for task in tasks), strict=True)]


@dataclass(frozen=True)
class Scoreboard:
    """A comparison; the first of ``results`` is the teacher's, ``facts`` are of each task."""

    results: Sequence[ModelResult]
    protocol: Mapping[str, Any]
    footer: str
    device_task: str | None = None
    facts: Mapping[str, TaskFacts] = field(default_factory=dict)

    @property
    def teacher(self) -> ModelResult:
        """What the others are compared with."""
        return self.results[0]

    @property
    def scored(self) -> list[str]:
        """The tasks that make up the score."""
        return scored_tasks(self.teacher.tasks, self.teacher.untuned)

    @property
    def is_tuned(self) -> bool:
        """Whether models were fine-tuned for any of the tasks, so that there are seeds and training rows."""
        return not self.facts or any(one.is_tuned for one in self.facts.values())

    def of(self, names: Collection[str]) -> "Scoreboard":
        return replace(self, results=[result for result in self.results if result.name in names])


def findings(board: Scoreboard) -> list[str]:
    """One sentence per student on size, speed and score; and one on tasks that show no difference."""
    sentences = []
    for student in board.results[1:]:
        parts = [f"{1 - student.num_parameters / board.teacher.num_parameters:.0%} fewer parameters"]
        if student.speeds:
            ratio = board.teacher.speeds[0].latency_ms.median / student.speeds[0].latency_ms.median
            parts.append(f"{ratio:.2f} times as fast (one row, one thread)")
        if (retained := retained_percent(board, student)) is not None:
            without = _retained_of(board, student, learned(board))
            but = "" if without is None else f" ({without:.1f}% without {', '.join(not_learned(board))})"
            parts.append(f"{retained:.1f}% of the teacher's score{but}")
        sentences.append(f"{student.name}: {', '.join(parts)}.")
    if tasks := not_learned(board):
        sentences.append(
            f"On {', '.join(tasks)} the teacher does not beat one answer for all rows, the most common class or the "
            f"mean: {'this task shows' if len(tasks) == 1 else 'these tasks show'} no difference between models."
        )
    return sentences


def not_learned(board: Scoreboard) -> list[str]:
    """The tasks on which the teacher scores no more than one answer for all rows."""
    scores = board.teacher.tasks
    return [name for name, facts in board.facts.items() if scores[name].median <= facts.constant_score]


def learned(board: Scoreboard) -> list[str]:
    """The tasks of the score without those that are not learned; none if that leaves out nothing, or everything."""
    scored, weak = board.scored, not_learned(board)
    found = [task for task in scored if task not in weak]
    return found if len(found) < len(scored) else []


def retained_percent(board: Scoreboard, student: ModelResult) -> float | None:
    """The student's macro score in percent of the teacher's; None without one, or if the teacher's is not above 0."""
    return _retained_of(board, student, board.scored)


def retained_by_seed(board: Scoreboard, student: ModelResult, tasks: Collection[str]) -> list[float]:
    """The share of the teacher's mean over ``tasks`` with the same seed, in percent; empty where there is none."""
    own, of_teacher = (one.scores_by_seed(tasks) for one in (student, board.teacher))
    if min(of_teacher, default=0) <= 0:
        return []
    return [100 * score / of for score, of in zip(own, of_teacher, strict=True)]


def _retained_of(board: Scoreboard, model: ModelResult, tasks: Collection[str]) -> float | None:
    score, of_teacher = model.score_of(tasks), board.teacher.score_of(tasks)
    if score is None or of_teacher is None or of_teacher <= 0:
        return None
    return 100 * score / of_teacher


def score_table(board: Scoreboard) -> list[list[str]]:
    """The paper's table 1: macro score, what is retained, and each task's median with lowest and highest.

    Its last row is what one answer for all rows scores.
    """
    tasks, weak, strong = list(board.teacher.tasks), not_learned(board), learned(board)
    without = [f"{name} without{_NOT_LEARNED}" for name in ("score", "retained") if strong]
    marked = [f"{task}{_NOT_LEARNED}" if task in weak else task for task in tasks]
    table = [["model", "score", "retained", *without, *marked]]
    constant = _constant(board) if board.facts and board.is_tuned else []
    for result in [*board.results, *constant]:
        row = [result.name]
        for chosen in (board.scored, strong) if strong else (board.scored,):
            row += [number(result.score_of(chosen), ".1f"), _retained(board, result, chosen)]
        table.append([*row, *(_summary(result.tasks.get(task)) for task in tasks)])
    return table


def _constant(board: Scoreboard) -> list[ModelResult]:
    """One answer for all rows, as if it were a model."""
    tasks = {task: summarize([board.facts[task].constant_score]) for task in board.teacher.tasks}
    return [ModelResult(CONSTANT, "", 0, 0, tasks)]


def _retained(board: Scoreboard, result: ModelResult, tasks: Collection[str]) -> str:
    """What is retained on these tasks, with lowest and highest over the seeds where there are several."""
    retained = _percent(_retained_of(board, result, tasks))
    if result is board.teacher or result.name == CONSTANT:
        return retained
    shares = retained_by_seed(board, result, tasks)
    return f"{retained} ({min(shares):.1f}–{max(shares):.1f})" if len(shares) > 1 else retained


def facts_table(facts: Mapping[str, TaskFacts]) -> list[list[str]]:
    """What the scores are based on, and how models were fine-tuned."""
    table = [
        ["task", "score", "training rows", "validation rows", "epochs", "learning rate", "batch", "pieces per row"]
    ]
    for name, one in facts.items():
        some = f" of {one.num_rows_there:,}" if one.num_train_rows < one.num_rows_there else ""
        metrics = " and ".join(_METRIC_NAMES.get(metric, metric) for metric in one.metrics)
        rates = ", ".join(f"{rate:g}" for rate in one.learning_rates)
        tuning = [str(one.num_epochs), rates, str(one.batch_size), f"up to {one.max_seq_length}"]
        row = [name, metrics, f"{one.num_train_rows:,}{some}", f"{one.num_validation_rows:,}", *tuning]
        table.append(row if one.num_epochs else [name, metrics, NOTHING, row[3], *[NOTHING] * len(tuning)])
    return table


def rate_table(board: Scoreboard) -> list[list[str]]:
    """The learning rate that each model took, where there were several to choose from."""
    tasks = list(board.teacher.learning_rates)
    rows = [[one.name, *(f"{one.learning_rates[task]:g}" for task in tasks)] for one in board.results]
    return [["learning rate", *tasks], *rows]


_RATES_NOTE = (
    "Of several learning rates, each model took the one that did best on a tenth of the training rows, which was set "
    "aside for these trials. The validation rows had no part in it."
)

_METRIC_NAMES = {
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "exact_match": "exact match",
}


def cost_table(board: Scoreboard) -> list[list[str]]:
    """The paper's table 3: size and speed."""
    header = ["model", "parameters", "MB on disk"]
    for speed in board.teacher.speeds:
        header += [f"ms per row ({speed.where})", f"rows/s in batches of 32 ({speed.where})"]
    table = [header]
    for result in _distinct(board):
        dtype = f" ({result.dtype})" if result.dtype else ""
        row = [result.name, f"{result.num_parameters / 1e6:.1f} M", f"{result.num_bytes / 1e6:.1f}{dtype}"]
        for speed in result.speeds:
            for timing in (speed.latency_ms, speed.rows_per_second):
                row.append(_timing(timing))
        table.append(row)
    return table


def _distinct(board: Scoreboard) -> list[ModelResult]:
    """Each model once: it has several rows if it was fine-tuned in several ways."""
    models: dict[tuple[str, str | None], ModelResult] = {}
    for result in board.results:
        models.setdefault((result.path, result.revision), result)
    return list(models.values())


def report_on(board: Scoreboard) -> Report:
    """The findings, all tables and, for other programs, every figure."""
    models = [
        vars(result)
        | {
            "score": result.score,
            "retained_percent": retained_percent(board, result),
            "retained_percent_by_seed": retained_by_seed(board, result, board.scored),
            "score_without_not_learned": result.score_of(learned(board)),
        }
        for result in board.results
    ]
    return Report(
        title="Evaluation",
        findings=findings(board),
        sections=list(_sections(board)),
        footer=board.footer,
        data={"models": models, "tasks": board.facts, "protocol": board.protocol},
    )


def _sections(board: Scoreboard) -> Iterator[ReportSection]:
    if board.teacher.tasks:
        charts: list[Block] = [Charts(_charts(board))] if board.teacher.speeds else []
        yield ReportSection("Scores", [Table(score_table(board)), _note(board), *charts])
        if board.facts:
            rates: list[Block] = [Table(rate_table(board)), _RATES_NOTE] if board.teacher.learning_rates else []
            yield ReportSection("Tasks", [Table(facts_table(board.facts)), facts_note(board.facts), *rates])
    if board.teacher.text is not None:
        yield ReportSection("Held-out text", [Table(text_table(board)), _text_note(board.teacher.text)])
    yield ReportSection("Cost", [Table(cost_table(board)), _cost_note(board)])
    if board.device_task is not None:
        note = f"Fine-tuned for {board.device_task} with seed 1; ONNX logits are within {TOLERANCE:g} of PyTorch's."
        yield ReportSection("On a device", [Table(device_table(board)), note])


def _charts(board: Scoreboard) -> list[tuple[str, str]]:
    scored = [result for result in board.results if result.score is not None]
    latency = {one.name: [(one.speeds[0].latency_ms.median, one.score or 0.0)] for one in scored}
    size = {one.name: [(one.num_parameters / 1e6, one.score or 0.0)] for one in scored}
    return [
        (title, scatter_chart(points, x_label=label, y_label="score", is_logarithmic=False))
        for title, points, label in (
            ("Score against latency", latency, "ms per row, one thread"),
            ("Score against size", size, "million parameters"),
        )
    ]


def text_table(board: Scoreboard) -> list[list[str]]:
    """Masked language modeling on text that no model has seen."""
    table = [["model", "MLM loss", "accuracy", "pseudo-perplexity", "KL to teacher", "agrees with teacher"]]
    for result in board.results:
        found = result.text
        if found is None:
            continue
        table.append(
            [
                result.name,
                f"{found.mlm_loss:.3f}",
                f"{found.mlm_accuracy:.1%}",
                number(found.pseudo_perplexity, ".1f"),
                number(found.kl_to_teacher, ".3f"),
                number(found.teacher_agreement, ".1%"),
            ]
        )
    return table


def device_table(board: Scoreboard) -> list[list[str]]:
    """Files to run on a device, and the model that they were made from."""
    table = [
        ["model", "format", "MB", "ms per row (1 thread)", "score", "agrees with PyTorch", "largest change of a logit"]
    ]
    for result in board.results:
        for one in result.on_device:
            table.append(
                [
                    result.name,
                    one.format,
                    f"{one.num_bytes / 1e6:.1f}",
                    _timing(one.latency_ms),
                    f"{one.figures.score:.1f}",
                    f"{one.figures.agreement:.1%}",
                    f"{one.figures.max_difference:.2g}",
                ]
            )
    return table


def _text_note(found: Intrinsic) -> str:
    return (
        f"{found.num_masked:,} masked pieces of {found.num_rows:,} rows, the same for all models; losses in nats per "
        "piece. Pseudo-perplexity masks each piece alone (arXiv 1910.14659), in fewer rows."
    )


def _note(board: Scoreboard) -> str:
    count = max(summary.num_seeds for summary in board.teacher.tasks.values())
    seeds = f", median of {count} seeds (lowest–highest)" if count > 1 else ", one seed" * board.is_tuned
    with_same = ", in brackets with the same seed" * (count > 1)
    parts = [f"Scores in percent on the validation rows{seeds}; retained: share of the teacher's score{with_same}."]
    if len(board.scored) < len(board.teacher.tasks):
        parts.append(f"The score is the mean of {', '.join(board.scored)}, which models were fine-tuned for.")
    if board.facts and board.is_tuned:
        parts.append(
            f"{CONSTANT.capitalize()}: the most common class or the mean of the training rows, no answer, or no entity."
        )
    if not_learned(board):
        parts.append(f"{_NOT_LEARNED.strip()} The teacher does not beat that.")
    if any(result.name.endswith(SECOND_STEP) for result in board.results):
        step = board.protocol.get("second_step", {})
        parts.append(
            f"{SECOND_STEP.strip()}: also fine-tuned with the soft targets of the fine-tuned teacher "
            f"(temperature {step.get('temperature', 0):g}, weight {step.get('alpha', 0):g})."
        )
    return " ".join(parts)


def facts_note(facts: Mapping[str, TaskFacts]) -> str:
    """How the scores of these tasks come about."""
    parts = ["The score of a task is the mean of its metrics."]
    if any(one.is_tuned for one in facts.values()):
        same = "the same for every model"
        if any(len(one.learning_rates) > 1 for one in facts.values()):
            same += " but for the learning rate"
        parts.append(f"Fine-tuning: AdamW, linear warm-up and decay of the learning rate; {same}.")
    if not all(one.is_tuned for one in facts.values()):
        parts.append("Without training rows: correlations of the cosine of two texts' vectors.")
    return " ".join(parts)


def _cost_note(board: Scoreboard) -> str:
    note = "Times: median and quartiles of forward passes in fp32 over the same texts; the models take turns."
    if len({result.dtype for result in board.results}) > 1:
        note += " The files hold weights in different formats: compare parameters, as bf16 and fp16 halve fp32's bytes."
    return note


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}%"


def _timing(timing: Timing) -> str:
    median, low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in timing)
    return f"{median} ({low}–{high})"


def _summary(summary: Summary | None) -> str:
    if summary is None:
        return NOTHING
    spread = f" ({summary.low:.1f}–{summary.high:.1f})" if summary.num_seeds > 1 else ""
    return f"{summary.median:.1f}{spread}"


_BEGIN, _END = "<!-- evaluation by distil_ray: begin -->", "<!-- evaluation by distil_ray: end -->"
CARD = "README.md"


def check_card(name: str, path: str) -> None:
    """Raise InputError unless the model at ``path`` is a local folder with a model card."""
    if not (Path(path) / CARD).is_file():
        raise InputError(
            f"--card: {name}, {path}, is not a local folder with a {CARD}; expected one that distil_ray exported"
        )


def add_to_card(path: str, board: Scoreboard) -> None:
    """Append the tables of a student and its teacher to its card, replacing those of an earlier comparison.

    They do not go into the card's metadata, as the scores are those of models fine-tuned from this one.
    """
    file = Path(path) / CARD
    before, _, rest = file.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    own = board.of([board.teacher.name, *(result.name for result in board.results if result.path == path)])
    tables = f"{_BEGIN}\n{report_on(own).to_markdown(level=2)}{_END}"
    write_file(file, (before.rstrip("\n") + "\n\n" + tables + (after or "\n")).encode())
