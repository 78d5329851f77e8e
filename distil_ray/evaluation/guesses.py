"""Masked sentences, and what models put in the gaps: the figures made visible.

Shapes: B sentences, T pieces, V vocabulary.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.data.hashing import draws, stream_key
from distil_ray.distillation.models import encode, predict

_MIN_WORDS, _MAX_WORDS = 8, 24
_MIN_LETTERS = 4  # of a word worth guessing
_SENTENCE = re.compile(r"[A-Z][^.!?\n]+(?:\n[^.!?\n]+)*[.!?](?=\s|$)")
_PROSE = re.compile(r"[A-Za-z ,;'-]+[.!?]")


class Gap(NamedTuple):
    """A sentence with one word masked: the pieces ``input_ids`` [T], where the gap is, and what stood there."""

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


def make_gaps(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], num_gaps: int, seed: int) -> list[Gap]:
    """Mask one word in each of the first ``num_gaps`` plain sentences, a sentence a document.

    The word is drawn by a hash of the seed from those of four letters or more that are one piece: any model with this
    vocabulary can guess them.
    """
    gaps: list[Gap] = []
    for document in documents:
        sentence = next(_plain_sentences(document), None)
        gap = None if sentence is None else _mask_a_word(tokenizer, sentence, seed, len(gaps))
        if gap is not None:
            gaps.append(gap)
        if len(gaps) == num_gaps:
            break
    return gaps


def _plain_sentences(document: str) -> Iterator[str]:
    """Sentences of ordinary words, without code, figures or markup."""
    for match in _SENTENCE.finditer(document):
        sentence = " ".join(match[0].split())
        if _PROSE.fullmatch(sentence) and _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS:
            yield sentence


def _mask_a_word(tokenizer: PreTrainedTokenizerBase, sentence: str, seed: int, number: int) -> Gap | None:
    encoding = tokenizer(sentence, return_offsets_mapping=True)
    words = encoding.word_ids()
    spans = encoding["offset_mapping"]
    candidates = [
        position
        for position, word in enumerate(words)
        if word is not None and words.count(word) == 1 and _is_worth_guessing(sentence[slice(*spans[position])])
    ]
    if not candidates:
        return None
    word = int(draws(stream_key(seed, "gap"), np.array([number], dtype=np.uint64))[0])
    position = candidates[word % len(candidates)]
    start, stop = spans[position]
    input_ids = list(encoding["input_ids"])
    input_ids[position] = tokenizer.mask_token_id
    text = sentence[start:stop]
    start += len(text) - len(text.lstrip())  # byte-level pieces begin with the blank
    return Gap(input_ids, position, text.strip(), sentence[:start], sentence[stop:])


def _is_worth_guessing(text: str) -> bool:
    word = text.strip()
    return word.isalpha() and len(word) >= _MIN_LETTERS


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
