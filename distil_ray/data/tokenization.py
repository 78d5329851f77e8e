"""Documents -> one stream of token ids, by the Rust tokenizer of `tokenizers`, equal to what transformers gives."""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from distil_ray.data.fast_tokenizer import load_fast
from distil_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SLICE_CHARS = 32_768
"""Longest text that the tokenizer gets at once: its memory grows to several hundred bytes per character."""

_MAX_CHARS_PER_CALL = 262_144


_CONTROL_PIECES = ("cls", "sep", "mask", "pad", "bos", "eos", "unk")


@dataclass(frozen=True)
class Vocabulary:
    """What the data plane needs to know of a tokenizer. Cheap to send to another process.

    A text becomes the ids that transformers gives for it, except that a control piece written in it ("[SEP]", "<s>")
    stays text: a corpus must not be able to write those. Other special or added pieces are encoded as usual.

    Attributes:
        tokenizer_json: the serialized `tokenizers.Tokenizer`, in which control pieces alone are special.
        size: V, the largest id + 1, added pieces included.
        special_ids: ids that are never masked and never a random replacement: those of all special pieces, and those
            below V that no piece has.
        fast_package: an installed package that gives the same ids, with its version, see `parity.with_fast_tokenizer`.
            A process in which it is not installed uses `tokenizers`. It is no part of the vocabulary's identity.
    """

    tokenizer_json: str
    size: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    fast_package: str | None = field(default=None, compare=False)

    @classmethod
    def from_pretrained(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """Take over a fast Hugging Face tokenizer that has [CLS], [SEP] and [MASK] (or their like).

        Raises:
            InputError: the tokenizer gives its pieces other ids when it is loaded again.
        """
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        control = control_pieces(tokenizer)
        # A tokenizer set up with `split_special_tokens` takes every special piece in a text for text.
        keeps_special = bool(getattr(tokenizer, "split_special_tokens", False))
        tokenizer_json = _with_control_pieces_as_text(backend.to_str(), control, keeps_special=keeps_special)
        ids = tokenizer.get_vocab()
        _check_ids(ids, _load(tokenizer_json).get_vocab())
        size = id_space(tokenizer)
        holes = set(range(size)).difference(ids.values())
        return cls(
            tokenizer_json=tokenizer_json,
            size=size,
            cls_id=int(tokenizer.cls_token_id),
            sep_id=int(tokenizer.sep_token_id),
            mask_id=int(tokenizer.mask_token_id),
            special_ids=tuple(sorted({*holes, *(int(i) for i in tokenizer.all_special_ids)})),
        )

    @property
    def id_dtype(self) -> np.dtype:
        """uint16 where every id fits, else int32: ids travel in the smallest type."""
        return np.dtype(np.uint16 if self.size <= 65_536 else np.int32)

    @functools.cached_property
    def unk_id(self) -> int | None:
        """Id of the piece that stands for what the tokenizer does not know; None if it knows everything (by bytes)."""
        return _unk_id(self.tokenizer_json)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of everything that decides which ids a text becomes, and which of them are special."""
        values = tuple(getattr(self, one.name) for one in fields(self) if one.compare)
        return hashlib.blake2b(repr(values).encode(), digest_size=16).hexdigest()


def id_space(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The largest id of a tokenizer + 1. `len(tokenizer)` counts pieces: that is less where ids were left out."""
    return max(tokenizer.get_vocab().values()) + 1


def control_pieces(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The pieces that structure a row, and the unknown piece."""
    pieces = (getattr(tokenizer, f"{name}_token", None) for name in _CONTROL_PIECES)
    return {str(piece) for piece in pieces if piece is not None}


def _with_control_pieces_as_text(tokenizer_json: str, control: set[str], *, keeps_special: bool) -> str:
    """Make it impossible for the text "</s>" to become that piece. Every piece keeps its id.

    Control pieces are marked as special; others are no more, so that a text may hold them, unless ``keeps_special``.
    """
    tokenizer = json.loads(tokenizer_json)
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    marks = [token["content"] in control or (keeps_special and token["special"]) for token in added]
    is_marked_so = marks == [token["special"] for token in added]
    for token, is_special in zip(added, marks, strict=True):
        token["special"] = is_special
    special = {token["content"] for token in added if token["special"]}
    # Pieces that the model itself would find get a name that begins with a blank: none is left in what reaches it.
    if model["type"] == "Unigram":
        hidden = special.intersection(piece for piece, _ in model["vocab"])
        model["vocab"] = [[f" {piece}" if piece in hidden else piece, score] for piece, score in model["vocab"]]
    elif hidden := _found_by_model(tokenizer_json, special - {model.get("unk_token")}):
        model["vocab"] = {f" {piece}" if piece in hidden else piece: i for piece, i in model["vocab"].items()}
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if hidden.isdisjoint([*pair, "".join(pair)])]
    elif is_marked_so:
        return tokenizer_json
    # An added piece that the model lacks is numbered by its place: those that others follow have to stay.
    last = max((token["id"] for token in added if not token["special"]), default=-1)
    tokenizer["added_tokens"] = [
        token for token in added if not token["special"] or (token["content"] not in hidden and token["id"] < last)
    ]
    return json.dumps(tokenizer, ensure_ascii=False)


def _found_by_model(tokenizer_json: str, special: set[str]) -> set[str]:
    """The special pieces that a text still becomes if they are not searched for, as the model knows them as words."""
    tokenizer = _load(tokenizer_json)
    contexts = ("{}", "a {} b", "a{}b")
    return {
        piece
        for piece in special
        if tokenizer.model.token_to_id(piece) is not None
        and any(piece in tokenizer.encode(c.format(piece), add_special_tokens=False).tokens for c in contexts)
    }


def _check_ids(expected: dict[str, int], ids: dict[str, int]) -> None:
    """Raise InputError if a piece has another id than expected (control pieces perhaps under another name)."""
    for piece, index in ids.items():
        right = expected.get(piece, expected.get(piece.removeprefix(" ")))
        if index != right:
            raise InputError(
                f"the tokenizer numbers its pieces in a way that does not survive loading it again: {piece!r} has the "
                f"id {right}, then {index}; give its added pieces the ids that follow those of its vocabulary"
            )


@functools.lru_cache(maxsize=2)
def _load(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # what is special, control pieces, is not searched for in a text
    return tokenizer


@functools.lru_cache(maxsize=2)
def _unk_id(tokenizer_json: str) -> int | None:
    model = json.loads(tokenizer_json)["model"]
    if model["type"] == "Unigram":
        unk_id = model.get("unk_id")
        return None if unk_id is None else int(unk_id)
    unk_token = model.get("unk_token")
    return None if unk_token is None else _load(tokenizer_json).token_to_id(unk_token)


def _pieces_over_blanks(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Added pieces that hold a blank, or take one that follows them, in lower case."""
    added = tokenizer.get_added_tokens_decoder().values()
    return tuple(
        token.content.casefold() for token in added if not token.special and (token.rstrip or " " in token.content)
    )


def text_slices(text: str, max_chars: int = MAX_SLICE_CHARS, *, uncut: Sequence[str] = ()) -> Iterator[str]:
    """Cut a long text before a single blank between two words, where no tokenizer joins pieces.

    The blank starts the next slice, as byte-level vocabularies expect. A word longer than ``max_chars`` is cut hard.
    No cut is made within or right after one of the strings ``uncut``, which are in lower case.
    """
    start = 0
    while len(text) - start > max_chars:
        stop = start + max_chars
        cut = _last_word_boundary(text, start, stop, uncut)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _last_word_boundary(text: str, start: int, stop: int, uncut: Sequence[str]) -> int:
    cut = text.rfind(" ", start + 1, stop)
    while cut > start and (
        text[cut - 1].isspace()
        or text[cut + 1].isspace()
        or any(piece in text[max(cut - len(piece), 0) : cut + len(piece) - 1].casefold() for piece in uncut)
    ):
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
    encode = _encoder(vocabulary)
    stream = bytearray()  # grows in place, where a list of arrays would have to be copied into one
    sep = np.array([vocabulary.sep_id], dtype=vocabulary.id_dtype).tobytes()
    document_is_empty = True
    for batch in _batches(documents, _pieces_over_blanks(tokenizer)):
        encoded = iter(encode([part for part in batch if part]))
        for part in batch:
            if part:
                ids = next(encoded)
                stream += np.array(ids, dtype=vocabulary.id_dtype).tobytes()
                document_is_empty = document_is_empty and not len(ids)
            else:
                stream += b"" if document_is_empty else sep
                document_is_empty = True
    return np.frombuffer(stream, dtype=vocabulary.id_dtype)


def _encoder(vocabulary: Vocabulary) -> Callable[[list[str]], Iterable[Sequence[int] | npt.NDArray[np.integer]]]:
    """Texts -> the ids of each; the fast package's where that is installed in the version that was compared."""
    json, package = vocabulary.tokenizer_json, vocabulary.fast_package
    fast = load_fast(json, package) if package else None
    slow = _load(json)
    return fast or (lambda texts: (one.ids for one in slow.encode_batch_fast(texts, add_special_tokens=False)))


def _batches(documents: Iterable[str], uncut: Sequence[str]) -> Iterator[list[str]]:
    """Cut documents into slices, each document followed by an empty one, and collect these into calls."""
    batch: list[str] = []
    num_chars = 0
    for text in documents:
        for part in itertools.chain(text_slices(text, uncut=uncut), [""]):
            batch.append(part)
            num_chars += len(part)
            if num_chars >= _MAX_CHARS_PER_CALL:
                yield batch
                batch, num_chars = [], 0
    if batch:
        yield batch
