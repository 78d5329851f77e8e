"""Whether text becomes the same ids here, in transformers and in a faster package, tried before the first step."""

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from distil_ray.data.fast_tokenizer import installed_package
from distil_ray.data.tokenization import Vocabulary, control_pieces, token_stream
from distil_ray.errors import InputError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_CHARS = 100_000  # of a text: several slices
_SHOWN_CHARS = 40


def check_parity(tokenizer: "PreTrainedTokenizerBase", vocabulary: Vocabulary, texts: Iterable[str]) -> int:
    """Refuse a tokenizer whose rows would not be what transformers gives for the same texts.

    Control pieces written in a text are taken out of it first: there the two differ by intent. Of long texts the
    beginning is compared.

    Returns:
        The number of texts that were compared.

    Raises:
        InputError: with the first text that differs, and the piece that either gives there.
    """
    control = control_pieces(tokenizer)
    written = re.compile("|".join(re.escape(piece) for piece in sorted(control, key=len, reverse=True)), re.IGNORECASE)
    # The unknown piece is no sign of a control piece: it stands for characters that the vocabulary lacks, too.
    forbidden = {tokenizer.convert_tokens_to_ids(piece) for piece in control} - {tokenizer.unk_token_id}
    num_compared = 0
    for text in texts:
        plain = text[:_MAX_CHARS]
        while written.search(plain):
            plain = written.sub(" ", plain)
        encoded = tokenizer(plain, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        expected = list(encoded["input_ids"])
        if forbidden.intersection(expected):  # a control piece in other letters, such as full-width ones
            continue
        num_compared += 1
        ids = token_stream(vocabulary, [plain]).tolist()[:-1]
        if ids != expected:
            raise InputError(_difference(tokenizer, plain, expected, ids))
    return num_compared


def _difference(tokenizer: "PreTrainedTokenizerBase", text: str, expected: list[int], ids: list[int]) -> str:
    def shown(index: int | None) -> str:
        return "nothing" if index is None else f"{tokenizer.convert_ids_to_tokens(index)!r} (id {index})"

    place, (right, wrong) = next(
        (place, pair) for place, pair in enumerate(itertools.zip_longest(expected, ids)) if pair[0] != pair[1]
    )
    around = tokenizer.decode(expected[max(place - 5, 0) : place + 5])
    return (
        f"the tokenizer does not give the same pieces here as in transformers: of the text {_beginning(text)}, piece "
        f"{place:,} (near {around!r}) is {shown(right)} in transformers and {shown(wrong)} here; use a tokenizer with "
        "a tokenizer.json that `tokenizers` and transformers read alike"
    )


def _beginning(text: str) -> str:
    return repr(text[:_SHOWN_CHARS] + ("…" if len(text) > _SHOWN_CHARS else ""))


_HOSTILE_TEXTS = (
    "It's 1,234.5 -- don't! (e-mail: a_b@c.org) #tag $x^2 ''\"\"`` ##ing @-@ ... ,,,, [ MASK ] < s > \\n",
    " leading, trailing and  double   blanks \u00a0 \u1680 \u2007 \u3000 \u2028 \t\t\n\n\r\n\x0b \x0c\x1c \x85 end ",
    "nul \x00 bell\x07 a\x00b\x0bc\x0cd \u200bzero\u200bwidth\u200djoiner\u2060 \ufeff soft\u00adhyphen \u202e \ufffd",
    "Cafe\u0301 nai\u0308ve \u0301alone a\u0315\u0300\u05ae\u0327b q\u0307\u0323 \u1e9b\u0323 \u212b \u2126 \u0958",
    "\ufb01ne \ufb03 \u2460 \u00bd \u3300 \uff26\uff35\uff2c\uff2c \uff76\uff9e \u01c5 \u1e9e \u00df \u0149 \u0f73",
    "\u0130stanbul \u0131 I\u0307 \u039f\u0394\u039f\u03a3 \u03a3 \u03c2 \u0391\u03a3\u0391 \u1f88 \u00b5",
    "\u4f60\u597d\u4e16\u754c a\u4f60b \u304b\u3099\u304c \uc548\ub155 \u1112\u1161\u11ab \U00020000\U0002f800 \u3007",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0639\u064e\u0631\u064e\u0628\u0650",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f 1\ufe0f\u20e3",
    "\ue000 \uf8ff \ufdd0 \ufffe \uffff \U0001ffff \U000e0001\U000e0041 \U0010fffd \u0378",
)
_WORD_LENGTHS = (16, 99, 100, 101, 102, 200, 5000)  # a word of more characters than a vocabulary says is unknown
_CODE_POINTS = (  # all of the small alphabets, signs and emoji; some of those with thousands of letters alike
    *range(0x3400),
    *range(0x3400, 0xD800, 11),
    *range(0xF900, 0x10000),
    *range(0x10000, 0x1F000, 7),
    *range(0x1F000, 0x1FB00),
    *range(0x1FB00, 0x110000, 997),
)
_AT_ONCE = 256
_MAX_PIECES, _MAX_ADDED, _NUM_RANDOM = 10_000, 500, 500


def with_fast_tokenizer(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[Vocabulary, str | None]:
    """Let the installed package that implements the tokenizer be used, if it gives the ids that `tokenizers` gives.

    They are compared on ``texts`` and on strings that are hard to get right: takes well under a second.

    Args:
        texts: a sample of what will be tokenized.

    Returns:
        The vocabulary, and a line for the user that says what is used; None if no such package is installed.
    """
    package = installed_package(vocabulary.tokenizer_json)
    if package is None:
        return vocabulary, None
    fast = replace(vocabulary, fast_package=package)
    try:
        tried = itertools.chain(texts, _hostile_texts(vocabulary))
        differing = next((text for text in tried if not _is_alike(vocabulary, fast, text)), None)
    except Exception as error:  # the package's own, of any type
        return vocabulary, f"tokenizer: {package} cannot be used for this one: {reason_of(error)}"
    if differing is None:
        return (
            fast,
            f"tokenizer: {package} is used: it gives the same ids for a sample of the text and for hard strings",
        )
    word = next((word for word in differing.split() if not _is_alike(vocabulary, fast, word)), differing)
    return vocabulary, f"tokenizer: {package} is not used: it gives other ids for {_beginning(word)}"


def _is_alike(vocabulary: Vocabulary, fast: Vocabulary, text: str) -> bool:
    return np.array_equal(token_stream(vocabulary, [text]), token_stream(fast, [text]))


def _hostile_texts(vocabulary: Vocabulary) -> Iterator[str]:
    """Texts on which tokenizers come to differ: kinds of characters, the vocabulary's own pieces, chance."""
    yield from _HOSTILE_TEXTS
    yield " ".join(letter * length for length in _WORD_LENGTHS for letter in ("x", "\u00e9", "e\u0301", "\u4e00", "!"))
    for start in range(0, len(_CODE_POINTS), _AT_ONCE):
        yield " ".join(f"a{chr(code)}b" for code in _CODE_POINTS[start : start + _AT_ONCE])
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json)
    for token in itertools.islice(tokenizer.get_added_tokens_decoder().values(), _MAX_ADDED):
        piece = token.content
        yield f"{piece} a{piece}b {piece.upper()}{piece.lower()}, {piece}"
    rng = random.Random(0)
    pieces = [piece.removeprefix("##") for piece in sorted(tokenizer.get_vocab())]
    rng.shuffle(pieces)
    for start in range(0, min(len(pieces), _MAX_PIECES), _AT_ONCE):
        some = pieces[start : start + _AT_ONCE]
        yield " ".join([*some, *map("".join, itertools.pairwise(some))])
    characters = "".join(_HOSTILE_TEXTS)
    yield from ("".join(rng.choices(characters, k=50)) for _ in range(_NUM_RANDOM))
