"""What a terminal shows of a run while it lasts: how far it is, the loss and its terms, held-out figures as curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.console import ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distil_ray.runs.figures import format_progress, format_terms, held_out

_CURVE_POINTS = 32
_LEVELS = "▁▂▃▄▅▆▇█"


class LiveFigures:
    """The newest figures of a run, to be drawn over and over in the same place; a curve per held-out figure."""

    def __init__(self) -> None:
        self._progress = 0.0
        self._brief, self._terms = "", ""
        self._held_out: dict[str, str] = {}
        self._curves: dict[str, list[float]] = {}

    def update(self, record: Mapping[str, Any]) -> None:
        """Take over what a record holds; what it lacks stays as it was."""
        self._progress = record["run/progress"]
        self._brief = format_progress(record)
        if "train/loss" in record:
            self._terms = format_terms(record)
        for label, (value, text) in held_out(record).items():
            self._held_out[label] = text
            self._curves.setdefault(label, []).append(value)

    def __rich_console__(self, terminal: Terminal, options: ConsoleOptions) -> RenderResult:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(justify="right")
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        drawn = ProgressBar(total=1.0, completed=self._progress)
        bar.add_row(f"{self._progress:6.1%}", drawn, Text(self._brief))
        yield bar
        if self._terms:
            yield Text(f"  {self._terms}", no_wrap=True, overflow="ellipsis")
        figures = Table.grid(padding=(0, 2))
        for label, text in self._held_out.items():
            drawn_curve = "" if options.ascii_only else curve(self._curves[label])
            figures.add_row(f"  held out: {label}", Text(text, justify="right"), drawn_curve)
        if self._held_out:
            yield figures


def curve(values: Sequence[float], num_points: int = _CURVE_POINTS) -> str:
    """The course of a figure in letters of eight heights, the lowest value the lowest; of many values, some."""
    if len(values) > num_points:
        last = len(values) - 1
        values = [values[round(last * place / (num_points - 1))] for place in range(num_points)]
    low, high = min(values), max(values)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round(top * (value - low) / (high - low)) if high > low else 0] for value in values)
