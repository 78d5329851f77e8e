"""Counts of what became of a text, in words: what was skipped, when to warn, and why there is no row."""

from collections import Counter

import pytest

from distil_ray.data.tally import (
    COUNTS,
    Reason,
    Skip,
    Tally,
    counts_of,
    describe_skipped,
    describe_text,
    lost_fraction,
    text_warnings,
    unknown_fraction,
)


def tally_of(num_good=0, **reasons):
    tally = Tally()
    for index in range(num_good):
        tally.count(f"document {index}", "good.txt")
    for name, count in reasons.items():
        for index in range(count):
            tally.count(Skip(Reason[name.upper()], f"byte {index}"), "a.txt")
    return tally


def test_counts_are_those_of_the_columns():
    counts = tally_of(5, null=1, not_utf8=2).counts()
    assert tuple(counts) == COUNTS
    assert {name: count for name, count in counts.items() if count} == {
        "skipped_documents": 3,
        "documents": 8,
        "skipped_null": 1,
        "skipped_not_utf8": 2,
    }


def test_the_first_counts_are_those_of_earlier_versions():
    """A run resumes from their counters, whose names must go on to mean the same."""
    assert COUNTS[:3] == ("skipped_documents", "skipped_rows", "skipped_units")


def test_tallies_add_up_and_keep_the_first_place_of_each_reason():
    first, second = tally_of(3, null=2), tally_of(4, null=1, blank=1)
    second.first_places = dict.fromkeys(second.first_places, "later")
    second.num_rows = 7
    second.counted.update(pieces=70, unknown_pieces=10, skipped_rows=2)
    second.unit_errors = ["damaged"]
    expected = {name: count + second.counts()[name] for name, count in first.counts().items()}
    first.add(second)
    assert first.counts() == expected
    assert first.first_places == {Reason.NULL: "a.txt, byte 0", Reason.BLANK: "later"}
    assert first.num_rows == 7


def test_what_was_skipped_in_words():
    tally = tally_of(58, not_utf8=361, blank=3, other_type=3)
    assert describe_skipped(tally.counts(), tally.first_places) == (
        "367 of 425 documents skipped (86.4%): 361 not UTF-8 (the first: a.txt, byte 0), "
        "3 blank (the first: a.txt, byte 0), 3 of another type than text (the first: a.txt, byte 0)"
    )
    assert describe_skipped(tally_of(4).counts()) is None
    assert describe_text(tally_of(4).counts()) == ["4 documents, none skipped"]


@pytest.mark.parametrize("reason", list(Reason))
def test_only_what_is_lost_is_warned_of(reason):
    counts = tally_of(98, **{reason.name: 2}).counts()
    is_loss = reason not in (Reason.NULL, Reason.BLANK)
    assert lost_fraction(counts) == (0.02 if is_loss else 0.0)
    warnings = text_warnings(counts, max_lost_fraction=0.01)
    assert [warning.startswith("2.0% of the documents that hold something cannot be used") for warning in warnings] == (
        [True] if is_loss else []
    )
    assert text_warnings(counts, max_lost_fraction=0.02) == []


def test_empty_documents_do_not_thin_out_what_is_lost():
    assert lost_fraction(tally_of(5, blank=90, not_json=5).counts()) == 0.5
    assert lost_fraction(tally_of(blank=90).counts()) == lost_fraction({}) == 0.0


def test_unknown_pieces_are_warned_of_above_a_few_percent():
    tally = Tally(Counter(documents=1, pieces=1000, unknown_pieces=30))
    assert text_warnings(tally.counts(), max_lost_fraction=0.01) == []
    assert describe_text(tally.counts())[1] == "3.00% of the pieces are [UNK]"
    tally.counted["unknown_pieces"] = 40
    (warning,) = text_warnings(tally.counts(), max_lost_fraction=0.01)
    assert warning.startswith("4.0% of the pieces are [UNK], from which nothing is learned")
    assert unknown_fraction({}) == 0.0


@pytest.mark.parametrize(
    ("tally", "reason"),
    [
        (Tally(), "it holds no document"),
        (Tally(unit_errors=["a.gz: damaged"]), "nothing of it could be read; the first error: a.gz: damaged"),
        (Tally(Counter(documents=3)), "the tokenizer finds no piece in its 3 documents"),
        (tally_of(no_key=3), "3 of 3 documents skipped (100.0%): 3 without the source's key"),
        (
            Tally(Counter(documents=1, skipped_rows=2, pieces=10, unknown_pieces=9), num_rows=2),
            "each of its 2 rows has too few ordinary pieces to mask: 90% of the pieces are [UNK]",
        ),
    ],
)
def test_why_there_is_no_row(tally, reason):
    assert tally.why_no_row().startswith(reason)


def test_counts_among_a_runs_metrics():
    metrics = {"step": 3, "data/tokens": 5, "data/skipped_documents": 2, "data/skipped_null": 2, "data/documents": 9}
    assert counts_of(metrics) == {"skipped_documents": 2, "documents": 9, "skipped_null": 2}
    assert counts_of({"data/skipped_documents": 2}) == {}  # of a version that did not count the others
