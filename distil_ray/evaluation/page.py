"""Figures -> a page: one self-contained HTML file, and the same table as text for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

from jinja2 import Environment
from markupsafe import Markup

from distil_ray.evaluation.cost import Cost
from distil_ray.evaluation.guesses import Gap, Guess

_TEMPLATE = "page.html.j2"
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
    charts: list[tuple[str, str]] = field(default_factory=list)
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
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    return "\n".join([*(_align(line, widths) for line in table), *page.findings, *page.remarks])


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join([name, *figures])


def to_html(page: Page) -> str:
    """The whole page, which loads nothing from elsewhere."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    charts = [(title, Markup(svg)) for title, svg in page.charts]  # ours, and already escaped
    return template.render(page=page, header=HEADER, cells=cells, charts=charts)
