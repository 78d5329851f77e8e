"""Runs -> a report: their students and teachers side by side, measured on this machine, and what the figures show."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.data.corpus import read_texts
from distil_ray.data.tally import counts_of, describe_skipped, text_warnings
from distil_ray.data.tokenization import id_space
from distil_ray.errors import InputError
from distil_ray.evaluation.guesses import Guess, MaskedWord, guess_words, mask_words
from distil_ray.evaluation.speed import NUM_TOKENS, Cost, measure_costs
from distil_ray.models.families import has_head
from distil_ray.models.loading import load_encoder, load_masked_lm, max_tokens
from distil_ray.reporting.plots import line_chart
from distil_ray.reporting.report import (
    NOTHING,
    Block,
    Cell,
    Charts,
    Code,
    Gap,
    Report,
    ReportSection,
    Table,
    made_by,
    number,
)
from distil_ray.runs.storage import EXPORT_FOLDER
from distil_ray.training.assembly import build_plan, build_tokenizer
from distil_ray.training.history import History
from distil_ray.training.identity import MODEL_LOCATIONS, Pin

Kind = Literal[
    "teacher", "distilled", "teacher's layers, MLM only", "random weights, MLM only", "MLM only", "not trained"
]

NUM_MASKED_WORDS = 8
_NUM_LOOKED_AT = 16

_CHARTS = (
    ("Held-out MLM loss", "eval/mlm_loss", "nats per masked token"),
    ("Held-out accuracy", "eval/mlm_accuracy", "share guessed right"),
    ("Agreement with the teacher", "eval/teacher_agreement", "share guessed like the teacher"),
    ("Loss between relations", "eval/relation_loss", "nats per token"),
    ("Loss between hidden states", "eval/hidden_loss", "per token"),
    ("MLM loss in training", "train/loss_mlm", "nats per masked token"),
)

# Runs that differ in these settings differ in more than the findings are about.
_SHAPE = (
    *("teacher", "student.layers", "student.hidden_size", "student.num_heads", "student.intermediate_size"),
    *("student.architecture", "student.path", "student.config", "optim."),
)


@dataclass(frozen=True)
class ModelRow:
    """One model's figures; None is unknown.

    Attributes:
        kind: of a student, how it was trained.
        mlm_loss: held-out masked-language-modeling loss, nats per masked token.
        mlm_accuracy, agreement: fractions of the masked tokens: guessed right, and guessed like the teacher.
        relation_loss, hidden_loss: held-out losses against the teacher, per token.
        guesses: one for each masked word.
    """

    name: str
    role: str
    kind: Kind
    mlm_loss: float | None = None
    mlm_accuracy: float | None = None
    agreement: float | None = None
    cost: Cost | None = None
    guesses: list[Guess] = field(default_factory=list)
    relation_loss: float | None = None
    hidden_loss: float | None = None


def compare(histories: list[History]) -> Report:
    """Measure the runs' models, which takes seconds, and report on the runs.

    Raises:
        InputError: a model cannot be loaded.
    """
    teachers = _teachers(histories)
    models = dict(_load_models(histories, teachers))
    costs = measure_costs(models) if models else {}
    masked, guesses, remarks = _guess(histories[0], models)
    rows = [_teacher_row(name, pin, history) for name, (pin, history) in teachers.items()]
    rows += [_student_row(history) for history in histories]
    rows = [replace(row, cost=costs.get(row.name), guesses=guesses.get(row.name, [])) for row in rows]
    teacher_rows, students = rows[: len(teachers)], rows[len(teachers) :]
    obstacle = _obstacle(histories)
    remarks = [
        *([obstacle] if obstacle else _same_batches(histories)),
        *_unfinished(histories),
        *_of_the_text(histories),
        *remarks,
    ]
    charts = list(_charts(histories, teacher_rows))
    differences = _differences(histories)
    header = ["setting", *(history.name for history in histories)]
    differences_table = Table([header, *([key, *values] for key, values in differences)], is_text=True)
    sections = [
        ReportSection("Figures", [figures_table(rows), _FIGURES_NOTE, *remarks]),
        *([ReportSection("Curves", [Charts(charts)])] if charts else []),
        *([ReportSection("What each model puts in the gap", _gaps(masked, rows), is_brief=False)] if masked else []),
        *([ReportSection("What differs between the runs", [differences_table])] if differences else []),
        *_students(histories),
    ]
    return Report(
        title=f"Report on {', '.join(history.name for history in histories)}",
        findings=[] if obstacle else findings(teacher_rows[0] if teacher_rows else None, students),
        sections=sections,
        footer=made_by(),
        data={
            "remarks": remarks,
            "models": rows,
            "masked_words": [{"before": one.before, "word": one.word, "after": one.after} for one in masked],
            "differences": dict(differences),
        },
    )


# ---------------------------------------------------------------------------------------------------- sections

_FIGURES_NOTE = (
    "Loss in nats per masked token, at temperature 1, on held-out rows with fixed masks. CPU: the encoder's median "
    "time for one row on this machine."
)


def figures_table(rows: list[ModelRow]) -> Table:
    """One row per model."""
    columns = ("held-out MLM loss", "accuracy", "agrees with teacher", "parameters", "MB (fp32)", "CPU ms per row")
    inside = [name for name in ("relation_loss", "hidden_loss") if any(getattr(row, name) is not None for row in rows)]
    table: list[list[str | Cell]] = [
        ["model", *columns[:3], *(name.replace("_", " ") for name in inside), *columns[3:]]
    ]
    for row in rows:
        cost = row.cost
        table.append(
            [
                Cell(row.name, note=row.role),
                number(row.mlm_loss, ".3f"),
                number(row.mlm_accuracy, ".1%"),
                number(row.agreement, ".1%"),
                *(number(getattr(row, name), ".3f") for name in inside),
                number(cost and cost.num_parameters, ",d"),
                number(cost and cost.megabytes, ".1f"),
                number(cost and cost.latency_ms, ".2f"),
            ]
        )
    return Table(table)


def _gaps(masked: list[MaskedWord], rows: list[ModelRow]) -> list[Block]:
    blocks: list[Block] = []
    rows = [row for row in rows if row.guesses]
    for index, one in enumerate(masked):
        guesses = [row.guesses[index] for row in rows]
        cells = [Cell(found.word, f"{found.probability:.0%}", is_right=found.is_right) for found in guesses]
        blocks += [Gap(one.before, one.word, one.after), Table([[row.name for row in rows], cells], is_text=True)]
    note = "Held-out sentences. The underlined word is the original; every model sees [MASK]. Right guesses are green."
    return [*blocks, note]


def _students(histories: list[History]) -> Iterator[ReportSection]:
    folders = [(history.name, history.export_path) for history in histories if history.is_finished]
    if folders:
        path = folders[0][1]
        first = next(history for history in histories if history.is_finished)
        auto_class = "AutoModel" if first.config.student.head == "none" else "AutoModelForMaskedLM"
        code = (
            f"from transformers import {auto_class}, AutoTokenizer\n\n"
            f'model = {auto_class}.from_pretrained("{path}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{path}")'
        )
        yield ReportSection("The students", [Table([("run", "student"), *folders], is_text=True), Code(code)])


# ---------------------------------------------------------------------------------------------------- findings


def findings(teacher: ModelRow | None, students: list[ModelRow]) -> list[str]:
    """Say what the comparison shows, even if it is not what one hoped for.

    The students must be comparable: of one shape, trained on the same batches and evaluated on the same held-out rows.
    """
    distilled = _best(students, "distilled")
    same_start = _best(students, "teacher's layers, MLM only")
    random_start = _best(students, "random weights, MLM only")
    sentences = []
    if distilled and teacher:
        sentences += _against_teacher(distilled, teacher)
    if distilled and same_start:
        sentences.append(_compare("The teacher's losses", "the same start without them", distilled, same_start))
    if same_start and random_start:
        sentences.append(_compare("The teacher's layers as a start", "random weights", same_start, random_start))
    elif distilled and random_start:
        sentences.append(
            _compare("Losses and layers of the teacher together", "random weights", distilled, random_start)
        )
    return sentences


def _best(students: list[ModelRow], kind: Kind) -> ModelRow | None:
    rows = [row for row in students if row.kind == kind and row.mlm_loss is not None]
    return min(rows, key=lambda row: row.mlm_loss or 0.0, default=None)


def _compare(what: str, instead_of: str, row: ModelRow, other: ModelRow) -> str:
    assert row.mlm_loss is not None
    assert other.mlm_loss is not None
    verb = "lower" if row.mlm_loss < other.mlm_loss else "do not lower"
    return (
        f"{what} {verb} the held-out MLM loss: {row.mlm_loss:.3f} against {other.mlm_loss:.3f} for {instead_of} "
        f"({row.mlm_loss - other.mlm_loss:+.3f})."
    )


def _against_teacher(student: ModelRow, teacher: ModelRow) -> list[str]:
    parts = []
    if student.cost and teacher.cost:
        fewer = 1 - student.cost.num_parameters / teacher.cost.num_parameters
        faster = teacher.cost.latency_ms / student.cost.latency_ms - 1
        parts += [f"{fewer:.0%} fewer parameters", f"an encoder that is {faster:.0%} faster on this CPU"]
    if student.mlm_accuracy is not None and teacher.mlm_accuracy:
        parts.append(f"{student.mlm_accuracy / teacher.mlm_accuracy:.0%} of its held-out accuracy")
    return [f"{student.name} against its teacher: {', '.join(parts)}."] if parts else []


# ------------------------------------------------------------------------------------------------- models


def _teachers(histories: list[History]) -> dict[str, tuple[Pin, History]]:
    """The different teachers by name, each with the first run that has it."""
    found: dict[Hashable, tuple[Pin, History]] = {}
    for history in histories:
        if "teacher" in history.models:
            teacher = history.models["teacher"]
            # Runs of older versions did not record what a teacher consists of, only where it is stored.
            found.setdefault(teacher.digest or (teacher.path, teacher.revision), (teacher, history))
    names = ["teacher"] if len(found) == 1 else [f"teacher {number + 1}" for number in range(len(found))]
    return dict(zip(names, found.values(), strict=True))


def _load_models(
    histories: list[History], teachers: Mapping[str, tuple[Pin, History]]
) -> Iterator[tuple[str, PreTrainedModel]]:
    for name, (teacher, history) in teachers.items():
        used = history.config.teacher
        yield name, (load_masked_lm if used is None or used.head is None else load_encoder)(*teacher.origin)
    for history in histories:
        if history.is_finished:
            load = load_encoder if history.config.student.head == "none" else load_masked_lm
            with history.folder.local_copy(EXPORT_FOLDER) as folder:
                yield history.name, load(str(folder))


def _guess(
    history: History, models: dict[str, PreTrainedModel]
) -> tuple[list[MaskedWord], dict[str, list[Guess]], list[str]]:
    """Masked words of the run's held-out text, each model's guesses, and a remark if the text cannot be read."""
    try:
        tokenizer = build_tokenizer(history.config, history.models)
        masked = mask_words(
            tokenizer,
            _heldout_documents(history, tokenizer),
            num_words=NUM_MASKED_WORDS,
            max_tokens=min([NUM_TOKENS, *map(max_tokens, models.values())]),
            seed=history.config.run.seed,
        )
    except InputError as error:
        return [], {}, [f"No sentences are shown: {error}"]
    num_ids = id_space(tokenizer)
    fitting = {name: one for name, one in models.items() if has_head(one) and one.config.vocab_size >= num_ids}
    if not fitting:
        return [], {}, []
    return masked, {name: guess_words(model, tokenizer, masked) for name, model in fitting.items()}, []


def _heldout_documents(history: History, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    """Held-out documents from all over the text: the longest of the first few of each unit, then all."""
    plan = build_plan(history.config, tokenizer, history.commits)
    for is_first_pass in (True, False):
        for unit in plan.eval_units:
            documents = read_texts(plan.eval_corpus, [unit])
            yield from [max(islice(documents, _NUM_LOOKED_AT), key=len, default="")] if is_first_pass else documents


# ------------------------------------------------------------------------------------------------- figures


def _teacher_row(name: str, teacher: Pin, history: History) -> ModelRow:
    return ModelRow(
        name=name,
        role=teacher.path,
        kind="teacher",
        mlm_loss=history.last("eval/teacher_mlm_loss"),
        mlm_accuracy=history.last("eval/teacher_mlm_accuracy"),
    )


def _student_row(history: History) -> ModelRow:
    kind = _kind(history)
    shares = history.config.distill.shares
    weights = ", ".join(f"{name} {share:.3g}" for name, share in shares.items() if share > 0)
    return ModelRow(
        name=history.name,
        role=kind if history.is_start else f"{kind}; loss weights: {weights}",
        kind=kind,
        mlm_loss=history.last("eval/mlm_loss"),
        mlm_accuracy=history.last("eval/mlm_accuracy"),
        agreement=history.last("eval/teacher_agreement"),
        relation_loss=history.last("eval/relation_loss"),
        hidden_loss=history.last("eval/hidden_loss"),
    )


def _kind(history: History) -> Kind:
    config = history.config
    if history.is_start:
        return "not trained"
    if config.distill.shares["mlm"] < 1:
        return "distilled"
    if config.teacher is None or config.student.path or config.student.config:
        return "MLM only"
    return "teacher's layers, MLM only" if config.student.init == "teacher" else "random weights, MLM only"


def _obstacle(histories: list[History]) -> str | None:
    """Why the runs' figures cannot be compared as ways of training; None if they can."""
    if any(history.heldout_identity != histories[0].heldout_identity for history in histories):
        return "The runs were evaluated on different held-out rows: their losses cannot be compared."
    first, *others = trained = _trained(histories)
    if any(key.startswith(_SHAPE) for key, _ in _differences(trained)):
        return "The runs differ in more than their losses and their start; see the settings below."
    if any(len(history.digests) != len(first.digests) for history in others):
        return "The runs took different numbers of steps: their losses cannot be compared."
    if any(history.digests != first.digests for history in others):
        return "The runs did not train on the same batches: their digests differ."
    return None


def _same_batches(histories: list[History]) -> list[str]:
    trained = _trained(histories)
    num_steps = len(trained[0].digests)
    sentence = f"All runs trained on the same batches in the same order: {num_steps:,} steps of equal digests."
    return [sentence] if len(trained) > 1 else []


def _trained(histories: list[History]) -> list[History]:
    """The runs but for those that show a student as it starts; all if there are no others."""
    return [history for history in histories if not history.is_start] or histories


def _unfinished(histories: list[History]) -> list[str]:
    return [
        f"{history.name} is not finished (step {history.records[-1]['step'] if history.records else 0:,}): "
        "its figures are those so far."
        for history in histories
        if not history.is_finished
    ]


def _of_the_text(histories: list[History]) -> Iterator[str]:
    """Which part of its text each run could not use, and warnings about it."""
    for history in histories:
        counts = counts_of(history.records[-1] if history.records else {})
        if skipped := describe_skipped(counts):
            yield f"{history.name}: {skipped}."
        limit = history.config.data.warn_skipped_fraction
        yield from (f"{history.name}: warning: {line}." for line in text_warnings(counts, max_lost_fraction=limit))


def _differences(histories: list[History]) -> list[tuple[str, list[str]]]:
    """The learned settings that differ between runs; not where models are stored, if they are the same models."""
    digests = [{role: pin.digest for role, pin in history.models.items()} for history in histories]
    are_same_models = all(one == digests[0] for one in digests) and all(digests[0].values())
    ignored = MODEL_LOCATIONS if are_same_models else ()
    differences = []
    for key in dict.fromkeys(key for history in histories for key in history.learned):
        values = [str(history.learned.get(key, NOTHING)) for history in histories]
        if key not in ignored and len(set(values)) > 1:
            differences.append((key, values))
    return differences


def _charts(histories: list[History], teachers: list[ModelRow]) -> Iterator[tuple[str, str]]:
    levels_of = {
        "eval/mlm_loss": {row.name: row.mlm_loss for row in teachers if row.mlm_loss is not None},
        "eval/mlm_accuracy": {row.name: row.mlm_accuracy for row in teachers if row.mlm_accuracy is not None},
    }
    for title, metric, label in _CHARTS:
        curves = {history.name: curve for history in histories if (curve := history.curve(metric))}
        if curves:
            levels = levels_of.get(metric, {})
            yield title, line_chart(curves, x_label="tokens trained on", y_label=label, levels=levels)
