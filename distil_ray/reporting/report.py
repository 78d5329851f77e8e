"""Findings, tables and charts -> one report as a page, Markdown, JSON and lines for a terminal; and its files."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment

from distil_ray import __version__
from distil_ray.errors import InputError, RunError

NAME = "report"
NOTHING = "–"  # stands for what is not known


def number(value: float | None, form: str) -> str:
    """A value in this format, a dash if it is not known."""
    return NOTHING if value is None else format(value, form)


class Cell(NamedTuple):
    """A cell of a table: its text, a note in small print, a bar of a length in [0, 1], and whether it is set off."""

    text: str
    note: str = ""
    bar: float | None = None
    is_right: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells or plain strings, the first row being the header. ``is_text``: not numbers, so aligned left."""

    rows: Sequence[Sequence[str | Cell]]
    is_text: bool = False

    @property
    def cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


class Charts(NamedTuple):
    """Pictures side by side, each a title and an SVG element; on the page alone."""

    charts: Sequence[tuple[str, str]]


class Gap(NamedTuple):
    """A sentence of which one word was masked."""

    before: str
    word: str
    after: str


class Code(NamedTuple):
    """Lines of a program."""

    text: str


Block = str | Table | Charts | Gap | Code
"""A string is a remark."""


class ReportSection(NamedTuple):
    """A part of a report. ``is_brief``: it is also shown on the terminal."""

    title: str
    blocks: Sequence[Block]
    is_brief: bool = True


@dataclass(frozen=True)
class Report:
    """What a command found.

    Attributes:
        findings: sentences that come first.
        data: what the JSON file has beside title and findings, for other programs; named tuples and dataclasses
            become mappings.
    """

    title: str
    findings: Sequence[str]
    sections: Sequence[ReportSection]
    footer: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_html(self) -> str:
        """A page that loads nothing from elsewhere."""
        template = resources.files("distil_ray.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(template).render(report=self, kind_of=_kind_of)

    def to_markdown(self, level: int = 1) -> str:
        """Everything but the charts; ``level`` of the title."""
        lines = [f"{'#' * level} {self.title}", "", *(f"- {finding}" for finding in self.findings)]
        for section in self.sections:
            if blocks := [block for block in section.blocks if not isinstance(block, Charts)]:
                lines += ["", f"{'#' * (level + 1)} {section.title}"]
                lines += [line for block in blocks for line in ("", *_markdown_lines(block))]
        return "\n".join([*lines, "", self.footer, ""])

    def to_json(self) -> str:
        """The data, for other programs."""
        content = {"title": self.title, "findings": self.findings, **self.data, "made_by": self.footer}
        return json.dumps(_to_plain(content), indent=2) + "\n"

    def to_text(self) -> str:
        """Findings and the brief sections' tables and remarks, for a terminal."""
        lines = [*self.findings]
        for section in self.sections:
            blocks = [block for block in section.blocks if isinstance(block, str | Table)]
            if blocks and section.is_brief:
                lines += ["", f"{section.title}:"]
                for block in blocks:
                    lines += aligned(block) if isinstance(block, Table) else [block]
        return "\n".join(lines)

    def files(self) -> dict[str, str]:
        """The contents of the report's files by suffix."""
        return {".json": self.to_json(), ".html": self.to_html(), ".md": self.to_markdown()}


def _to_plain(value: Any) -> Any:
    """The value with mappings in the place of named tuples and dataclasses."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _to_plain(one) for key, one in value.items()}
    return [_to_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _kind_of(block: Block) -> str:
    return type(block).__name__


def _markdown_lines(block: Block) -> list[str]:
    if isinstance(block, Table):
        rows = [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in block.cells]
        return [rows[0], f"|{'---|' * len(block.cells[0])}", *rows[1:]]
    if isinstance(block, Gap):
        return [f"{block.before}**{block.word}**{block.after}"]
    if isinstance(block, Code):
        return ["```python", block.text, "```"]
    assert isinstance(block, str)
    return [block]


def _plain(cell: Cell) -> str:
    text = cell.text if cell.bar is None else f"{cell.bar:.0%}"
    if cell.note:
        text += f" ({cell.note})"
    return text.replace("|", "\\|")


def aligned(table: Table) -> list[str]:
    """Lines of text with the cells of each column below each other, their notes left out."""
    texts = [[cell.text for cell in row] for row in table.cells]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for row in texts:
        padded = [
            text.ljust(width) if index == 0 or table.is_text else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def made_by(*details: str) -> str:
    """What made a report, with what else, and when."""
    return ", ".join([f"distil_ray {__version__}", *details, f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"])


# -------------------------------------------------------------------------------------------------------- files


def make_folder(folder: Path) -> None:
    """Make the folder of a report, before hours go into what it will hold.

    Raises:
        InputError: nothing can be written there.
    """
    probe = folder / f".{NAME}.writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_text("whether there is room\n", encoding="utf-8")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"--output: cannot write into {folder}: {error.strerror}; name another folder, or free space"
        ) from error


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn a failed write of ``file`` within the block into RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {file}: {error.strerror}; what was written before is kept, the same command does the rest"
        ) from error


def publish(report: Report, stem: Path) -> None:
    """Write the report's files, ``stem`` and a suffix each, and print it.

    Raises:
        RunError: a file cannot be written.
    """
    files = report.files()
    for suffix, text in files.items():
        file = stem.with_name(f"{stem.name}{suffix}")
        with writing(file):
            file.write_text(text, encoding="utf-8")
    _show(f"\n{report.to_text()}\n\nreport: {stem.absolute()}{', '.join(files)}")


def _show(text: str) -> None:
    """Print what a file holds, too: a reader that has gone, or lacks a character, is no failure."""
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
