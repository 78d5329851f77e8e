"""What became of some text: how many documents it had, and which of them were skipped, why, and where the first lay."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple


class Reason(Enum):
    """Why a document is skipped. The value ends the name of its count."""

    NULL = "null"
    BLANK = "blank"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NO_KEY = "no_key"
    OTHER_TYPE = "other_type"
    TOO_LONG = "too_long"
    SURROGATE = "surrogate"

    @property
    def count_name(self) -> str:
        """The name in `COUNTS`."""
        return f"skipped_{self.value}"


_IN_WORDS = {
    Reason.NULL: "null",
    Reason.BLANK: "blank",
    Reason.NOT_UTF8: "not UTF-8",
    Reason.NOT_JSON: "not valid JSON",
    Reason.NO_KEY: "without the source's key",
    Reason.OTHER_TYPE: "of another type than text",
    Reason.TOO_LONG: "longer than a line may be",
    Reason.SURROGATE: "with half a surrogate pair",
}
_HOLDS_NO_TEXT = (Reason.NULL, Reason.BLANK)
"""Skipping these loses nothing: many data sets have them by the thousand."""

COUNTS = (
    "skipped_documents",
    "skipped_rows",
    "skipped_units",
    "documents",
    "pieces",
    "unknown_pieces",
    *(reason.count_name for reason in Reason),
)
"""Names of what is counted; in a run's metrics they begin with ``data/``. ``documents`` has the skipped ones, too."""

MAX_UNKNOWN_FRACTION = 0.03
"""A larger share of [UNK] among the pieces is warned of. (On text that a vocabulary is made for: 0.1% or so.)"""


class Skip(NamedTuple):
    """A document that is skipped. ``place`` says where in its file it is."""

    reason: Reason
    place: str


@dataclass
class Tally:
    """Counts over some units of a corpus.

    Attributes:
        num_documents: in the units, skipped ones included.
        skipped: documents by reason.
        first_places: by reason, the file and the place of the first such document.
        num_rows: rows made, those left out included.
        num_skipped_rows: rows left out, for they have too few ordinary pieces to mask.
        num_pieces: of the text, with a [SEP] after each document.
        num_unknown: of these, how many are [UNK].
        unit_errors: one message a unit that is damaged and left out from there on.
    """

    num_documents: int = 0
    skipped: Counter[Reason] = field(default_factory=Counter)
    first_places: dict[Reason, str] = field(default_factory=dict)
    num_rows: int = 0
    num_skipped_rows: int = 0
    num_pieces: int = 0
    num_unknown: int = 0
    unit_errors: list[str] = field(default_factory=list)

    def count(self, document: str | Skip, path: str) -> None:
        """Count a document of a file."""
        self.num_documents += 1
        if isinstance(document, Skip):
            self.skipped[document.reason] += 1
            if document.reason not in self.first_places:
                self.first_places[document.reason] = f"{path}, {document.place}"

    def add(self, other: "Tally") -> None:
        """Add the counts of text that comes after this one."""
        self.num_documents += other.num_documents
        self.skipped.update(other.skipped)
        self.first_places = other.first_places | self.first_places
        self.num_rows += other.num_rows
        self.num_skipped_rows += other.num_skipped_rows
        self.num_pieces += other.num_pieces
        self.num_unknown += other.num_unknown
        self.unit_errors += other.unit_errors

    def counts(self) -> dict[str, int]:
        """All of `COUNTS`, by name."""
        values = (
            self.skipped.total(),
            self.num_skipped_rows,
            len(self.unit_errors),
            self.num_documents,
            self.num_pieces,
            self.num_unknown,
            *(self.skipped[reason] for reason in Reason),
        )
        return dict(zip(COUNTS, values, strict=True))

    def why_no_row(self) -> str:
        """Say why the text gave no row to train on, and what to do."""
        counts = self.counts()
        if self.num_rows:
            return (
                f"each of its {self.num_rows:,} rows has too few ordinary pieces to mask: "
                f"{unknown_fraction(counts):.0%} of the pieces are [UNK]; expected text in a language and script that "
                "the tokenizer knows"
            )
        if self.unit_errors:
            return f"nothing of it could be read; the first error: {self.unit_errors[0]}"
        if not self.num_documents:
            return "it holds no document"
        return describe_skipped(counts, self.first_places) or (
            f"the tokenizer finds no piece in its {self.num_documents:,} documents"
        )


def lost_fraction(counts: Mapping[str, int]) -> float:
    """The share of the documents with something in them that is skipped. Null and blank ones are not among them."""
    empty = sum(counts.get(reason.count_name, 0) for reason in _HOLDS_NO_TEXT)
    lost = sum(counts.get(reason.count_name, 0) for reason in Reason) - empty
    return lost / max(counts.get("documents", 0) - empty, 1)


def unknown_fraction(counts: Mapping[str, int]) -> float:
    """The share of the pieces that is [UNK]."""
    return counts.get("unknown_pieces", 0) / max(counts.get("pieces", 0), 1)


def describe_skipped(counts: Mapping[str, int], first_places: Mapping[Reason, str] | None = None) -> str | None:
    """Say how many documents were skipped and why, with the first place of each reason if it is known.

    Returns:
        None if none was skipped.
    """
    by_reason = {reason: counts.get(reason.count_name, 0) for reason in Reason}
    total, num_documents = sum(by_reason.values()), counts.get("documents", 0)
    if not total:
        return None
    parts = []
    for reason, count in sorted(by_reason.items(), key=lambda item: -item[1]):
        place = (first_places or {}).get(reason)
        if count:
            parts.append(f"{count:,} {_IN_WORDS[reason]}" + (f" (the first: {place})" if place else ""))
    return f"{total:,} of {num_documents:,} documents skipped ({total / max(num_documents, 1):.1%}): {', '.join(parts)}"


def describe_text(counts: Mapping[str, int], first_places: Mapping[Reason, str] | None = None) -> list[str]:
    """Lines on what was skipped and how much of the text the tokenizer knows."""
    lines = [describe_skipped(counts, first_places) or f"{counts.get('documents', 0):,} documents, none skipped"]
    if counts.get("pieces"):
        lines.append(f"{unknown_fraction(counts):.2%} of the pieces are [UNK]")
    return lines


def text_warnings(
    counts: Mapping[str, int],
    first_places: Mapping[Reason, str] | None = None,
    *,
    max_lost_fraction: float,
) -> list[str]:
    """What the person who gave the text should look at: much of it is lost, or the tokenizer does not know it."""
    warnings = []
    if (lost := lost_fraction(counts)) > max_lost_fraction:
        warnings.append(
            f"{lost:.1%} of the documents that hold something cannot be used (warned of above "
            f"data.warn_skipped_fraction = {max_lost_fraction:g}): {describe_skipped(counts, first_places)}"
        )
    if (unknown := unknown_fraction(counts)) > MAX_UNKNOWN_FRACTION:
        warnings.append(
            f"{unknown:.1%} of the pieces are [UNK], from which nothing is learned: the tokenizer does not know this "
            "text's language or script; take a teacher or a vocabulary that does"
        )
    return warnings


def counts_of(metrics: Mapping[str, Any]) -> dict[str, int]:
    """The counts among a run's metrics, by name; empty if the run did not count its documents."""
    if not metrics.get("data/documents"):
        return {}
    return {name: int(metrics[f"data/{name}"]) for name in COUNTS if metrics.get(f"data/{name}") is not None}
