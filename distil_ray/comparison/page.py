"""Figures -> a page: one self-contained HTML file, and the same table as text for the terminal."""

from dataclasses import dataclass, field

from distil_ray.comparison.cost import Cost
from distil_ray.comparison.guesses import Gap, Guess
from distil_ray.reporting.html import Chart, render
from distil_ray.reporting.text import aligned

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
        "comparison/page.html.j2",
        title=page.title,
        findings=page.findings,
        footer=page.footer,
        charts=page.charts,
        page=page,
        header=HEADER,
        cells=cells,
    )
