"""Tables -> lines of text, for a terminal and in Markdown."""

import os
import sys
from collections.abc import Sequence


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
