"""Tables -> lines of text, for a terminal and in Markdown; a report -> its files."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distil_ray.errors import InputError, RunError


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text with the cells of each column below each other: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def to_markdown_table(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first row being its head."""
    rows = [f"| {' | '.join(row)} |" for row in table]
    return [rows[0], f"|{'---|' * len(table[0])}", *rows[1:]]


def show(text: str) -> None:
    """Print text that a file holds, too: a reader that has gone, or lacks a character, is no failure."""
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end


NAME = "report"


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


def write_report(folder: Path, *, json: str, html: str, markdown: str) -> None:
    """Write ``report.json``, ``.html`` and ``.md``.

    Raises:
        RunError: one cannot be written.
    """
    for suffix, text in (("json", json), ("html", html), ("md", markdown)):
        file = folder / f"{NAME}.{suffix}"
        with writing(file):
            file.write_text(text, encoding="utf-8")


def show_report(folder: Path, markdown: str) -> None:
    """Print a report, and where its files are."""
    show(f"\n{markdown}\nreport: {(folder / NAME).absolute()}.html, .md, .json")
