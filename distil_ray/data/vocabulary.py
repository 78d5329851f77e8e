"""Text -> a BERT WordPiece vocabulary.

The text is read twice, once to count its characters and once to train. The same text gives the same
vocabulary, piece for piece and id for id.
"""

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from distil_ray.data.corpus import Corpus, read_texts
from distil_ray.data.hashing import draws, stream_key
from distil_ray.data.tally import Tally
from distil_ray.data.tokenization import text_slices
from distil_ray.errors import InputError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_SIZE = 100
CHARACTER_COVERAGE = 0.9999  # of all characters read; the rarest become [UNK], so that they take no pieces
_EXPECTED_LOSS = {"LATIN", "GREEK", "COMBINING"}  # scripts of which BERT's users know that accents go
_NOTED_LOSS = 0.001  # of all characters
_NUM_SHOWN_SCRIPTS = 4
_SLICE_CHARACTERS = 2**16  # the trainer holds a few hundred slices at a time


@dataclass
class CharacterCounts:
    """What was read. Of the characters, ``[0x110000]`` counts of each code point, as written and as normalized."""

    documents: Tally = field(default_factory=Tally)
    num_bytes: int = 0
    raw: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(sys.maxunicode + 1, np.int64))
    normalized: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(sys.maxunicode + 1, np.int64))

    @property
    def num_skipped(self) -> int:
        return self.documents.counted["skipped_documents"]

    @property
    def num_documents(self) -> int:
        return self.documents.counted["documents"] - self.num_skipped


def train_vocabulary(
    corpus: Corpus,
    size: int,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    max_bytes: int | None = None,
) -> tuple[dict[str, int], CharacterCounts]:
    """Train a vocabulary of at most `size` pieces: special tokens at ids 0 to 4, characters, longer pieces.

    A quarter of them at most are characters, unless there are too few longer pieces: then further characters follow.

    Args:
        strip_accents: take the marks off letters. None does as `lowercase`.
        max_bytes: stop after so many bytes of text, read from all over the corpus. None reads everything.

    Returns:
        The vocabulary, piece -> id, and what was read.

    Raises:
        InputError: `size` is below 100, or there is no text.
    """
    if size < MIN_SIZE:
        raise InputError(f"a vocabulary of {size} pieces is too small: expected at least {MIN_SIZE}")
    normalizer = BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    counts = CharacterCounts()
    texts = _counted(_texts(corpus, max_bytes, counts.documents), normalizer, counts)
    unmerged = _train(texts, normalizer, size=0, characters=[])
    if counts.num_documents == 0:
        raise InputError(f"no text in {len(corpus.files)} file(s): {counts.num_skipped} documents were skipped")

    # Left to itself, the trainer numbers the characters within a word ("##a") in the order of a hash table
    # with a random seed, and breaks ties between merges by these numbers: two runs differ. So number them.
    by_frequency = _covering(counts.normalized)
    num_first = (size - len(SPECIAL_TOKENS)) // 4
    alphabet = sorted(by_frequency[:num_first])
    continuations = [f"##{character}" for character in alphabet if f"##{character}" in unmerged]
    vocabulary = _train(_texts(corpus, max_bytes), normalizer, size, characters=[*alphabet, *continuations])
    # Where words are single characters, as in Chinese, there is next to nothing to merge.
    for character in by_frequency[num_first:]:
        for piece in (character, f"##{character}"):
            if piece in unmerged and len(vocabulary) < size:
                vocabulary[piece] = len(vocabulary)
    return vocabulary, counts


def _texts(corpus: Corpus, max_bytes: int | None, tally: Tally | None = None) -> Iterator[str]:
    """Yield the documents in slices."""
    units = np.arange(corpus.num_units)
    if max_bytes is not None:
        units = np.argsort(draws(stream_key("vocabulary"), units.astype(np.uint64)), kind="stable")
    num_bytes = 0
    for document in read_texts(corpus, units, tally):
        yield from text_slices(document, _SLICE_CHARACTERS)
        num_bytes += len(document.encode())
        if max_bytes is not None and num_bytes >= max_bytes:
            return


def _counted(texts: Iterable[str], normalizer: BertNormalizer, counts: CharacterCounts) -> Iterator[str]:
    """Yield the texts unchanged, and count their bytes and characters."""
    for text in texts:
        counts.num_bytes += len(text.encode())
        _count_characters(text, counts.raw)
        _count_characters(normalizer.normalize_str(text), counts.normalized)
        yield text


def _count_characters(text: str, counts: npt.NDArray[np.int64]) -> None:
    present, times = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_counts=True)
    counts[present] += times


def _without_blanks(characters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    counts = characters.copy()
    counts[ord(" ")] = 0  # the one space that normalization leaves
    return counts


def _covering(characters: npt.NDArray[np.int64]) -> list[str]:
    """Return the most frequent characters that make up CHARACTER_COVERAGE of the text, the most frequent first."""
    counts = _without_blanks(characters)
    by_frequency = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[by_frequency]) / counts.sum()
    num_characters = int(np.searchsorted(covered, CHARACTER_COVERAGE)) + 1
    return [chr(code_point) for code_point in by_frequency[:num_characters]]


def coverage(counts: CharacterCounts, vocabulary: dict[str, int]) -> tuple[int, int, float]:
    """Return how many different characters there are, how many have a piece, and the others' share of the text."""
    times = _without_blanks(counts.normalized)
    present = np.flatnonzero(times)
    known = [code_point for code_point in present if chr(code_point) in vocabulary]
    return len(present), len(known), 1 - float(times[known].sum() / times.sum())


def lost_marks(counts: CharacterCounts) -> str:
    """What stripping accents takes from scripts in which marks are more than accents; empty if next to nothing."""
    lost: Counter[str] = Counter()
    for code_point in np.flatnonzero(counts.raw):
        decomposed = unicodedata.normalize("NFD", chr(code_point))
        script = unicodedata.name(decomposed[0], "UNNAMED").partition(" ")[0]
        num_marks = sum(unicodedata.category(character) == "Mn" for character in decomposed)
        if script == "HANGUL":
            num_marks = len(decomposed) - 1  # nothing is lost of a syllable, but it becomes two letters or three
        if num_marks and script not in _EXPECTED_LOSS:
            lost[script] += num_marks * int(counts.raw[code_point])
    if sum(lost.values()) <= _NOTED_LOSS * int(counts.raw.sum()):
        return ""
    shown = ", ".join(f"{script.title()} ({count:,})" for script, count in lost.most_common(_NUM_SHOWN_SCRIPTS))
    return (
        f"stripping accents takes marks off letters, or syllables apart, where that makes other words of them: {shown}"
    )


def _train(texts: Iterator[str], normalizer: BertNormalizer, size: int, characters: list[str]) -> dict[str, int]:
    """Return the vocabulary: special tokens, `characters` (or those of the text), up to `size` pieces."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = BertPreTokenizer()
    alphabet = [character for character in characters if len(character) == 1]
    trainer = WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *characters],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet) or sys.maxunicode,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return dict(tokenizer.get_vocab())
