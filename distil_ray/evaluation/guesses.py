"""Masked sentences, and what models put in the gaps: the figures made visible.

Shapes: B sentences, T pieces, V vocabulary.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.data.hashing import draws, stream_key
from distil_ray.models.loading import encode, predict

_MIN_WORDS, _MAX_WORDS = 8, 24  # of a sentence
_MIN_LETTERS = 3  # of a word worth guessing
_SENTENCE = re.compile(r"[A-Z][^.!?\n]+(?:\n[^.!?\n]+)*[.!?](?=\s|$)")
_PROSE = re.compile(r"[A-Za-z ,;'-]+[.!?]")


class Gap(NamedTuple):
    """A document with one word masked: its pieces ``input_ids`` [T], where the gap is, what stood there, and the
    sentence ``before`` and ``after`` it.
    """

    input_ids: list[int]
    position: int
    word: str
    before: str
    after: str


class Guess(NamedTuple):
    """A model's best guess for a gap, the probability that it gives to it, and whether it is right."""

    word: str
    probability: float
    is_right: bool


def make_gaps(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], *, num_gaps: int, max_tokens: int, seed: int
) -> list[Gap]:
    """Mask one word in a plain sentence of a document, until there are ``num_gaps``.

    Sentence and word are drawn by a hash of the seed, the word from those of three letters or more that are one piece:
    any model with this vocabulary can guess them. Models see the whole document, cut at ``max_tokens`` pieces.
    """
    gaps: list[Gap] = []
    for number, document in enumerate(documents):
        candidates = list(_candidates(tokenizer, document, max_tokens))
        if candidates:
            draw = int(draws(stream_key(seed, "gap"), np.array([number], dtype=np.uint64))[0])
            gaps.append(candidates[draw % len(candidates)])
        if len(gaps) == num_gaps:
            break
    return gaps


def _candidates(tokenizer: PreTrainedTokenizerBase, document: str, max_tokens: int) -> Iterator[Gap]:
    """Every gap that could be made in the document."""
    sentences = [match.span() for match in _SENTENCE.finditer(document) if _is_plain(match[0])]
    if not sentences:
        return
    encoding = tokenizer(document, return_offsets_mapping=True, truncation=True, max_length=max_tokens)
    input_ids, words = list(encoding["input_ids"]), encoding.word_ids()
    num_pieces = Counter(words)
    for position, (start, stop) in enumerate(encoding["offset_mapping"]):
        text = document[start:stop]
        start += len(text) - len(text.lstrip())  # byte-level pieces begin with the blank
        word = text.strip()
        around = next(((first, last) for first, last in sentences if first <= start and stop <= last), None)
        is_whole = words[position] is not None and num_pieces[words[position]] == 1
        if around and is_whole and word.isalpha() and len(word) >= _MIN_LETTERS:
            masked = [*input_ids[:position], tokenizer.mask_token_id, *input_ids[position + 1 :]]
            yield Gap(masked, position, word, document[around[0] : start], document[stop : around[1]])


def _is_plain(sentence: str) -> bool:
    """Whether it consists of ordinary words, without code, figures or markup."""
    sentence = " ".join(sentence.split())
    return _PROSE.fullmatch(sentence) is not None and _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS


@torch.inference_mode()
def fill_gaps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gaps: Iterable[Gap]) -> list[Guess]:
    """Return the model's best guess for each gap, at temperature 1."""
    model.train(False)
    guesses = []
    for gap in gaps:
        hidden = encode(model, torch.tensor([gap.input_ids]))
        probabilities = predict(model, hidden[0, gap.position : gap.position + 1]).float().softmax(-1)[0]
        best = int(probabilities.argmax())
        word = str(tokenizer.decode([best])).strip()
        guesses.append(Guess(word, float(probabilities[best]), word.lower() == gap.word.lower()))
    return guesses
