"""A faster package is used only where it gives the same ids, and changes no row, whoever has it."""

import importlib.metadata
import json
import pickle
import sys
import unicodedata
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizer_zoo import CONTROL_TEXTS, HOSTILE_TEXTS, TEXTS, ZOO, unigram, wordpiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from distil_ray.data.fast_tokenizer import installed_package, load_fast
from distil_ray.data.parity import with_fast_tokenizer
from distil_ray.data.rows import RowSettings, make_rows
from distil_ray.data.tally import Tally
from distil_ray.data.tokenization import MAX_SLICE_CHARS, Vocabulary, token_stream

SETTINGS = RowSettings(max_seq_length=20, mlm_probability=0.15, mask_replace_prob=0.8, random_replace_prob=0.1, seed=7)


@pytest.fixture
def vocabulary():
    return Vocabulary.from_pretrained(wordpiece())


@pytest.fixture
def package(monkeypatch):
    """Installs a package that tokenizes as `tokenizers` does, and returns it; its ids can be changed."""
    load_fast.cache_clear()
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "nanotoken" else version(name))

    class WordPieceTokenizer:
        calls = 0
        spoil = staticmethod(lambda text, ids: ids)

        @classmethod
        def from_json(cls, tokenizer_json):
            one = cls()
            one.tokenizer = Tokenizer.from_str(tokenizer_json)
            return one

        def encode_batch(self, texts, *, add_special_tokens, parallel):
            assert not add_special_tokens
            assert not parallel
            type(self).calls += 1
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ids = [self.spoil(text, one.ids) for text, one in zip(texts, encodings, strict=True)]
            edges = np.cumsum([0, *map(len, ids)])
            return np.concatenate([np.array(some, np.uint32) for some in ids]), edges

    monkeypatch.setitem(
        sys.modules,
        "nanotoken",
        SimpleNamespace(WordPieceTokenizer=WordPieceTokenizer, set_cache_entries=lambda entries: None),
    )
    yield WordPieceTokenizer
    load_fast.cache_clear()


def rows_of(vocabulary):
    texts = [*TEXTS, *HOSTILE_TEXTS, *CONTROL_TEXTS, "a long word " * (MAX_SLICE_CHARS // 6)]
    return make_rows(texts, Tally(), vocabulary, SETTINGS, split="train", group=0)


def check_equal_rows(vocabulary, other):
    expected, rows = rows_of(vocabulary), rows_of(other)
    assert expected.keys() == rows.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values)
        assert rows[name].dtype == values.dtype


def test_a_package_that_gives_the_same_ids_is_used_and_changes_no_row_and_no_identity(vocabulary, package):
    fast, line = with_fast_tokenizer(vocabulary, TEXTS)
    assert line == (
        "tokenizer: nanotoken 9.9 is used: it gives the same ids for a sample of the text and for hard strings"
    )
    assert fast.fast_package == "nanotoken 9.9"
    assert (fast, fast.digest) == (vocabulary, vocabulary.digest)
    calls = package.calls
    check_equal_rows(vocabulary, fast)
    assert package.calls > calls


@pytest.mark.parametrize(
    ("is_spoilt", "texts", "shown"),
    [
        (lambda text: "crème" in text, ["brûlée", "a crème brûlée"], "'crème'"),  # in the run's own text
        (lambda text: "\u2126" in text, TEXTS, r"'\u2126'"),  # in one of the hostile strings
        (lambda text: "a\U0001f9ffb" in text, TEXTS, "'a🧿b'"),  # a single character out of all
        (lambda text: "x" * 101 in text, TEXTS, f"'{'x' * 40}…'"),
    ],
)
def test_a_package_that_gives_other_ids_is_not_used(vocabulary, package, is_spoilt, texts, shown):
    package.spoil = staticmethod(lambda text, ids: ids[:-1] if is_spoilt(text) else ids)
    other, line = with_fast_tokenizer(vocabulary, texts)
    assert line == f"tokenizer: nanotoken 9.9 is not used: it gives other ids for {shown}".replace(r"\u2126", "\u2126")
    assert other is vocabulary
    calls = package.calls
    rows_of(other)
    assert package.calls == calls


def test_a_package_that_fails_is_not_used(vocabulary, package):
    def fail(text, ids):
        raise ValueError("no such normalizer")

    package.spoil = staticmethod(fail)
    assert with_fast_tokenizer(vocabulary, TEXTS) == (
        vocabulary,
        "tokenizer: nanotoken 9.9 cannot be used for this one: no such normalizer",
    )


def test_a_node_without_the_package_or_with_another_version_makes_the_same_rows(vocabulary, package, monkeypatch):
    fast, _ = with_fast_tokenizer(vocabulary, TEXTS)
    sent = pickle.loads(pickle.dumps(fast))
    assert sent.fast_package == "nanotoken 9.9"

    calls = package.calls
    load_fast.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "9.10")
        check_equal_rows(vocabulary, sent)
    load_fast.cache_clear()
    monkeypatch.setitem(sys.modules, "nanotoken", None)  # its import fails
    check_equal_rows(vocabulary, sent)
    assert package.calls == calls
    assert with_fast_tokenizer(vocabulary, TEXTS) == (vocabulary, None)


def test_other_kinds_of_tokenizers_have_no_package(package):
    assert with_fast_tokenizer(Vocabulary.from_pretrained(unigram()), TEXTS)[1] is None


# --- With the package itself


@pytest.fixture(params=[name for name in ZOO if "wordpiece" in name or name in ("special in the file alone", "holes")])
def in_zoo(request, tmp_path):
    pytest.importorskip("nanotoken", reason="needs the extra `fast`")
    ZOO[request.param](tmp_path / "tokenizer")
    return Vocabulary.from_pretrained(AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))


def test_the_package_gives_the_same_ids_for_hostile_texts_and_every_character(in_zoo):
    fast = replace(in_zoo, fast_package=installed_package(in_zoo.tokenizer_json))
    assert load_fast(fast.tokenizer_json, fast.fast_package) is not None
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Co", "Cn")]
    texts = [f"a{c}b {c} A{c}e{c}{c}" for c in characters[::5]] + [f"{c}{c}" for c in characters]
    for text in [*HOSTILE_TEXTS, *CONTROL_TEXTS, *(f"a {text} b" for text in CONTROL_TEXTS)]:
        assert token_stream(fast, [text]).tolist() == token_stream(in_zoo, [text]).tolist(), text
    np.testing.assert_array_equal(token_stream(fast, texts), token_stream(in_zoo, texts))
    check_equal_rows(in_zoo, fast)


def test_the_package_is_used_for_berts_tokenizer(in_zoo):
    fast, line = with_fast_tokenizer(in_zoo, TEXTS)
    assert "is used" in line
    assert fast.fast_package


def test_the_package_is_not_used_for_a_part_that_it_does_not_implement(vocabulary):
    pytest.importorskip("nanotoken", reason="needs the extra `fast`")
    state = json.loads(vocabulary.tokenizer_json)
    state["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
    other = replace(vocabulary, tokenizer_json=json.dumps(state))
    assert with_fast_tokenizer(other, TEXTS)[0] is other
    assert "cannot be used for this one: unsupported tokenizer" in with_fast_tokenizer(other, TEXTS)[1]
