"""Tables -> lines of text, for a terminal and in Markdown."""

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
