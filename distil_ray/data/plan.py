"""Sources and settings -> the plan of a run's data: which text, in which order, masked how; and a first look at it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distil_ray.config import Source
from distil_ray.data.batch import Arrays
from distil_ray.data.corpus import Corpus, explain_difference, list_corpus, read_texts
from distil_ray.data.hashing import draws, stream_key
from distil_ray.data.rows import RowSettings, count_pieces, make_rows
from distil_ray.data.schedule import Schedule, split_units
from distil_ray.data.tally import Tally
from distil_ray.data.tokenization import Vocabulary
from distil_ray.errors import InputError
from distil_ray.outages import AT_START, Patience

MAX_HELDOUT_UNITS = 64
"""Held-out rows come from at most so many units, an equal share from each."""

IN_SAMPLE = "in_sample"
"""Name of a further array of held-out rows, ``[B]`` bool: the rows that are in the sample."""

_MAX_BYTES_WITHOUT_ROW = 32 * 2**20
"""Bytes of text from all over the corpus; if none of it gives a row, the rest is not read to find one."""

_MAX_BYTES_TALLIED = 8 * 2**20

_MAX_GLANCES, _MAX_UNITS_GLANCED_AT = 16, 256
_GLANCE_CHARACTERS = 100_000

_AMPLE_BYTES_PER_TOKEN = 32
_ALL = np.iinfo(np.int64).max


@dataclass(frozen=True)
class DataPlan:
    """One global sequence of rows, as a pure function of its fields. Cheap to send to another process.

    Attributes:
        eval_units: indices into ``eval_corpus``, in a seeded order; empty = no evaluation.
    """

    corpus: Corpus
    schedule: Schedule
    eval_corpus: Corpus
    eval_units: npt.NDArray[np.int64]
    vocabulary: Vocabulary
    settings: RowSettings
    skip_bad_files: bool

    def rows_of(
        self, split: Literal["train", "eval"], group: int, patience: Patience = AT_START
    ) -> tuple[Arrays, Tally]:
        """Make the rows of a group of the schedule, or of the held-out unit of that number, and tally its text.

        Raises:
            InputError, OutageError: as `read_texts`.
        """
        if split == "train":
            corpus, units = self.corpus, self.schedule.units_of(group)
        else:
            corpus, units = self.eval_corpus, self.eval_units[group : group + 1]
        tally = Tally()
        texts = read_texts(corpus, units, tally, skip_bad_units=self.skip_bad_files, patience=patience)
        return make_rows(texts, tally, self.vocabulary, self.settings, split=split, group=group), tally

    def piece_counts_of(self, group: int) -> npt.NDArray[np.int64]:
        """Count the pieces ``[V]`` of a group of the schedule; raises what `rows_of` does."""
        texts = read_texts(self.corpus, self.schedule.units_of(group), skip_bad_units=self.skip_bad_files)
        return count_pieces(texts, self.vocabulary)

    # What follows looks at a little of the text before a run, to see whether it can be used.

    def first_documents(self) -> list[str]:
        """Return the first 100,000 characters of an epoch, as documents, to try the tokenizer on.

        Damaged units are left out without a message: training on them gives one.
        """
        units = self._first_units()
        texts = read_texts(self.corpus, units, skip_bad_units=True, max_characters=_GLANCE_CHARACTERS)
        return [text[:_GLANCE_CHARACTERS] for text in texts]

    def _first_units(self) -> npt.NDArray[np.int64]:
        num_groups = min(self.schedule.groups_per_epoch, _MAX_UNITS_GLANCED_AT)
        return np.concatenate([self.schedule.units_of(group) for group in range(num_groups)])

    def first_rows(self) -> tuple[Arrays, Tally]:
        """Make the rows of the first group of an epoch that gives any, and tally the text up to there.

        If that is little, documents of the groups that follow are tallied, too, without making rows of them.

        Raises:
            InputError: no group of an epoch (of a large one: none of those in its first 32 MiB) gives a row, and why.
        """
        tally = Tally()
        rows: Arrays | None = None
        num_bytes, num_groups = 0, self.schedule.groups_per_epoch
        for group in range(num_groups):
            units = self.schedule.units_of(group)
            if rows is None:
                made, of_group = self.rows_of("train", group)
                rows = made if len(made["row"]) else None
                tally.add(of_group)
            else:
                for _ in read_texts(self.corpus, units, tally, skip_bad_units=self.skip_bad_files):
                    pass
            num_bytes += int(self.corpus.unit_bytes[units].sum())
            if num_bytes >= (_MAX_BYTES_WITHOUT_ROW if rows is None else _MAX_BYTES_TALLIED):
                break
        if rows is None:
            looked_at = (
                "the text" if group == num_groups - 1 else f"the {num_bytes / 1e6:,.0f} MB of text that were read"
            )
            raise InputError(f"data.sources: {looked_at} gives no row to train on: {tally.why_no_row()}")
        return rows, tally

    def glance(self) -> Tally:
        """Make rows of a little text to train on and a little that is held out: enough to know that it can be used.

        Raises:
            InputError: the text cannot be read, or gives no row.
        """
        tally = self._glance("data.sources", self.corpus, self._first_units())
        if len(self.eval_units):
            tally.add(self._glance("the held-out text", self.eval_corpus, self.eval_units))
        return tally

    def _glance(self, name: str, corpus: Corpus, units: npt.NDArray[np.int64]) -> Tally:
        tally = Tally()
        num_tried = 0
        for unit in units[:_MAX_UNITS_GLANCED_AT]:
            of_unit = Tally()
            texts = read_texts(
                corpus, [unit], of_unit, skip_bad_units=self.skip_bad_files, max_characters=_GLANCE_CHARACTERS
            )
            rows = make_rows(texts, of_unit, self.vocabulary, self.settings, split="glance", group=0)
            tally.add(of_unit)
            if len(rows["row"]):
                return tally
            num_tried += of_unit.counted["documents"] > 0  # a range within a long line has none
            if num_tried == _MAX_GLANCES:
                break
        raise InputError(f"{name}: the units that were tried give no row: {tally.why_no_row()}")

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able identity of corpus and tokenizer; a run resumes only with the same one."""
        return {
            "corpus": self.corpus.fingerprint(),
            "eval_corpus": self.eval_corpus.fingerprint(),
            "tokenizer": self.vocabulary.digest,
        }


def make_plan(
    sources: Sequence[Source],
    eval_sources: Sequence[Source] | None,
    vocabulary: Vocabulary,
    settings: RowSettings,
    *,
    eval_fraction: float,
    num_epochs: int | None,
    on_bad_file: Literal["error", "skip"],
    patience: Patience = AT_START,
) -> DataPlan:
    """List the corpus, split it and lay out its groups. Reads file footers, no text.

    Raises:
        InputError: a source is unusable, or nothing is left to train on.
        OutageError: a store or the Hub did not answer in time.
    """
    corpus = list_corpus(sources, on_bad_file=on_bad_file, patience=patience)
    if eval_sources is None:
        eval_corpus = corpus
        train_units, eval_units = split_units(corpus.unit_bytes, eval_fraction, settings.seed)
    else:
        eval_corpus = list_corpus(eval_sources, on_bad_file=on_bad_file, patience=patience)
        train_units, eval_units = np.arange(corpus.num_units), np.arange(eval_corpus.num_units)
    if corpus.num_units == 0:
        raise InputError("data.sources: every file was left out, so there is nothing to train on")
    return DataPlan(
        corpus=corpus,
        schedule=Schedule(train_units, corpus.unit_bytes[train_units], seed=settings.seed, num_epochs=num_epochs),
        eval_corpus=eval_corpus,
        eval_units=_heldout_order(eval_units, settings.seed)[:MAX_HELDOUT_UNITS],
        vocabulary=vocabulary,
        settings=settings,
        skip_bad_files=on_bad_file == "skip",
    )


def _heldout_order(units: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    return units[np.argsort(draws(stream_key(seed, "heldout"), units.astype(np.uint64)))]


def explain_fingerprints(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words what differs between two fingerprints; an empty list if nothing does."""
    reasons = []
    for name in ("corpus", "eval_corpus"):
        reasons += [f"{name}: {reason}" for reason in explain_difference(old[name], new[name])]
    if old["tokenizer"] != new["tokenizer"]:
        reasons.append("tokenizer: it maps text to other ids than before")
    return reasons


@dataclass(frozen=True, eq=False)
class TextPlan:
    """Rows of a text of which nothing is trained on, as a pure function of its fields. Cheap to send.

    Attributes:
        units: indices into ``corpus``, in a seeded order ``[U]``.
        num_rows: rows to take of each unit, at most ``[U]``.
        num_sampled: how many of them are in the sample, at most ``[U]``.
    """

    corpus: Corpus
    units: npt.NDArray[np.int64]
    num_rows: npt.NDArray[np.int64]
    num_sampled: npt.NDArray[np.int64]
    vocabulary: Vocabulary
    settings: RowSettings

    def rows_of(self, index: int, patience: Patience = AT_START) -> Arrays:
        """Make the rows of the unit at ``index``: the arrays of `batch` and `IN_SAMPLE`, like a run's held-out rows.

        Raises:
            InputError: the unit cannot be read.
            OutageError: its store did not answer in time.
        """
        tally = Tally()
        texts = read_texts(self.corpus, self.units[index : index + 1], tally, patience=patience)
        made = make_rows(texts, tally, self.vocabulary, self.settings, split="eval", group=index)
        rows = {name: values[: self.num_rows[index]].copy() for name, values in made.items()}
        return rows | {IN_SAMPLE: _spread(int(self.num_sampled[index]), len(rows["row"]))}

    def share_completed(self, group: int, row: int, group_rows: int) -> float:
        """Return the share of the plan that is completed once a row is done (its place, as in `batch`)."""
        return (group + (row + 1) / min(group_rows, int(self.num_rows[group]))) / len(self.units)


def plan_text(
    sources: Sequence[Source],
    vocabulary: Vocabulary,
    settings: RowSettings,
    *,
    num_rows: int | None,
    num_sampled: int,
) -> TextPlan:
    """List a text and choose rows from all over it, from each unit in proportion to its size. Reads no text.

    Args:
        num_rows: rows to take; None takes all. They come from `MAX_HELDOUT_UNITS` units, or from more if those may
            have too little text.
        num_sampled: how many of them are in the sample, which is spread evenly over them.

    Raises:
        InputError: a source is unusable.
    """
    corpus = list_corpus(sources)
    units = _heldout_order(np.arange(corpus.num_units), settings.seed)
    if num_rows is None:
        sampled = _shares(num_sampled, corpus.unit_bytes[units])
        return TextPlan(corpus, units, np.full(len(units), _ALL), sampled, vocabulary, settings)
    ample_bytes = num_rows * settings.max_seq_length * _AMPLE_BYTES_PER_TOKEN
    enough = int(np.searchsorted(np.cumsum(corpus.unit_bytes[units]), ample_bytes)) + 1
    units = units[: max(enough, MAX_HELDOUT_UNITS)]
    taken = _shares(num_rows, corpus.unit_bytes[units])
    units, taken = units[taken > 0], taken[taken > 0]
    return TextPlan(corpus, units, taken, _shares(min(num_sampled, num_rows), taken), vocabulary, settings)


def _shares(total: int, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Whole numbers that add up to ``total``, in proportion to ``weights``."""
    edges = np.rint(total * (np.cumsum(weights) / weights.sum())).astype(np.int64)
    shares: npt.NDArray[np.int64] = np.diff(edges, prepend=0)
    return shares


def _spread(num_chosen: int, num_rows: int) -> npt.NDArray[np.bool_]:
    """Bools ``[num_rows]`` of which ``num_chosen``, or all, are true, at equal distances."""
    steps = np.arange(num_rows + 1) * min(num_chosen, num_rows)
    chosen: npt.NDArray[np.bool_] = np.diff(steps // max(num_rows, 1)) > 0
    return chosen
