"""Text to ids: what `tokenizers` itself says, whatever the length of the document."""

import dataclasses
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from tokenizer_zoo import BERT_TOKENS, TEXTS, byte_level, unigram, wordpiece
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertTokenizer

from distil_ray.data import tokenization
from distil_ray.data.tokenization import MAX_SLICE_CHARS, Vocabulary, text_slices, token_stream


@pytest.fixture(scope="module", params=[wordpiece, byte_level, unigram], ids=lambda make: make.__name__)
def tokenizer(request):
    return request.param()


@pytest.fixture
def vocabulary(tokenizer):
    return Vocabulary.from_pretrained(tokenizer)


def encode(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def random_text(rng, num_words):
    """Words of the texts with single blanks and all other kinds of white space between them."""
    words = " ".join(TEXTS[:4]).split()
    others = ["  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\u00a0", " \u00a0", "\u3000", "\r\n", "\x1c"]
    separators = [" "] * 2 * len(others) + others
    return "".join(rng.choice(words) + rng.choice(separators) for _ in range(num_words))


def test_the_stream_is_each_document_and_a_separator(tokenizer, vocabulary):
    documents = [*TEXTS[:4], " leading and trailing ", random_text(random.Random(0), 500)]
    expected = [i for text in documents for i in [*encode(tokenizer, text), tokenizer.sep_token_id]]
    assert token_stream(vocabulary, documents).tolist() == expected
    assert token_stream(vocabulary, iter(documents)).tolist() == expected


def test_a_document_in_slices_gives_the_same_ids(tokenizer, vocabulary, monkeypatch):
    rng = random.Random(0)
    for trial in range(30):
        text = random_text(rng, 200)
        expected = token_stream(vocabulary, [text])
        max_chars = rng.choice([120, 200, 400])
        slices = list(text_slices(text, max_chars))
        assert len(slices) > 2
        assert all(part.startswith(" ") for part in slices[1:])  # none was cut hard
        with monkeypatch.context() as patch:
            patch.setattr(tokenization.text_slices, "__defaults__", (max_chars,))
            patch.setattr(tokenization, "_MAX_CHARS_PER_CALL", rng.choice([1, 300]))
            assert (token_stream(vocabulary, [text]) == expected).all(), trial


def test_long_documents_between_short_ones(tokenizer, vocabulary):
    documents = ["short", random_text(random.Random(1), MAX_SLICE_CHARS // 2), "also short", "x"]
    assert len(documents[1]) > 2 * MAX_SLICE_CHARS
    expected = [i for text in documents for i in [*encode(tokenizer, text), tokenizer.sep_token_id]]
    assert token_stream(vocabulary, documents).tolist() == expected


def test_slices_lose_nothing_and_keep_to_their_length():
    rng = random.Random(2)
    texts = [
        "",
        "a",
        "a" * 1000,
        " " * 1000,
        "a  " * 400,
        "aa " * 400,
        "a\n" * 500,
        *(random_text(rng, 99) for _ in range(9)),
    ]
    for text in texts:
        for max_chars in (1, 2, 7, 64, 5000):
            parts = list(text_slices(text, max_chars))
            assert "".join(parts) == text
            assert max(map(len, parts)) <= max_chars
            assert len(parts) == 1 or all(parts)


def test_slices_are_cut_before_a_single_blank():
    assert list(text_slices("one two  three", 8)) == ["one", " two  th", "ree"]
    assert list(text_slices("one two  three", 9)) == ["one", " two  thr", "ee"]
    assert list(text_slices("one two three four", 9)) == ["one two", " three", " four"]


def test_special_pieces_in_a_text_are_text(tokenizer, vocabulary):
    text = " ".join(f"a {token} b{token}c" for token in tokenizer.all_special_tokens)
    assert set(encode(tokenizer, text)) & set(tokenizer.all_special_ids)
    # A character that the vocabulary lacks is the unknown piece in any text.
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    *ids, last = token_stream(vocabulary, [text]).tolist()
    assert not control.intersection(ids)
    assert last == vocabulary.sep_id


def test_documents_without_pieces_leave_nothing(tokenizer, vocabulary):
    blanks = [text for text in ("", " ", "\n\t") if not encode(tokenizer, text)]  # byte-level ones have pieces for them
    expected = token_stream(vocabulary, ["one", "two"]).tolist()
    assert token_stream(vocabulary, [*blanks, "one", *blanks, "two", *blanks]).tolist() == expected
    for documents in ([], [""], blanks):
        stream = token_stream(vocabulary, documents)
        assert (stream.shape, stream.dtype) == ((0,), np.uint16)


def test_a_vocabulary_is_taken_over_whole(tokenizer, vocabulary):
    special = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    assert (vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id) == special
    assert vocabulary.size == len(tokenizer)
    assert vocabulary.special_ids == tuple(sorted(tokenizer.all_special_ids))


@pytest.mark.parametrize("make", [wordpiece, byte_level])
def test_an_ordinary_tokenizer_is_taken_over_as_it_is(make):
    """Runs that were started earlier resume only with the same digest."""
    tokenizer = make()
    vocabulary = Vocabulary.from_pretrained(tokenizer)
    assert vocabulary.tokenizer_json == tokenizer.backend_tokenizer.to_str()
    assert vocabulary.special_ids == tuple(sorted(tokenizer.all_special_ids))


def test_truncation_and_padding_of_the_tokenizer_are_ignored():
    tokenizer = wordpiece()
    expected = token_stream(Vocabulary.from_pretrained(tokenizer), TEXTS)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    assert len(encode(tokenizer, TEXTS[0])) == 20
    assert (token_stream(Vocabulary.from_pretrained(tokenizer), TEXTS) == expected).all()


@pytest.mark.parametrize(("size", "dtype"), [(100, np.uint16), (65_536, np.uint16), (65_537, np.int32)])
def test_ids_travel_in_the_smallest_type(size, dtype):
    vocabulary = dataclasses.replace(Vocabulary.from_pretrained(wordpiece()), size=size)
    assert token_stream(vocabulary, ["some text"]).dtype == dtype
    assert np.iinfo(dtype).max >= size - 1


def test_ids_above_65_535_survive():
    pieces = {piece: i for i, piece in enumerate([*BERT_TOKENS, *(f"w{i}" for i in range(70_000))])}
    tokenizer = BertTokenizer(vocab=pieces)
    assert token_stream(Vocabulary.from_pretrained(tokenizer), ["w0 w69999"]).tolist() == [5, 70_004, 3]


def test_the_digest_changes_with_whatever_decides_the_ids(vocabulary):
    assert vocabulary.digest == pickle.loads(pickle.dumps(vocabulary)).digest
    others = [
        dataclasses.replace(vocabulary, sep_id=vocabulary.cls_id),
        dataclasses.replace(vocabulary, special_ids=vocabulary.special_ids[:-1]),
        Vocabulary.from_pretrained(BertTokenizer(vocab={piece: i for i, piece in enumerate(BERT_TOKENS)})),
    ]
    assert len({vocabulary.digest, *(other.digest for other in others)}) == 4


TOKENIZE_AND_REPORT_PEAK = """
import pickle, re, sys
from distil_ray.data.tokenization import token_stream
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
vocabulary = pickle.loads(sys.stdin.buffer.read())
text = " extraordinary responsibilities" * (20_000_000 // 31)
token_stream(vocabulary, ["warm"])
before = peak()
num_tokens = len(token_stream(vocabulary, [text]))
print(num_tokens, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_for_a_document_of_20_million_characters():
    words = Tokenizer(WordLevel({"[UNK]": 0, "extraordinary": 1, "responsibilities": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    vocabulary = Vocabulary(words.to_str(), size=3, cls_id=0, sep_id=0, mask_id=0, special_ids=(0,))
    process = subprocess.run(
        [sys.executable, "-c", TOKENIZE_AND_REPORT_PEAK],
        input=pickle.dumps(vocabulary),
        capture_output=True,
        check=True,
    )
    num_tokens, growth = map(int, process.stdout.split())
    assert num_tokens == 20_000_000 // 31 * 2 + 1
    # The characters of one call at several hundred bytes each; the document in one piece takes over 900 MB.
    assert growth < 100 * 2**20


def test_the_id_of_what_is_unknown(tokenizer, vocabulary):
    text = "Ж 東 ✈ plane"
    ids = token_stream(vocabulary, [text]).tolist()
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    if vocabulary.unk_id is None:  # by bytes
        assert tokenizer.unk_token_id not in ids
    else:
        assert vocabulary.unk_id == tokenizer.unk_token_id
        assert ids.count(vocabulary.unk_id) == expected.count(tokenizer.unk_token_id) > 0
