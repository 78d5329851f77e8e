"""A faster package in place of `tokenizers`, where it is installed and implements a tokenizer: WordPiece, that is.

It changes no id: `parity.with_fast_tokenizer` compares the two first. `pip install 'distil-ray[fast]'` installs it.
"""

import functools
import importlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

PACKAGE = "nanotoken"

Encode = Callable[[Sequence[str]], Sequence[npt.NDArray[np.integer]]]
"""Texts -> the ids of each, without control pieces."""

_CACHED_WORDS = 2**16
"""Words whose ids a process keeps, in some 20 MB; the package's own limit takes up to 130 MB."""


def installed_package(tokenizer_json: str) -> str | None:
    """Name and version of the installed package that is made for this kind of tokenizer; None if there is none."""
    if json.loads(tokenizer_json)["model"]["type"] != "WordPiece":
        return None
    try:
        importlib.import_module(PACKAGE)
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except ImportError:
        return None


@functools.lru_cache(maxsize=2)
def load_fast(tokenizer_json: str, package: str) -> Encode | None:
    """Load a tokenizer into a package; None where that is not installed, or in another version.

    Raises:
        ValueError: the package does not implement the tokenizer.
    """
    if installed_package(tokenizer_json) != package:
        return None
    nanotoken = importlib.import_module(PACKAGE)
    state = json.loads(tokenizer_json)
    # Those that are special, control pieces, are not searched for in a text.
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    nanotoken.set_cache_entries(_CACHED_WORDS)
    tokenizer = nanotoken.WordPieceTokenizer.from_json(json.dumps(state | {"post_processor": None, "decoder": None}))

    def encode(texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        ids, offsets = tokenizer.encode_batch(texts, add_special_tokens=False, parallel=False)
        return [ids[start:stop] for start, stop in itertools.pairwise(offsets.tolist())]

    return encode
