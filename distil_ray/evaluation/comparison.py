"""Runs -> a page: their students and teachers evaluated on this machine, side by side, and what the figures say."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.data.corpus import read_unit
from distil_ray.data.tally import counts_of, describe_skipped, text_warnings
from distil_ray.data.tokenization import id_space
from distil_ray.errors import InputError
from distil_ray.evaluation.guesses import Gap, Guess, fill_gaps, make_gaps
from distil_ray.evaluation.speed import NUM_TOKENS, Cost, measure
from distil_ray.models.loading import load_masked_lm, max_tokens
from distil_ray.reporting.html import Chart, made_by, render
from distil_ray.reporting.plots import line_chart
from distil_ray.reporting.text import aligned
from distil_ray.training.assembly import build_plan, build_tokenizer
from distil_ray.training.export import EXPORT_FOLDER
from distil_ray.training.history import History
from distil_ray.training.identity import WHERE_MODELS_LIE, Pin

_NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One model's figures; None stands for what is not known.

    Attributes:
        mlm_loss: held-out masked-language-modelling loss, nats a masked token.
        mlm_accuracy, agreement: fractions of the masked tokens: guessed right, and guessed like the teacher.
        guesses: one a gap.
    """

    name: str
    role: str
    mlm_loss: float | None
    mlm_accuracy: float | None
    agreement: float | None
    cost: Cost | None
    guesses: list[Guess] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What a report says.

    Attributes:
        findings, remarks: sentences: what the comparison shows, and what to bear in mind.
        differences: of the runs' settings: the key, then its value in each run.
        charts: title and SVG element.
        students: name and folder of each exported student.
    """

    title: str
    rows: list[Row]
    run_names: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    differences: list[tuple[str, list[str]]] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    students: list[tuple[str, str]] = field(default_factory=list)
    footer: str = ""


HEADER = (
    "model",
    "held-out MLM loss",
    "accuracy",
    "agrees with teacher",
    "parameters",
    "MB (fp32)",
    "CPU ms a row",
)


def cells(row: Row) -> list[str]:
    """The row's figures as text, in the order of `HEADER`."""
    cost = row.cost
    return [
        row.name,
        _number(row.mlm_loss, ".3f"),
        _number(row.mlm_accuracy, ".1%"),
        _number(row.agreement, ".1%"),
        _number(cost and cost.num_parameters, ",d"),
        _number(cost and cost.megabytes, ".1f"),
        _number(cost and cost.latency_ms, ".2f"),
    ]


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)


def to_text(page: Page) -> str:
    """The table and the findings as lines of text."""
    table = [list(HEADER), *(cells(row) for row in page.rows)]
    return "\n".join([*aligned(table), *page.findings, *page.remarks])


def to_html(page: Page) -> str:
    """The whole page, which loads nothing from elsewhere."""
    return render(
        "comparison.html.j2",
        title=page.title,
        findings=page.findings,
        footer=page.footer,
        charts=page.charts,
        page=page,
        header=HEADER,
        cells=cells,
    )


Kind = Literal["distilled", "teacher's layers, MLM only", "random weights, MLM only", "MLM only"]


@dataclass(frozen=True)
class Contender:
    """A student's figures, and by which of the ways to train it came about."""

    row: Row
    kind: Kind


def findings(teacher: Row | None, contenders: list[Contender]) -> list[str]:
    """Say what the comparison shows, also where it is not what one hopes for.

    The contenders must be comparable: students of one shape, trained on the same batches and evaluated on the same
    held-out rows.
    """
    distilled = _best(contenders, "distilled")
    same_start = _best(contenders, "teacher's layers, MLM only")
    random_start = _best(contenders, "random weights, MLM only")
    sentences = []
    if distilled and teacher:
        sentences += _against_teacher(distilled, teacher)
    if distilled and same_start:
        sentences.append(
            _compare(
                "The teacher's losses",
                "the same start without them",
                distilled.mlm_loss,
                same_start.mlm_loss,
            )
        )
    if same_start and random_start:
        sentences.append(
            _compare("The teacher's layers as a start", "random weights", same_start.mlm_loss, random_start.mlm_loss)
        )
    elif distilled and random_start:
        sentences.append(
            _compare(
                "Losses and layers of the teacher together", "random weights", distilled.mlm_loss, random_start.mlm_loss
            )
        )
    return sentences


def _best(contenders: list[Contender], kind: Kind) -> Row | None:
    rows = [contender.row for contender in contenders if contender.kind == kind and contender.row.mlm_loss is not None]
    return min(rows, key=lambda row: row.mlm_loss or 0.0, default=None)


def _compare(what: str, instead_of: str, loss: float | None, other: float | None) -> str:
    assert loss is not None
    assert other is not None
    verb = "lower" if loss < other else "do not lower"
    return (
        f"{what} {verb} the held-out MLM loss: {loss:.3f} against {other:.3f} for {instead_of} ({loss - other:+.3f})."
    )


def _against_teacher(student: Row, teacher: Row) -> list[str]:
    parts = []
    if student.cost and teacher.cost:
        fewer = 1 - student.cost.num_parameters / teacher.cost.num_parameters
        faster = teacher.cost.latency_ms / student.cost.latency_ms - 1
        parts += [f"{fewer:.0%} fewer parameters", f"an encoder that is {faster:.0%} faster on this CPU"]
    if student.mlm_accuracy is not None and teacher.mlm_accuracy:
        parts.append(f"{student.mlm_accuracy / teacher.mlm_accuracy:.0%} of its held-out accuracy")
    return [f"{student.name} against its teacher: {', '.join(parts)}."] if parts else []


NUM_GAPS = 8
_NUM_LOOKED_AT = 16

_CHARTS = (
    ("Held-out MLM loss", "eval/mlm_loss", "nats a masked token"),
    ("Held-out accuracy", "eval/mlm_accuracy", "share guessed right"),
    ("Agreement with the teacher", "eval/teacher_agreement", "share guessed like the teacher"),
    ("MLM loss in training", "train/loss_mlm", "nats a masked token"),
)

# Runs that differ in these differ in more than the ways of training that the findings are about.
_SHAPE = ("teacher", "student.layers", "student.architecture", "student.path", "student.config", "optim.")


def compare(histories: list[History]) -> Page:
    """Put the page of some runs together, which measures their models and takes seconds.

    Raises:
        InputError: a model cannot be loaded.
    """
    teachers = _teachers(histories)
    models = dict(_load_models(histories, teachers))
    costs = measure(models) if models else {}
    gaps, guesses, remarks = _guess(histories[0], models)
    teacher_rows = [_teacher_row(name, teacher, histories, costs, guesses) for name, teacher in teachers.items()]
    contenders = [_contender(history, costs, guesses) for history in histories]
    obstacle = _obstacle(histories)
    return Page(
        title=f"Report on {', '.join(history.name for history in histories)}",
        run_names=[history.name for history in histories],
        rows=[*teacher_rows, *(contender.row for contender in contenders)],
        findings=[] if obstacle else findings(teacher_rows[0] if teacher_rows else None, contenders),
        remarks=[
            *([obstacle] if obstacle else _same_batches(histories)),
            *_unfinished(histories),
            *_of_the_text(histories),
            *remarks,
        ],
        differences=_differences(histories),
        gaps=gaps,
        charts=list(_charts(histories, teacher_rows)),
        students=[(history.name, history.export_path) for history in histories if history.is_finished],
        footer=made_by(),
    )


# ------------------------------------------------------------------------------------------------- models


def _teachers(histories: list[History]) -> dict[str, Pin]:
    """The runs' teachers, each once, by the name of their row."""
    pins = [history.models["teacher"] for history in histories if "teacher" in history.models]
    teachers = list({_content(pin): pin for pin in reversed(pins)}.values())[::-1]
    return {"teacher" if len(teachers) == 1 else f"teacher {i + 1}": teacher for i, teacher in enumerate(teachers)}


def _content(teacher: Pin) -> Hashable:
    """What tells teachers apart: their weights, or of a run of an older version where they lie."""
    return teacher.digest or (teacher.path, teacher.revision)


def _load_models(histories: list[History], teachers: dict[str, Pin]) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield the teachers and the students that are finished, by the name of their row."""
    for name, teacher in teachers.items():
        yield name, load_masked_lm(*teacher.origin)
    for history in histories:
        if history.is_finished:
            with history.folder.local_copy(EXPORT_FOLDER) as folder:
                yield history.name, load_masked_lm(str(folder))


def _guess(history: History, models: dict[str, PreTrainedModel]) -> tuple[list[Gap], dict[str, list[Guess]], list[str]]:
    """Masked sentences of the run's held-out text, each model's guesses, and a remark if the text is not at hand."""
    try:
        tokenizer = build_tokenizer(history.config, history.models)
        gaps = make_gaps(
            tokenizer,
            _heldout_documents(history, tokenizer),
            num_gaps=NUM_GAPS,
            max_tokens=min([NUM_TOKENS, *map(max_tokens, models.values())]),
            seed=history.config.run.seed,
        )
    except InputError as error:
        return [], {}, [f"No sentences are shown: {error}"]
    fitting = {name: model for name, model in models.items() if model.config.vocab_size >= id_space(tokenizer)}
    return gaps, {name: fill_gaps(model, tokenizer, gaps) for name, model in fitting.items()}, []


def _heldout_documents(history: History, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    """Held-out documents from all over the text: the longest of the first few of each unit, then all."""
    plan = build_plan(history.config, tokenizer, history.commits)
    for is_first_pass in (True, False):
        for unit in plan.eval_units:
            documents = (text for text in read_unit(plan.eval_corpus, int(unit)) if text is not None)
            yield from [max(islice(documents, _NUM_LOOKED_AT), key=len, default="")] if is_first_pass else documents


# ------------------------------------------------------------------------------------------------- figures


def _teacher_row(
    name: str, teacher: Pin, histories: list[History], costs: dict[str, Cost], guesses: dict[str, list[Guess]]
) -> Row:
    history = next(
        history
        for history in histories
        if "teacher" in history.models and _content(history.models["teacher"]) == _content(teacher)
    )
    return Row(
        name=name,
        role=teacher.path,
        mlm_loss=history.last("eval/teacher_mlm_loss"),
        mlm_accuracy=history.last("eval/teacher_mlm_accuracy"),
        agreement=None,
        cost=costs.get(name),
        guesses=guesses.get(name, []),
    )


def _contender(history: History, costs: dict[str, Cost], guesses: dict[str, list[Guess]]) -> Contender:
    kind = _kind(history)
    shares = history.config.distill.shares
    weights = ", ".join(f"{name} {share:.3g}" for name, share in shares.items() if share > 0)
    row = Row(
        name=history.name,
        role=f"{kind}; loss weights: {weights}",
        mlm_loss=history.last("eval/mlm_loss"),
        mlm_accuracy=history.last("eval/mlm_accuracy"),
        agreement=history.last("eval/teacher_agreement"),
        cost=costs.get(history.name),
        guesses=guesses.get(history.name, []),
    )
    return Contender(row, kind)


def _kind(history: History) -> Kind:
    config = history.config
    if config.distill.shares["ce"] > 0 or config.distill.shares["cos"] > 0:
        return "distilled"
    if config.teacher is None or config.student.path or config.student.config:
        return "MLM only"
    return "teacher's layers, MLM only" if config.student.init == "teacher" else "random weights, MLM only"


def _obstacle(histories: list[History]) -> str | None:
    """Why the runs' figures do not tell the ways of training apart, if so."""
    first, *others = histories
    if any(history.heldout_identity != first.heldout_identity for history in others):
        return "The runs were evaluated on different held-out rows: their losses cannot be compared."
    if any(key.startswith(_SHAPE) for key, _ in _differences(histories)):
        return "The runs differ in more than their losses and their start; see the settings below."
    if any(len(history.digests) != len(first.digests) for history in others):
        return "The runs have done different numbers of steps: their losses cannot be compared."
    if any(history.digests != first.digests for history in others):
        return "The runs did not train on the same batches: their digests differ."
    return None


def _same_batches(histories: list[History]) -> list[str]:
    num_steps = len(histories[0].digests)
    sentence = f"All runs trained on the same batches in the same order: {num_steps:,} steps of equal digests."
    return [sentence] if len(histories) > 1 else []


def _unfinished(histories: list[History]) -> list[str]:
    return [
        f"{history.name} is not finished (step {history.records[-1]['step'] if history.records else 0:,}): "
        "its figures are those so far."
        for history in histories
        if not history.is_finished
    ]


def _of_the_text(histories: list[History]) -> Iterator[str]:
    """What each run could not use of its text, and what of it calls for a warning."""
    for history in histories:
        counts = counts_of(history.records[-1] if history.records else {})
        if skipped := describe_skipped(counts):
            yield f"{history.name}: {skipped}."
        limit = history.config.data.warn_skipped_fraction
        yield from (f"{history.name}: warning: {line}." for line in text_warnings(counts, max_lost_fraction=limit))


def _differences(histories: list[History]) -> list[tuple[str, list[str]]]:
    """The learned settings that are not the same in all runs; where models lie is none, if they are the same."""
    digests = {tuple((role, pin.digest) for role, pin in sorted(history.models.items())) for history in histories}
    are_same_models = len(digests) == 1 and all(digest for _, digest in next(iter(digests)))
    ignored = WHERE_MODELS_LIE if are_same_models else ()
    keys = dict.fromkeys(key for history in histories for key in history.learned if key not in ignored)
    shown = [(key, [str(history.learned.get(key, "–")) for history in histories]) for key in keys]
    return [(key, values) for key, values in shown if len(set(values)) > 1]


def _charts(histories: list[History], teacher_rows: list[Row]) -> Iterator[tuple[str, str]]:
    for title, metric, label in _CHARTS:
        curves = {history.name: curve for history in histories if (curve := history.curve(metric))}
        levels = {
            row.name: level
            for row in teacher_rows
            for level in ({"eval/mlm_loss": row.mlm_loss, "eval/mlm_accuracy": row.mlm_accuracy}.get(metric),)
            if level is not None
        }
        if curves:
            yield title, line_chart(curves, x_label="tokens trained on", y_label=label, levels=levels)
