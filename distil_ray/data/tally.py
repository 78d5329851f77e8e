"""Documents as they are read -> counts: how many there are, how many are skipped and why, and where the first is."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple


class Reason(Enum):
    """Why a document is skipped: the end of its count's name, and the words for it."""

    NULL = "null", "null"
    BLANK = "blank", "blank"
    NOT_UTF8 = "not_utf8", "not UTF-8"
    NOT_JSON = "not_json", "not valid JSON"
    NO_KEY = "no_key", "without the source's key"
    OTHER_TYPE = "other_type", "of another type than text"
    TOO_LONG = "too_long", "longer than a line may be"
    SURROGATE = "surrogate", "with half a surrogate pair"

    def __init__(self, name: str, words: str) -> None:
        self.count_name = f"skipped_{name}"
        self.words = words


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
"""Names of what is counted; a run's metrics prefix them with ``data/``. ``documents`` includes the skipped ones, and
``pieces`` a [SEP] after each document."""

MAX_UNKNOWN_FRACTION = 0.03
"""A larger share of [UNK] among the pieces causes a warning. (Text that a vocabulary was made for has about 0.1%.)"""


class Skip(NamedTuple):
    """A document that is skipped. ``place`` says where in its file it is."""

    reason: Reason
    place: str


@dataclass
class Tally:
    """Counts over some units of a corpus.

    Attributes:
        counted: by name, as in `COUNTS`.
        first_places: by reason, the file and the place of the first such document.
        num_rows: rows made, including those left out for having too few ordinary pieces to mask.
        unit_errors: one message per unit that is damaged and left out from there on.
    """

    counted: Counter[str] = field(default_factory=Counter)
    first_places: dict[Reason, str] = field(default_factory=dict)
    num_rows: int = 0
    unit_errors: list[str] = field(default_factory=list)

    def count(self, document: str | Skip, path: str) -> None:
        """Count a document of a file."""
        self.counted["documents"] += 1
        if isinstance(document, Skip):
            self.counted["skipped_documents"] += 1
            self.counted[document.reason.count_name] += 1
            if document.reason not in self.first_places:
                self.first_places[document.reason] = f"{path}, {document.place}"

    def add(self, other: "Tally") -> None:
        """Add the counts of text that comes after this one."""
        self.counted.update(other.counted)
        self.first_places = other.first_places | self.first_places
        self.num_rows += other.num_rows
        self.unit_errors += other.unit_errors

    def counts(self) -> dict[str, int]:
        """Return all of `COUNTS`, by name."""
        return {name: self.counted[name] for name in COUNTS} | {"skipped_units": len(self.unit_errors)}

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
        if not counts["documents"]:
            return "it holds no document"
        return describe_skipped(counts, self.first_places) or (
            f"the tokenizer finds no piece in its {counts['documents']:,} documents"
        )


def lost_fraction(counts: Mapping[str, int]) -> float:
    """Return the skipped share of the documents that hold something: null and blank ones do not count."""
    empty = sum(counts.get(reason.count_name, 0) for reason in _HOLDS_NO_TEXT)
    lost = sum(counts.get(reason.count_name, 0) for reason in Reason) - empty
    return lost / max(counts.get("documents", 0) - empty, 1)


def unknown_fraction(counts: Mapping[str, int]) -> float:
    """Return the share of the pieces that is [UNK]."""
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
            parts.append(f"{count:,} {reason.words}" + (f" (the first: {place})" if place else ""))
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
    """Return what to look at in the text: that much of it is lost, or that the tokenizer does not know it."""
    warnings = []
    lost = lost_fraction(counts)
    if lost > max_lost_fraction:
        warnings.append(
            f"{lost:.1%} of the documents that hold something cannot be used (warned of above "
            f"data.warn_skipped_fraction = {max_lost_fraction:g}): {describe_skipped(counts, first_places)}"
        )
    unknown = unknown_fraction(counts)
    if unknown > MAX_UNKNOWN_FRACTION:
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
