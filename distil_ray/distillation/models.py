"""Masked language models of the supported families: loading them, and calling encoder and head apart.

``*ForMaskedLM.forward`` runs the vocabulary head on every position, which is most of what it costs in memory.
A loss that needs the masked positions alone calls :func:`encode`, gathers, and then calls :func:`predict`.

Shapes: B rows, T tokens a row, N selected positions, D width, V vocabulary.
"""

import difflib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from distil_ray.errors import InputError

_ROBERTA_FAMILIES = ("roberta", "xlm-roberta")
FAMILIES = ("bert", "distilbert", *_ROBERTA_FAMILIES)

# Some published configurations ask for every layer's hidden states, which then cost time and memory in each step.
_PLAIN_OUTPUTS = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}


# ---------------------------------------------------------------------------------------------- calling


def encode(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Return the last hidden states [B, T, D] of rows without padding, ``input_ids`` [B, T] int64.

    No attention mask is passed, so that SDPA's flash kernel applies. Positions are counted and not derived
    from the ids (RoBERTa's default asks which of them are padding): nothing depends on the data.
    """
    position_ids = torch.arange(input_ids.shape[1], device=input_ids.device) + _first_position(model.config)
    hidden: Tensor = model.base_model(input_ids=input_ids, position_ids=position_ids.unsqueeze(0)).last_hidden_state
    return hidden


def predict(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the MLM head's logits [N, V] of the last hidden states ``hidden`` [N, D]."""
    module: Any = model  # the heads are attributes of the subclasses
    match model.config.model_type:
        case "bert":
            logits: Tensor = module.cls(hidden)
        case "distilbert":
            hidden = module.activation(module.vocab_transform(hidden))
            logits = module.vocab_projector(module.vocab_layer_norm(hidden))
        case _:
            logits = module.lm_head(hidden)
    return logits


def num_layers(model: PreTrainedModel) -> int:
    """Return the number of transformer layers."""
    return int(model.config.num_hidden_layers)


def max_tokens(model: PreTrainedModel) -> int:
    """Return the longest row, in tokens, for which the model has position embeddings."""
    return int(model.config.max_position_embeddings) - _first_position(model.config)


def _first_position(config: PreTrainedConfig) -> int:
    """The position of a row's first token: RoBERTa's families count from ``padding_idx + 1``."""
    return config.pad_token_id + 1 if config.model_type in _ROBERTA_FAMILIES else 0


# ---------------------------------------------------------------------------------------------- loading


def load_masked_lm(path: str, revision: str | None = None) -> PreTrainedModel:
    """Load a masked language model in fp32 from a folder or the Hub; no code from there is ever run.

    Raises:
        InputError: nothing there, not a model, another family than FAMILIES, damaged weights, or weights that
            lack a part of the encoder or of the MLM head (which transformers would fill with random numbers).
    """
    with _loading("a masked language model", path, needs="config.json") as location:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False, **_PLAIN_OUTPUTS)
        check_config(config, path)
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForMaskedLM.from_pretrained(
            location,
            config=config,
            revision=revision,
            trust_remote_code=False,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{path} has no weights for {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; "
            "expected a whole model with its masked-language-modelling head (an AutoModelForMaskedLM)"
        )
    return model


def load_classifier(path: str, num_labels: int, seed: int, revision: str | None = None) -> PreTrainedModel:
    """Load an encoder in fp32, with a new head of ``num_labels`` outputs whose weights are drawn from ``seed``.

    Raises:
        InputError: as `load_masked_lm`, but for the MLM head, which is not needed.
    """
    return _load_with_new_head(AutoModelForSequenceClassification, path, num_labels, seed, revision)


def load_span_answerer(path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
    """Load an encoder in fp32, with a new head for starts and ends of spans whose weights are drawn from ``seed``.

    Raises:
        InputError: as `load_classifier`.
    """
    return _load_with_new_head(AutoModelForQuestionAnswering, path, 2, seed, revision)


def _load_with_new_head(
    auto_class: Any, path: str, num_labels: int, seed: int, revision: str | None
) -> PreTrainedModel:
    with _loading("a model", path, needs="config.json") as location, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False, **_PLAIN_OUTPUTS)
        check_config(config, path)
        config.num_labels = num_labels
        loaded: tuple[PreTrainedModel, dict[str, Any]] = auto_class.from_pretrained(
            location,
            config=config,
            revision=revision,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, info = loaded
    encoder = f"{model.base_model_prefix}."
    if missing := [key for key in sorted(info["missing_keys"]) if key.startswith(encoder) and ".pooler." not in key]:
        raise InputError(f"{path} has no weights for {', '.join(missing[:3])}; expected a whole model")
    return model


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer that has the special tokens cls, sep, mask and pad, from a folder or the Hub.

    Raises:
        InputError: nothing there, no vocabulary, a slow tokenizer, or a special token that is not set.
    """
    with _loading("a tokenizer", path) as location:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location, revision=revision, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {path} is a slow one; expected a fast one (with a tokenizer.json)")
    # A folder without tokenizer files is no error to transformers: it answers with the special tokens alone.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(f"{path} holds no tokenizer; expected a folder with tokenizer.json, or vocab.txt")
    if unset := [name for name in ("cls", "sep", "mask", "pad") if getattr(tokenizer, f"{name}_token_id") is None]:
        raise InputError(
            f"the tokenizer of {path} has no {' and no '.join(unset)} token; expected one made for masked "
            "language modelling, with cls, sep, mask and pad set"
        )
    return tokenizer


def load_tokenizer_of(model: PreTrainedModel, path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of ``path`` so that it tells the two texts of a pair apart only if the model can.

    A model with embeddings for one type of token, or for none, cannot: a second type would be out of its range.

    Raises:
        InputError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(path, revision)
    if getattr(model.config, "type_vocab_size", 0) < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def check_config(config: PreTrainedConfig, source: str) -> None:
    """Raise InputError unless ``config``, read from ``source``, is a plain encoder of a supported family."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"{source} is of model_type {config.model_type!r}; the types that work are {', '.join(FAMILIES)}"
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise InputError(f"{source} is set up as a decoder (is_decoder, add_cross_attention); expected an encoder")
    if (kind := getattr(config, "position_embedding_type", "absolute")) != "absolute":
        raise InputError(f"{source} has position_embedding_type {kind!r}; only 'absolute' is supported")
    if config.model_type in _ROBERTA_FAMILIES and config.pad_token_id is None:
        raise InputError(f"{source} has no pad_token_id, from which {config.model_type} counts its positions")


@contextmanager
def _loading(what: str, path: str, needs: str | None = None) -> Iterator[str]:
    """Yield the place to load ``path`` from; silence the libraries; turn what they raise into InputError."""
    location = os.path.expanduser(path)
    is_local = os.path.exists(location)
    if not is_local and ("://" in path or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1):
        raise InputError(f"cannot load {what}: {path} does not exist; expected a local folder or a Hub id")
    if is_local and needs is not None and not os.path.exists(os.path.join(location, needs)):
        raise InputError(f"cannot load {what}: {path} has no {needs}; expected a folder of save_pretrained")
    try:
        with quiet():
            yield location
    except InputError:
        raise
    except Exception as error:  # the libraries raise a dozen types, and each of them says that the input is bad
        reason = str(error).strip().split("\n")[0]
        if is_local:
            raise InputError(f"cannot load {what} from the folder {path}: {reason}") from error
        raise InputError(
            f"cannot load {what} from {path!r}: there is no local folder of that name, and from the Hugging "
            f"Face Hub: {reason} Check the name, the revision and the network (and HF_TOKEN if it is private)"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines and progress bars of transformers and huggingface_hub."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_progress_bar = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_progress_bar:
            transformers_logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------- from scratch


def model_from_config(
    config: Mapping[str, Any] | str, vocab_size: int, pad_token_id: int, seed: int
) -> PreTrainedModel:
    """Return an untrained model, a pure function of the arguments; the global random state is left alone.

    Args:
        config: ``{"model_type": …, …}`` with the fields of that family's configuration, or the path of a
            config.json or of a folder that holds one.
        vocab_size, pad_token_id: the tokenizer's; they replace whatever ``config`` says.
        seed: of the random weights.

    Raises:
        InputError: unknown family or field, a value that does not fit, or an unreadable file.
    """
    from_tokenizer = {"vocab_size": vocab_size, "pad_token_id": pad_token_id}
    if isinstance(config, str):
        needs = None if Path(config).expanduser().is_file() else "config.json"
        with _loading("a model configuration", config, needs=needs) as location:
            model_config = AutoConfig.from_pretrained(
                location, trust_remote_code=False, **_PLAIN_OUTPUTS, **from_tokenizer
            )
        check_config(model_config, config)
        return initialise(model_config, seed)

    fields = {**config, **from_tokenizer}
    if (model_type := fields.pop("model_type", None)) not in FAMILIES:
        raise InputError(f"model_type is {model_type!r}; the types that work are {', '.join(FAMILIES)}")
    config_class = type(AutoConfig.for_model(model_type))
    known = [*config_class.attribute_map, *own_fields(config_class)]
    for name in fields:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"known fields: {', '.join(sorted(known))}"
            raise InputError(f"unknown field {name!r} in a {model_type} configuration; {hint}")
    try:
        model_config = config_class(**fields)
        check_config(model_config, "the configuration")
        return initialise(model_config, seed)
    except InputError:
        raise
    except Exception as error:  # transformers' validation and its modules' constructors raise several types
        raise InputError(f"the {model_type} configuration does not fit: {' '.join(str(error).split())}") from error


def initialise(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Return an fp32 model of ``config`` with weights drawn from ``seed`` (no global random state)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators, too
        model: PreTrainedModel = AutoModelForMaskedLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
    return model


def own_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """Return the names of the fields that a family's configuration adds to transformers' general ones."""
    return list(config_class.__annotations__)


# ---------------------------------------------------------------------------------------------- vocabularies


def check_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise InputError unless both tokenizers give every token the same id.

    The teacher's distributions are compared with the student's piece by piece, so the two must mean the same.
    """
    teacher_ids, student_ids = teacher.get_vocab(), student.get_vocab()
    differing = [
        token for token in teacher_ids.keys() | student_ids.keys() if teacher_ids.get(token) != student_ids.get(token)
    ]
    if not differing:
        return

    def smallest_id(token: str) -> tuple[int, str]:
        return min(ids[token] for ids in (teacher_ids, student_ids) if token in ids), token

    first = min(differing, key=smallest_id)
    raise InputError(
        f"the vocabularies of teacher ({len(teacher_ids)} tokens) and student ({len(student_ids)} tokens) "
        f"differ, first in the token {first!r}: its id is {teacher_ids.get(first, 'none')} for the teacher, "
        f"{student_ids.get(first, 'none')} for the student. Distilling needs one vocabulary: use the "
        "teacher's tokenizer for the student"
    )


def check_vocabulary_fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if the tokenizer knows more tokens than the model has embeddings."""
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size} embeddings "
            "(vocab_size); expected the tokenizer that the model was trained with"
        )
