"""Gaps in sentences, and what models put there."""

import re

import pytest
import torch
from small_models import small_model
from training_parts import set_weights
from transformers import BertTokenizer

from distil_ray.evaluation.guesses import guess_words, mask_words

PIECES = re.findall(r"\S+", "this function returns the number of elements in array when called with short list a . ,")
PROSE = "This function returns the number of elements in the array."


@pytest.fixture
def tokenizer() -> BertTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, "un", "##known"]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def gaps_of(tokenizer, documents, num_words=1, seed=1, max_tokens=128):
    return mask_words(tokenizer, documents, num_words=num_words, max_tokens=max_tokens, seed=seed)


def test_masks_a_whole_word_of_plain_prose(tokenizer):
    documents = [
        "Too short.",
        "x = f(1)",
        f"Returns `x` when called with a short list of elements (see f).\n\n{PROSE}\n\n>>> f()",
        "",
        "This function returns the number\nof elements in the array when called with the short list.",
    ]
    gaps = gaps_of(tokenizer, documents, num_words=5)

    assert len(gaps) == 2
    assert gaps[0].before + gaps[0].word + gaps[0].after == PROSE
    for gap, document in zip(gaps, (documents[2], documents[4]), strict=True):
        assert gap.input_ids[gap.position] == tokenizer.mask_token_id
        assert gap.input_ids.count(tokenizer.mask_token_id) == 1
        whole = tokenizer(document)["input_ids"]
        assert [i for i, (a, b) in enumerate(zip(gap.input_ids, whole, strict=True)) if a != b] == [gap.position]
        assert len(gap.word) >= 3
    assert gaps_of(tokenizer, documents) == gaps[:1]


def test_the_seed_draws_the_word(tokenizer):
    words = {gaps_of(tokenizer, [PROSE], seed=seed)[0].word for seed in range(99)}
    # Every word of three letters or more; "unknown" would be two pieces.
    assert words == {"This", "function", "returns", "the", "number", "elements", "array"}
    sentence = "This unknown function returns the unknown number of the unknown elements."
    assert "unknown" not in {gaps_of(tokenizer, [sentence], seed=seed)[0].word for seed in range(60)}


def test_a_long_document_is_cut_and_the_gap_lies_before_the_cut(tokenizer):
    document = f"{PROSE} " * 50
    for seed in range(20):
        gap = gaps_of(tokenizer, [document], seed=seed, max_tokens=20)[0]
        assert len(gap.input_ids) == 20
        assert gap.position < 19
        assert gap.before + gap.word + gap.after == PROSE


def test_the_guess_is_the_most_probable_piece(tokenizer):
    model = set_weights(small_model("bert", vocab_size=len(tokenizer)), "guesses")
    gaps = gaps_of(tokenizer, [PROSE] * 3, num_words=3, seed=0)
    answer = tokenizer.convert_tokens_to_ids(gaps[1].word.lower())
    with torch.no_grad():
        model.cls.predictions.bias[answer] = 50.0
    guesses = guess_words(model, tokenizer, gaps)

    assert [guess.word for guess in guesses] == [gaps[1].word.lower()] * 3
    assert [guess.is_right for guess in guesses] == [gap.word == gaps[1].word for gap in gaps]
    for gap, guess in zip(gaps, guesses, strict=True):
        logits = model(torch.tensor([gap.input_ids])).logits[0, gap.position]
        assert guess.probability == pytest.approx(logits.softmax(-1).max().item(), rel=1e-5)
