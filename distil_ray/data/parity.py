"""Whether a text becomes the same ids here and in transformers, asked of texts and not of settings."""

import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING

from distil_ray.data.tokenization import Vocabulary, control_pieces, token_stream
from distil_ray.errors import InputError

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
        (place, pair) for place, pair in enumerate(zip_longest(expected, ids)) if pair[0] != pair[1]
    )
    around = tokenizer.decode(expected[max(place - 5, 0) : place + 5])
    beginning = text[:_SHOWN_CHARS] + ("…" if len(text) > _SHOWN_CHARS else "")
    return (
        f"the tokenizer does not give the same pieces here as in transformers: of the text {beginning!r}, piece "
        f"{place:,} (near {around!r}) is {shown(right)} in transformers and {shown(wrong)} here; use a tokenizer with "
        "a tokenizer.json that `tokenizers` and transformers read alike"
    )
