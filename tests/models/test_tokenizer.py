"""A folder's tokenizer: as AutoTokenizer has it, unless its class splits texts otherwise than its tokenizer.json."""

import json
from importlib.machinery import ModuleSpec

import pytest
from small_models import small_model
from tokenizer_zoo import BERT_TOKENS, HOSTILE_TEXTS, ROBERTA_TOKENS, ZOO, byte_level, save_filed, unigram, wordpiece
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer

from distil_ray.errors import InputError
from distil_ray.models import files
from distil_ray.models.loading import load_tokenizer
from distil_ray.models.tokenizer import remarks

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 231508\n"


def backend_of(tokenizer):
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


@pytest.mark.parametrize("kind", ZOO)
def test_as_transformers_has_it(tmp_path, kind):
    ZOO[kind](tmp_path / "tokenizer")
    expected = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    assert type(tokenizer) is type(expected)
    assert tokenizer.get_vocab() == expected.get_vocab()
    for text in HOSTILE_TEXTS:
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
    assert len(remarks(tokenizer)) == (kind == "byte level normalizing")  # of text in capitals


def digits_apart():
    backend = backend_of(wordpiece())
    split = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, split])
    return backend


def other_normalizer(make, normalizer):
    backend = backend_of(make())
    backend.normalizer = normalizer
    return backend


MISMATCHES = {
    "a RoBERTa with WordPiece": ("roberta", lambda: backend_of(wordpiece()), BERT_TOKENS, {}),
    "an XLM-R with WordPiece": ("xlm-roberta", lambda: backend_of(wordpiece()), BERT_TOKENS, {}),
    "a RoBERTa with Unigram": ("roberta", lambda: backend_of(unigram()), None, {}),
    "a BERT with digits apart": ("bert", digits_apart, BERT_TOKENS, {"tokenizer_class": "BertTokenizer"}),
    "a RoBERTa that lower-cases": (
        "roberta",
        lambda: other_normalizer(byte_level, normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
        None,
        {"tokenizer_class": "RobertaTokenizerFast"},
    ),
    "an XLM-R that lower-cases": ("xlm-roberta", lambda: other_normalizer(unigram, normalizers.Lowercase()), None, {}),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_the_file_is_right_where_the_class_splits_otherwise(tmp_path, kind):
    family, make, names, config = MISMATCHES[kind]
    if names is None:
        names = [ROBERTA_TOKENS[i] for i in (1, 3, 0, 2, 4)]
    small_model(family).config.save_pretrained(tmp_path)
    save_filed(tmp_path, make(), names, model_max_length=24, **config)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    differing = 0
    for text in HOSTILE_TEXTS:
        expected = backend.encode(text, add_special_tokens=False).ids
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        try:
            plain = AutoTokenizer.from_pretrained(tmp_path)
        except TypeError:  # a class that cannot take this kind of vocabulary
            differing += 1
        else:
            differing += plain(text, add_special_tokens=False)["input_ids"] != expected
    assert differing  # or there is nothing to be right about
    assert (tokenizer.cls_token, tokenizer.mask_token) == (names[2], names[4])
    assert tokenizer.model_max_length == 24
    assert remarks(tokenizer)[0].startswith("tokenizer: its tokenizer.json is used as it is, since ")


def test_settings_that_a_class_has_always_laid_over_the_file_are_kept(tmp_path):
    save_filed(
        tmp_path / "cased", wordpiece(cased=True), BERT_TOKENS, tokenizer_class="BertTokenizer", do_lower_case=False
    )
    save_filed(tmp_path / "lower", wordpiece(), BERT_TOKENS, tokenizer_class="BertTokenizer", do_lower_case=False)
    save_filed(tmp_path / "blank", byte_level(), [], tokenizer_class="RobertaTokenizer", add_prefix_space=True)
    for name, text, expected in (
        ("cased", "The", ["The"]),
        ("lower", "the", ["the"]),
        ("lower", "The", ["[UNK]"]),
        ("blank", "the", byte_level().tokenize(" the")),
    ):
        tokenizer = load_tokenizer(str(tmp_path / name))
        assert tokenizer.tokenize(text) == AutoTokenizer.from_pretrained(tmp_path / name).tokenize(text) == expected
        assert remarks(tokenizer) == []


def test_a_cased_vocabulary_that_is_lower_cased_is_remarked(tmp_path):
    vocabulary = wordpiece(cased=True).get_vocab()
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["do_lower_case"]  # which then is true
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.tokenize("The") != ["The"]
    (remark,) = remarks(tokenizer)
    num_cased = sum(piece != piece.lower() for piece in vocabulary if piece not in BERT_TOKENS)
    assert f"lower-cases every text, but {num_cased} of its {len(vocabulary) - 5} pieces have upper-case" in remark
    assert '"do_lower_case": false' in remark


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_git_lfs_pointers_are_not_taken_for_a_vocabulary(tmp_path, name):
    wordpiece().save_pretrained(tmp_path)
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_text(LFS_POINTER)
    with pytest.raises(InputError, match=f"{name} is a Git LFS pointer and not the file itself; run `git lfs pull`"):
        load_tokenizer(str(tmp_path))


def test_git_lfs_pointers_that_are_not_read_do_no_harm(tmp_path):
    unigram().save_pretrained(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").write_text(LFS_POINTER)
    assert len(load_tokenizer(str(tmp_path))) == len(unigram())


def test_a_sentencepiece_file_alone_says_what_to_install(tmp_path, monkeypatch):
    small_model("xlm-roberta").config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02" * 20)
    for found, message in (
        (
            None,
            r"a SentencePiece file, sentencepiece\.bpe\.model, without a tokenizer\.json; run `pip install sent",
        ),
        (ModuleSpec("sentencepiece", None), r"sentencepiece\.bpe\.model is damaged, or is no SentencePiece file"),
    ):
        monkeypatch.setattr(files.importlib.util, "find_spec", {"sentencepiece": found}.get)
        with pytest.raises(InputError, match=message) as caught:
            load_tokenizer(str(tmp_path))
        assert "tiktoken" not in str(caught.value)
