"""A folder's tokenizer as its tokenizer.json has it, and what is worth saying about it.

transformers 5 builds a tokenizer of a known class from the vocabulary in tokenizer.json and the class's own rules of
splitting; version 4, with which most models were trained, read those rules from the file. Where the two split texts
differently, the file is right.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distil_ray.models.files import check_no_pointers
from distil_ray.models.origin import TOKENIZER_FILE, TOKENIZER_FILES, VOCABULARY_FILES

_PROBES = (
    "The Quick brown fox's 1,234.5 jumps -- don't you think so? (e-mail: a_b@c.org)",
    "  Two  blanks,\ta tab,\na line\r\n\r\nand a \u00a0 no-break \u3000 blank ",
    "Cafe\u0301 café naïve Ångström \ufb01ne \u2460 ½ \uff26\uff35\uff2c\uff2c ẞİ Ключ",
    "東京の天気は が ぎ か\u3099 한국어 हिन्दी ไทย العَرَبِي",
    "emoji \U0001f600\U0001f3fd zero\u200bwidth\u200djoiner soft\u00adhyphen \x07 \u2028 “quoted” – …",
    "x" * 150 + " " + "0123456789" * 5,
)
_NUM_PROBED_PIECES = 2000
_SPECIAL = ("cls_token", "sep_token", "mask_token", "pad_token", "unk_token", "bos_token", "eos_token")
_CASED_FRACTION = 0.01
_REMARK = "_distil_ray_remark"
_SHOWN_CHARS, _SHOWN_PIECES = 24, 8


def load_as_filed(folder: str) -> PreTrainedTokenizerBase:
    """What `AutoTokenizer` gives for a local folder, or the folder's tokenizer.json as it is if the two differ.

    Settings that transformers has always laid over the file are kept: lower-casing and accents of BERT's classes, and
    the blank before a text of RoBERTa's.

    Raises:
        InputError: a file of the tokenizer is a Git LFS pointer.
        Exception: what transformers raises.
    """
    has_file = (Path(folder) / TOKENIZER_FILE).is_file()
    # With a tokenizer.json, no other file of the vocabulary is read.
    check_no_pointers(Path(folder), [name for name in TOKENIZER_FILES if not (has_file and name in VOCABULARY_FILES)])
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # such as a TypeError of a class that cannot take this kind of vocabulary
        if not has_file or "custom code" in str(error):
            raise
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return _remarked(tokenizer, "transformers cannot load it by its class")
    if not has_file or not tokenizer.is_fast or type(tokenizer) is PreTrainedTokenizerFast:
        return tokenizer
    filed: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
    own, its = tokenizer.backend_tokenizer, filed.backend_tokenizer
    _lay_over(its, own)
    differing = next((text for text in _probes(filed) if _ids(own, text) != _ids(its, text)), None)
    if differing is None:
        return tokenizer
    for name in _SPECIAL:
        piece = getattr(tokenizer, name, None)
        if getattr(filed, name, None) is None and piece is not None and str(piece) in filed.get_vocab():
            setattr(filed, name, piece)
    filed.model_input_names = list(tokenizer.model_input_names)
    filed.model_max_length = tokenizer.model_max_length
    text = differing[:_SHOWN_CHARS]
    given, expected = (backend.encode(text, add_special_tokens=False).tokens for backend in (own, its))
    shown = "" if given == expected else f" {text!r} into {given[:_SHOWN_PIECES]} and not {expected[:_SHOWN_PIECES]}"
    return _remarked(
        filed, f"{type(tokenizer).__name__}, as which transformers loads it, splits texts differently{shown}"
    )


def fit_inputs(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Let the tokenizer give types of tokens only to a model that has embeddings for two of them; return it.

    To a model with embeddings for one type, or for none, the second text of a pair would be out of range.
    """
    if getattr(config, "type_vocab_size", 0) < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that transformers 4.57 loads it as well as version 5, with the inputs that it gives now."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config["tokenizer_class"] == PreTrainedTokenizerFast.__name__:  # TokenizersBackend, as version 5 has named it
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:  # version 4 knows them by this name, and expects a mapping under the other
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for machine in ("is_local", "local_files_only"):
        config.pop(machine, None)
    config["model_input_names"] = list(tokenizer.model_input_names)  # left out by version 5
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def remarks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lines about what a user may not expect of a tokenizer of `load_as_filed`; mostly none."""
    remark = getattr(tokenizer, _REMARK, None)
    lines = [remark] if remark else []
    if not lowercases(tokenizer):
        return lines
    added = set(tokenizer.added_tokens_encoder)
    # As text: in a byte-level vocabulary, a blank is written with a capital letter.
    pieces = [tokenizer.convert_tokens_to_string([piece]) for piece in tokenizer.get_vocab() if piece not in added]
    cased = sorted(piece for piece in pieces if piece != piece.lower())
    if len(cased) > _CASED_FRACTION * len(pieces):
        lines.append(
            f"tokenizer: it lower-cases every text, but {len(cased):,} of its {len(pieces):,} pieces have upper-case "
            f"letters, such as {cased[len(cased) // 2]!r}, which it can never give; if the model is a cased one, set "
            '"do_lower_case": false in its tokenizer_config.json'
        )
    return lines


def lowercases(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer makes every text lower case."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _lay_over(its: Tokenizer, own: Tokenizer) -> None:
    """Take over from a class's backend what a class may set: of components of the same type, its own settings."""
    if isinstance(own.normalizer, BertNormalizer) and isinstance(its.normalizer, BertNormalizer):
        its.normalizer = own.normalizer
    ours, theirs = own.pre_tokenizer, its.pre_tokenizer
    if isinstance(ours, ByteLevel) and isinstance(theirs, ByteLevel):
        its.pre_tokenizer = ByteLevel(add_prefix_space=ours.add_prefix_space, use_regex=theirs.use_regex)


def _probes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that are hard to split, and words in the language of the vocabulary."""
    ids = range(0, len(tokenizer), max(len(tokenizer) // _NUM_PROBED_PIECES, 1))
    return [*_PROBES, str(tokenizer.decode(list(ids), skip_special_tokens=True))]


def _ids(backend: Tokenizer, text: str) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


def _remarked(tokenizer: Any, why: str) -> PreTrainedTokenizerBase:
    setattr(tokenizer, _REMARK, f"tokenizer: its {TOKENIZER_FILE} is used as it is, since {why}")
    result: PreTrainedTokenizerBase = tokenizer
    return result
