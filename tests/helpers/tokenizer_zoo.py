"""Small tokenizers of many kinds, as folders that `AutoTokenizer` loads, and texts that are hard on them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.normalizers import NFC, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Metaspace, WhitespaceSplit
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    DebertaV2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog, isn't it? I'd say so; they'll see.",
    "Bücher über Müller: 1,234.5 + 67 = ¾ … naïve café — «quoted»\tand tabbed\nand on a new line.",
    "Ключ от двери лежит под ковром. 東京の天気は晴れです。",
    "function(x) { return x_1 * 2.0; }  # comment  with   blanks",
] * 20
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

HOSTILE_TEXTS = [
    *TEXTS[:4],
    "covid COVID Covid covid19 precovid zika, flu! <NUM> <NUM><NUM> a<NUM>b [E1]text[/E1] <e1> <e2>",
    "New York New  York new york, in New York City <URL> next <URL>. <url>",
    "Cafe\u0301 na\u00efve \ufb01ne \u2126 \uff26\uff35\uff2c\uff2c \u1e9b\u0323",  # decomposed, ligature, full width
    "zero\u200bwidth\u200d joiner \ufeff soft\u00adhyphen \x00nul \x07bell \u202eright to left",
    "emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600\U0001f3fd flag \U0001f1e9\U0001f1ea",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0928\u092e\u0938\u094d\u0924\u0947 \uc548\ub155 \u4f60\u597d",
    "x" * 150 + " " + "9" * 40 + " ##ing @-@ ,,,, ... ''\"\"``",
    " leading, trailing and  double   blanks \u00a0 \u3000 \u2028 \t\t\n\n\r\n end ",
    "[cls] [sep] [mask] < s > <S> [ MASK ] <mask",
    "",
    " ",
]
CONTROL_TEXTS = ["[CLS] [SEP] [MASK] [PAD]", "a[SEP]b [MASK].", "<s> </s> <pad> <mask>", "a</s>b x<mask>y <s>z"]


def state_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The serialised tokenizer as a mapping."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    return state


def wordpiece(*, cased: bool = False, **options: Any) -> BertTokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=300, special_tokens=BERT_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(TEXTS if cased else map(str.lower, TEXTS), trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=not cased, **options)


def byte_level(**options: Any) -> RobertaTokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, special_tokens=ROBERTA_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    merges = [tuple(merge) for merge in state_of(tokenizer)["model"]["merges"]]
    return RobertaTokenizer(vocab=tokenizer.get_vocab(), merges=merges, **options)


def unigram(special: int = 4, **options: Any) -> XLMRobertaTokenizer:
    """The first ``special`` of ROBERTA_TOKENS are in the model's vocabulary; the others are added."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([WhitespaceSplit(), Metaspace()])
    trainer = UnigramTrainer(
        vocab_size=150, special_tokens=ROBERTA_TOKENS[:special], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    pieces = [tuple(piece) for piece in state_of(tokenizer)["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=pieces, **options)


def _extended(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Special pieces, then words, then both again: the order in which numbering goes wrong."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e1>", "<e2>"]})
    tokenizer.add_tokens(["covid", "zika"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<NUM>", "[E1]", "[/E1]"]})
    tokenizer.add_tokens([AddedToken("flu", single_word=True), "New York", AddedToken("<URL>", rstrip=True)])
    return tokenizer


def _fast(backend: Tokenizer, names: list[str], **options: Any) -> PreTrainedTokenizerFast:
    keys = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    order = names if names is ROBERTA_TOKENS else [names[i] for i in (2, 0, 3, 1, 4)]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(keys, order, strict=True)), **options)


def _word_level() -> PreTrainedTokenizerFast:
    """Knows "[SEP]" as a word that white space delimits."""
    words = sorted({word for text in TEXTS for word in text.split()})
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate([*BERT_TOKENS, *words])}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    return _fast(backend, BERT_TOKENS)


def _whitespace_bpe(*, ignore_merges: bool) -> PreTrainedTokenizerFast:
    """Was trained on text in which "<mask>" is a frequent word, so merges lead to it."""
    backend = Tokenizer(BPE(unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(vocab_size=400, special_tokens=ROBERTA_TOKENS, show_progress=False)
    backend.train_from_iterator([*TEXTS, *CONTROL_TEXTS * 50], trainer)
    state = state_of(backend)
    state["model"]["ignore_merges"] = ignore_merges
    return _fast(Tokenizer.from_str(json.dumps(state)), ROBERTA_TOKENS)


def _normalizing_bpe() -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([NFC(), Lowercase()])
    return _extended(_fast(backend, ROBERTA_TOKENS, bos_token="<s>", eos_token="</s>"))


def save_filed(
    folder: Path, tokenizer: PreTrainedTokenizerBase | Tokenizer, names: Sequence[str] = (), **config: Any
) -> None:
    """Write tokenizer.json as it is, and a tokenizer_config.json with the special pieces, in BERT_TOKENS' order."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    keys = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | dict(zip(keys, names, strict=False))))


def _special_in_the_file_alone(folder: Path) -> None:
    """`<NUM>` is special in tokenizer.json, and no setting of transformers names it."""
    backend = Tokenizer.from_str(wordpiece().backend_tokenizer.to_str())
    backend.add_special_tokens(["<NUM>", "[E1]", "[/E1]"])
    backend.add_tokens(["covid"])
    save_filed(folder, backend, BERT_TOKENS, tokenizer_class="PreTrainedTokenizerFast")


def _holes(folder: Path, *, added: bool) -> None:
    """A vocab.txt with lines that occur twice: of two ids, one has no piece; the largest id is the last line's."""
    pieces = list(wordpiece().get_vocab())
    lines = [*BERT_TOKENS, *(piece for piece in pieces if piece not in BERT_TOKENS)]
    lines[20:20] = [lines[10], lines[30], lines[30]]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    if added:
        _extended(BertTokenizer.from_pretrained(folder)).save_pretrained(folder)


def _mpnet() -> MPNetTokenizer:
    """RoBERTa's special pieces before a BERT's vocabulary, of which [UNK] alone is of use."""
    pieces = [*ROBERTA_TOKENS, *(piece for piece in wordpiece().get_vocab() if piece not in BERT_TOKENS[2:])]
    return MPNetTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def _modernbert() -> PreTrainedTokenizerFast:
    """BERT's special pieces with a byte-level vocabulary, words for runs of blanks, and a mask that takes the blank."""
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    backend.normalizer = NFC()
    tokenizer = _fast(backend, BERT_TOKENS)
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in range(9, 1, -1)])
    tokenizer.add_special_tokens({"mask_token": AddedToken("[MASK]", lstrip=True)})
    return tokenizer


def _pieces(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, float]]:
    return [tuple(piece) for piece in state_of(tokenizer.backend_tokenizer)["model"]["vocab"]]


def _deberta() -> DebertaV2Tokenizer:
    """BERT's special pieces with a Unigram vocabulary, in which [MASK] is not."""
    named = {"<pad>": "[PAD]", "<s>": "[CLS]", "</s>": "[SEP]", "<unk>": "[UNK]"}
    return DebertaV2Tokenizer(vocab=[(named.get(piece, piece), score) for piece, score in _pieces(unigram())])


def _padded() -> PreTrainedTokenizerBase:
    """A vocabulary filled up to a round number with pieces that no text becomes, some of them special."""
    tokenizer = wordpiece()
    tokenizer.add_tokens([f"[unused{i}]" for i in range(20)])
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<extra_{i}>" for i in range(30)]})
    return tokenizer


def _saved(make: Callable[[], PreTrainedTokenizerBase]) -> Callable[[Path], Any]:
    return lambda folder: make().save_pretrained(folder)


ZOO: dict[str, Callable[[Path], Any]] = {
    "wordpiece uncased": _saved(wordpiece),
    "wordpiece cased": _saved(lambda: wordpiece(cased=True)),
    "wordpiece keeps accents": _saved(lambda: wordpiece(strip_accents=False, tokenize_chinese_chars=False)),
    "wordpiece extended": _saved(lambda: _extended(wordpiece())),
    "wordpiece cased extended": _saved(lambda: _extended(wordpiece(cased=True))),
    "wordpiece splits special": _saved(lambda: _extended(wordpiece(split_special_tokens=True))),
    "special in the file alone": _special_in_the_file_alone,
    "holes": lambda folder: _holes(folder, added=False),
    "holes extended": lambda folder: _holes(folder, added=True),
    "padded": _saved(_padded),
    "byte level": _saved(byte_level),
    "byte level extended": _saved(lambda: _extended(byte_level(add_prefix_space=True))),
    "byte level normalizing": _saved(_normalizing_bpe),
    "unigram": _saved(unigram),
    "unigram with mask": _saved(lambda: unigram(special=5)),
    "unigram extended": _saved(lambda: _extended(unigram())),
    "unigram with mask extended": _saved(lambda: _extended(unigram(special=5))),
    "word level": _saved(_word_level),
    "mpnet": _saved(_mpnet),
    "mpnet extended": _saved(lambda: _extended(_mpnet())),
    "modernbert": _saved(_modernbert),
    "camembert": _saved(lambda: CamembertTokenizer(vocab=_pieces(unigram(special=5)))),
    "deberta": _saved(_deberta),
    "bpe with merges to control pieces": _saved(lambda: _whitespace_bpe(ignore_merges=False)),
    "bpe ignoring merges": _saved(lambda: _extended(_whitespace_bpe(ignore_merges=True))),
}
