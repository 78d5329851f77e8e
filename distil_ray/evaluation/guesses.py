"""Sentences with one word masked, and what models guess: examples of the figures.

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


class MaskedWord(NamedTuple):
    """A document with one word masked: its pieces ``input_ids`` [T], the ``position`` of the mask, the original word,
    and the sentence ``before`` and ``after`` it.
    """

    input_ids: list[int]
    position: int
    word: str
    before: str
    after: str


class Guess(NamedTuple):
    """A model's best guess, its probability, and whether it is right."""

    word: str
    probability: float
    is_right: bool


def mask_words(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], *, num_words: int, max_tokens: int, seed: int
) -> list[MaskedWord]:
    """Mask one word in a plain sentence of a document, until there are ``num_words``.

    Sentence and word are drawn by a hash of the seed, among words of three letters or more that are one piece, so that
    any model with this vocabulary can guess them. Models see the whole document, truncated to ``max_tokens`` pieces.
    """
    masked: list[MaskedWord] = []
    for number, document in enumerate(documents):
        candidates = list(_candidates(tokenizer, document, max_tokens))
        if candidates:
            draw = int(draws(stream_key(seed, "gap"), np.array([number], dtype=np.uint64))[0])
            masked.append(candidates[draw % len(candidates)])
        if len(masked) == num_words:
            break
    return masked


def _candidates(tokenizer: PreTrainedTokenizerBase, document: str, max_tokens: int) -> Iterator[MaskedWord]:
    """Every word of the document that could be masked."""
    sentences = [match.span() for match in _SENTENCE.finditer(document) if _is_plain(match[0])]
    if not sentences:
        return
    encoding = tokenizer(document, return_offsets_mapping=True, truncation=True, max_length=max_tokens)
    input_ids, words = list(encoding["input_ids"]), encoding.word_ids()
    num_pieces = Counter(words)
    for position, (start, stop) in enumerate(encoding["offset_mapping"]):
        text = document[start:stop]
        start += len(text) - len(text.lstrip())  # byte-level pieces begin with the space
        word = text.strip()
        around = next(((first, last) for first, last in sentences if first <= start and stop <= last), None)
        is_whole = words[position] is not None and num_pieces[words[position]] == 1
        if around and is_whole and word.isalpha() and len(word) >= _MIN_LETTERS:
            with_mask = [*input_ids[:position], tokenizer.mask_token_id, *input_ids[position + 1 :]]
            yield MaskedWord(with_mask, position, word, document[around[0] : start], document[stop : around[1]])


def _is_plain(sentence: str) -> bool:
    """Whether a sentence consists of ordinary words, without code, numbers or markup."""
    sentence = " ".join(sentence.split())
    return _PROSE.fullmatch(sentence) is not None and _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS


@torch.inference_mode()
def guess_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, masked: Iterable[MaskedWord]
) -> list[Guess]:
    """Return the model's best guess for each masked word, at temperature 1."""
    model.train(False)
    guesses = []
    for one in masked:
        hidden = encode(model, torch.tensor([one.input_ids]))
        probabilities = predict(model, hidden[0, one.position : one.position + 1]).float().softmax(-1)[0]
        best = int(probabilities.argmax())
        word = str(tokenizer.decode([best])).strip()
        guesses.append(Guess(word, float(probabilities[best]), word.lower() == one.word.lower()))
    return guesses
