"""The whole plan of a run's data, worked out before anything is read: what, in which order, masked how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distil_ray.data.corpus import Corpus, Source, explain_difference, list_corpus
from distil_ray.data.hashing import draws, stream_key
from distil_ray.data.rows import RowSettings
from distil_ray.data.schedule import Schedule, split_units
from distil_ray.data.tokenization import Vocabulary
from distil_ray.errors import InputError

MAX_HELDOUT_UNITS = 64
"""Held-out rows come from at most so many units, an equal share from each."""


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

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able identity of corpus and tokenizer; a run goes on only with the same one."""
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
) -> DataPlan:
    """List the corpus, split it and lay out its groups. Reads file footers, no text.

    Raises:
        InputError: a source is unusable, or nothing is left to train on.
    """
    corpus = list_corpus(sources, on_bad_file=on_bad_file)
    if eval_sources is None:
        eval_corpus = corpus
        train_units, eval_units = split_units(corpus.unit_bytes, eval_fraction, settings.seed)
    else:
        eval_corpus = list_corpus(eval_sources, on_bad_file=on_bad_file)
        train_units, eval_units = np.arange(corpus.num_units), np.arange(eval_corpus.num_units)
    if corpus.num_units == 0:
        raise InputError("data.sources: every file was left out, so there is nothing to train on")
    order = draws(stream_key(settings.seed, "heldout"), eval_units.astype(np.uint64))
    return DataPlan(
        corpus=corpus,
        schedule=Schedule(train_units, corpus.unit_bytes[train_units], seed=settings.seed, num_epochs=num_epochs),
        eval_corpus=eval_corpus,
        eval_units=eval_units[np.argsort(order)][:MAX_HELDOUT_UNITS],
        vocabulary=vocabulary,
        settings=settings,
        skip_bad_files=on_bad_file == "skip",
    )


def explain_fingerprints(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words what differs between two fingerprints; an empty list if nothing does."""
    reasons = [
        f"{name}: {reason}" for name in ("corpus", "eval_corpus") for reason in explain_difference(old[name], new[name])
    ]
    if old["tokenizer"] != new["tokenizer"]:
        reasons.append("tokenizer: it maps text to other ids than before")
    return reasons
