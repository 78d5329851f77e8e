"""Documents -> one stream of token ids, through the Rust tokenizer of `tokenizers`."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SLICE_CHARS = 32_768
"""Longest text that the tokenizer gets at once: its memory grows to several hundred bytes a character."""

_MAX_CHARS_PER_CALL = 262_144


@dataclass(frozen=True)
class Vocabulary:
    """What the data plane needs to know of a tokenizer. Cheap to send to another process.

    Attributes:
        tokenizer_json: the serialised `tokenizers.Tokenizer`.
        size: number of pieces V, added ones included.
        special_ids: ids of all special pieces (never masked, never a random replacement).
    """

    tokenizer_json: str
    size: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    @classmethod
    def from_pretrained(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """Take over a fast Hugging Face tokenizer that has [CLS], [SEP] and [MASK] (or their like)."""
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return cls(
            tokenizer_json=_without_control_pieces(backend.to_str()),
            size=len(tokenizer),
            cls_id=int(tokenizer.cls_token_id),
            sep_id=int(tokenizer.sep_token_id),
            mask_id=int(tokenizer.mask_token_id),
            special_ids=tuple(sorted(int(i) for i in tokenizer.all_special_ids)),
        )

    @property
    def id_dtype(self) -> np.dtype:
        """uint16 where every id fits, else int32: ids travel in the smallest type."""
        return np.dtype(np.uint16 if self.size <= 65_536 else np.int32)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of everything that decides which ids a text becomes, and which of them are special."""
        return hashlib.blake2b(repr(astuple(self)).encode(), digest_size=16).hexdigest()


def _without_control_pieces(tokenizer_json: str) -> str:
    """Make it impossible for a Unigram model to find the text "</s>" among its pieces; others cannot anyway."""
    tokenizer = json.loads(tokenizer_json)
    model = tokenizer["model"]
    if model["type"] != "Unigram":
        return tokenizer_json
    control = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    # The pieces keep their ids under a name that begins with a blank: no blank is left in what reaches the model.
    model["vocab"] = [[f" {piece}" if piece in control else piece, score] for piece, score in model["vocab"]]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if not token["special"]]
    return json.dumps(tokenizer, ensure_ascii=False)


@functools.lru_cache(maxsize=2)
def _load(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    # The text "[SEP]" in a document is text: a corpus must not be able to write control pieces.
    tokenizer.encode_special_tokens = True
    return tokenizer


def text_slices(text: str, max_chars: int = MAX_SLICE_CHARS) -> Iterator[str]:
    """Cut a long text before a single blank between two words, where no tokenizer joins pieces.

    The blank starts the next slice, as byte-level vocabularies expect. A word longer than ``max_chars`` is cut hard.
    """
    start = 0
    while len(text) - start > max_chars:
        stop = start + max_chars
        cut = _last_word_boundary(text, start, stop)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _last_word_boundary(text: str, start: int, stop: int) -> int:
    cut = text.rfind(" ", start + 1, stop)
    while cut > start and (text[cut - 1].isspace() or text[cut + 1].isspace()):
        cut = text.rfind(" ", start + 1, cut)
    return cut if cut > start else stop


def token_stream(vocabulary: Vocabulary, documents: Iterable[str]) -> npt.NDArray[np.integer]:
    """Tokenize documents into one stream, each followed by [SEP].

    Args:
        vocabulary: the tokenizer to use.
        documents: texts of any length; long ones are tokenized in slices, so memory stays bounded.

    Returns:
        ids ``[num_tokens]`` of dtype ``vocabulary.id_dtype``. A document without pieces leaves nothing.
    """
    tokenizer = _load(vocabulary.tokenizer_json)
    marked = ((part, is_last) for text in documents for part, is_last in _mark_last(text_slices(text)))
    stream = bytearray()  # grows in place, where a list of arrays would have to be copied into one
    sep = np.array([vocabulary.sep_id], dtype=vocabulary.id_dtype).tobytes()
    document_is_empty = True
    for batch in _batched(marked):
        encodings = tokenizer.encode_batch_fast([part for part, _ in batch], add_special_tokens=False)
        for encoding, (_, is_last) in zip(encodings, batch, strict=True):
            ids = encoding.ids
            if ids:
                stream += np.array(ids, dtype=vocabulary.id_dtype).tobytes()
                document_is_empty = False
            if is_last:
                if not document_is_empty:
                    stream += sep
                document_is_empty = True
    return np.frombuffer(stream, dtype=vocabulary.id_dtype)


def _batched(marked: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Collect slices into calls of about `_MAX_CHARS_PER_CALL` characters."""
    batch: list[tuple[str, bool]] = []
    num_chars = 0
    for part, is_last in marked:
        batch.append((part, is_last))
        num_chars += len(part)
        if num_chars >= _MAX_CHARS_PER_CALL:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _mark_last(parts: Iterator[str]) -> Iterator[tuple[str, bool]]:
    previous = next(parts)
    for part in parts:
        yield previous, False
        previous = part
    yield previous, True
