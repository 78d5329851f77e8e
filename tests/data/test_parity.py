"""A row's ids are those of `AutoTokenizer` for the same text, but for control pieces, which stay text."""

from pathlib import Path

import numpy as np
import pytest
from small_models import small_model
from tokenizer_zoo import CONTROL_TEXTS, HOSTILE_TEXTS, TEXTS, ZOO, unigram, wordpiece
from transformers import AutoTokenizer, BertTokenizer

from distil_ray.data.masking import mask_rows, special_table
from distil_ray.data.parity import check_parity
from distil_ray.data.tokenization import (
    MAX_SLICE_CHARS,
    Vocabulary,
    control_pieces,
    id_space,
    token_stream,
)
from distil_ray.errors import InputError
from distil_ray.models.loading import check_vocabulary_fits


@pytest.fixture(scope="module", params=list(ZOO), ids=lambda name: name.replace(" ", "-"))
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "tokenizer"
    ZOO[request.param](folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary.from_pretrained(tokenizer)


def ids_in_transformers(tokenizer, text, **options):
    return tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]


def ids_here(vocabulary, text):
    return token_stream(vocabulary, [text]).tolist()[:-1]


def control_ids(tokenizer):
    return {tokenizer.convert_tokens_to_ids(piece) for piece in control_pieces(tokenizer)} - {tokenizer.unk_token_id}


@pytest.mark.parametrize("index", range(len(HOSTILE_TEXTS)))
def test_ids_are_those_of_transformers(tokenizer, vocabulary, index):
    text = HOSTILE_TEXTS[index]
    expected = ids_in_transformers(tokenizer, text)
    assert not control_ids(tokenizer).intersection(expected)
    assert ids_here(vocabulary, text) == expected


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_control_pieces_stay_text(tokenizer, vocabulary, text):
    assert not control_ids(tokenizer).intersection(ids_here(vocabulary, text))
    # Between pieces that are not taken for text, they are text all the same.
    mixed = f"covid <NUM> {text} covid <NUM>"
    ids = ids_here(vocabulary, mixed)
    assert not control_ids(tokenizer).intersection(ids)
    assert ids[: len(ids_here(vocabulary, "covid <NUM>"))] == ids_in_transformers(tokenizer, "covid <NUM>")


def test_every_piece_has_an_id_in_the_space_of_ids(tokenizer, vocabulary):
    ids = set(tokenizer.get_vocab().values())
    assert vocabulary.size == id_space(tokenizer) == max(ids) + 1
    assert set(range(vocabulary.size)) - ids <= set(vocabulary.special_ids)
    assert set(tokenizer.all_special_ids) <= set(vocabulary.special_ids)
    table = special_table(vocabulary.size, vocabulary.special_ids)
    assert set(np.flatnonzero(~table)) <= ids - control_ids(tokenizer)


def test_long_texts_in_slices_give_the_same_ids(tokenizer, vocabulary):
    # Every cut is close to one of the added pieces that a cut could break.
    text = " ".join(["New York", "<URL>", "next covid", "<NUM>"] * (2 * MAX_SLICE_CHARS // 32))
    assert len(text) > MAX_SLICE_CHARS
    for shift in range(0, 32, 3):
        shifted = "a" * shift + " " + text
        assert ids_here(vocabulary, shifted) == ids_in_transformers(tokenizer, shifted)


def test_the_check_passes_on_what_is_alike(tokenizer, vocabulary):
    assert check_parity(tokenizer, vocabulary, [*HOSTILE_TEXTS, *CONTROL_TEXTS]) == len(HOSTILE_TEXTS + CONTROL_TEXTS)


def test_the_check_names_text_and_pieces():
    cased = wordpiece(cased=True)
    lowercasing = BertTokenizer(vocab=cased.get_vocab(), do_lower_case=True)
    vocabulary = Vocabulary.from_pretrained(lowercasing)
    message = r"of the text 'the lazy The …', piece 2 \(near .*\) is 'The' \(id \d+\) in transformers and 'the' \(id"
    with pytest.raises(InputError, match=message.replace(" …", ".*…")):
        check_parity(cased, vocabulary, ["", "lazy", "the lazy The lazy fox and the lazy dog, all of them"])


def test_the_check_sees_a_text_that_ends_early():
    tokenizer = unigram()
    vocabulary = Vocabulary.from_pretrained(tokenizer)

    class Truncating:
        """A tokenizer as transformers, that gives no more than three pieces."""

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *args, **options):
            return {"input_ids": tokenizer(*args, **options)["input_ids"][:3]}

    with pytest.raises(InputError, match=r"piece 3 .* is nothing in transformers and '.+' \(id \d+\) here"):
        check_parity(Truncating(), vocabulary, TEXTS[:1])


def test_a_model_may_have_more_embeddings_than_the_tokenizer_has_ids(vocabulary, tokenizer):
    padded = small_model("bert", vocab_size=-(-vocabulary.size // 64) * 64)
    check_vocabulary_fits(padded, tokenizer)
    exact = small_model("bert", vocab_size=vocabulary.size)
    check_vocabulary_fits(exact, tokenizer)
    with pytest.raises(InputError, match=f"has ids for {vocabulary.size} tokens, the model only {vocabulary.size - 1}"):
        check_vocabulary_fits(small_model("bert", vocab_size=vocabulary.size - 1), tokenizer)


def test_pieces_with_holes_between_their_ids_are_masked_by_pieces_that_exist(tmp_path: Path):
    ZOO["holes"](tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    vocabulary = Vocabulary.from_pretrained(tokenizer)
    ids = set(tokenizer.get_vocab().values())
    holes = set(range(vocabulary.size)) - ids
    assert len(tokenizer) == len(ids) < vocabulary.size
    assert len(holes) == 3

    stream = token_stream(vocabulary, TEXTS)
    rows = stream[: len(stream) // 50 * 50].reshape(-1, 50)
    masked = mask_rows(
        rows,
        np.arange(len(rows), dtype=np.uint64),
        num_masked=10,
        mask_id=vocabulary.mask_id,
        is_special=special_table(vocabulary.size, vocabulary.special_ids),
        mask_replace_prob=0.0,
        random_replace_prob=1.0,
    )
    drawn = np.take_along_axis(masked.input_ids, masked.masked_positions.astype(int), axis=1)
    assert not holes.intersection(drawn.ravel().tolist())
    assert len(set(drawn.ravel().tolist())) > 100
