"""Masked language models: loading them, and calling encoder and head apart.

``*ForMaskedLM.forward`` runs the vocabulary head on every position, which is most of what it costs in memory.
A loss that needs the masked positions alone calls :func:`encode`, gathers, and then calls :func:`predict`.

Shapes: B rows, T tokens per row, N selected positions, D width, E width of the embeddings, V vocabulary.
"""

import difflib
import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from distil_ray.data.tokenization import id_space
from distil_ray.errors import InputError
from distil_ray.models.families import (
    FAMILIES,
    check_config,
    family_of,
    first_position,
    has_head,
    own_fields,
)
from distil_ray.models.files import loading
from distil_ray.models.origin import CONFIG_FILE, TOKENIZER_FILES
from distil_ray.models.tokenizer import fit_inputs, load_as_filed

_LOGITS_ROWS = 256  # [N, V] at once, where all logits are looked at

# Some published configurations ask for every layer's hidden states, which then cost time and memory in each step.
_PLAIN_OUTPUTS = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}


# ---------------------------------------------------------------------------------------------- calling


def encode(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Return the last hidden states [B, T, D] of rows without padding, ``input_ids`` [B, T] int64.

    No attention mask is passed where there need not be one, so that SDPA's flash kernel applies. Positions are counted
    and not derived from the ids (RoBERTa's default asks which of them are padding): nothing depends on the data.
    """
    position_ids = torch.arange(input_ids.shape[1], device=input_ids.device) + first_position(model.config)
    inputs = {"input_ids": input_ids, "position_ids": position_ids.unsqueeze(0)}
    if family_of(model.config).needs_mask:
        inputs["attention_mask"] = torch.ones_like(input_ids)
    hidden: Tensor = model.base_model(**inputs).last_hidden_state
    return hidden


def predict(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the MLM head's logits [N, V] of the last hidden states ``hidden`` [N, D]."""
    return F.linear(transform(model, hidden), *decoder(model))[:, : model.config.vocab_size]


def transform(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return what the MLM head makes of hidden states [N, D] for its decoder, [N, E]."""
    head = family_of(model.config).transform
    assert head is not None  # check_config has let it pass
    return head(model, hidden)


def decoder(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return the weight [V', E] and the bias [V'] of the MLM head's decoder; zeros if it has none.

    V' is V; on a GPU that would multiply that many slowly, zeros are added, which are cut off the logits later.
    """
    module = model.get_output_embeddings()
    weight, bias = module.weight, module.bias
    if bias is None:
        bias = weight.new_zeros(len(weight))
    num_more = _padding(weight)
    return (F.pad(weight, (0, 0, 0, num_more)), F.pad(bias, (0, num_more))) if num_more else (weight, bias)


def _padding(weight: Tensor) -> int:
    """How many rows to add to a decoder's weight [V, E] for the fast kernels, which want multiples of 8 (cuBLAS)."""
    return -len(weight) % 128 if weight.is_cuda and len(weight) % 8 else 0


def max_tokens(model: PreTrainedModel) -> int:
    """Return the longest row, in tokens, that the model is made for: where it has them, its position embeddings."""
    return int(model.config.max_position_embeddings) - first_position(model.config)


# ---------------------------------------------------------------------------------------------- loading


def load_masked_lm(path: str, revision: str | None = None) -> PreTrainedModel:
    """Load a masked language model in fp32 from a folder or the Hub; no code from there is ever run.

    Raises:
        InputError: nothing there, not a model, another family than FAMILIES or one without heads, damaged weights,
            weights that lack a part of the encoder or of the MLM head (which transformers would fill with random
            numbers), that have other shapes than the configuration asks for, or that are not finite.
        OutageError: the Hub does not answer.
    """
    with loading("a masked language model", path, revision, needs=CONFIG_FILE, weights=True) as location:
        config = _read_config(location, path, needs_head=True)
        model, info = _read_weights(AutoModelForMaskedLM, location, config, **_attention(config))
    _check_weights(path, model, info, "a whole model with its masked-language-modelling head (an AutoModelForMaskedLM)")
    return model


def load_encoder(path: str, revision: str | None = None) -> PreTrainedModel:
    """Load the encoder of a model with any head or none, in fp32 and without a pooler; as `load_masked_lm` otherwise.

    Raises:
        InputError: as `load_masked_lm`, except that heads are of no account.
        OutageError: the Hub does not answer.
    """
    with loading("an encoder", path, revision, needs=CONFIG_FILE, weights=True) as location:
        config = _read_config(location, path)
        model, info = _read_weights(AutoModel, location, config, **_attention(config), **_no_pooler(config))
    _check_weights(path, model, info, "a whole encoder (an AutoModel)")
    return model


def outline_encoder(path: str, revision: str | None = None) -> PreTrainedModel:
    """Make the model that `load_encoder` would load, as `outline_masked_lm` does.

    Raises:
        InputError: nothing there, or another family than FAMILIES.
        OutageError: the Hub does not answer.
    """
    with loading("an encoder", path, revision, needs=CONFIG_FILE) as location:
        return initialize_encoder(_read_config(location, path), seed=0)


def outline_masked_lm(path: str, revision: str | None = None) -> PreTrainedModel:
    """Make the model that `load_masked_lm` would load, from its configuration alone: with weights of no meaning, or,
    under ``torch.device("meta")``, with none.

    Raises:
        InputError: nothing there, another family than FAMILIES, or one without heads.
        OutageError: the Hub does not answer.
    """
    with loading("a masked language model", path, revision, needs=CONFIG_FILE) as location:
        return initialize(_read_config(location, path, needs_head=True), seed=0)


def _read_config(location: str, source: str, *, needs_head: bool = False, **fields: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(location, trust_remote_code=False, **_PLAIN_OUTPUTS, **fields)
    check_config(config, source, needs_head=needs_head)
    return config


def _read_weights(
    auto_class: Any, location: str, config: PreTrainedConfig, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model in fp32, and what transformers says about weights that are missing or of another shape."""
    loaded: tuple[PreTrainedModel, dict[str, Any]] = auto_class.from_pretrained(
        location,
        config=config,
        trust_remote_code=False,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # `_check_shapes` refuses them, with both sizes
        output_loading_info=True,
        **options,
    )
    return loaded


def _attention(config: PreTrainedConfig) -> dict[str, str]:
    """The argument of transformers that says which implementation of attention a model gets."""
    return {"attn_implementation": family_of(config).attention}


def _no_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """The argument that makes an encoder without a pooler, for the classes that would have one."""
    model_class: Any = MODEL_MAPPING[type(config)]
    takes_it = "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if takes_it else {}


def _check_weights(path: str, model: PreTrainedModel, info: Mapping[str, Any], expected: str) -> None:
    """Raise InputError if weights have another shape than the model's, are missing, or are not finite."""
    _check_shapes(path, info["mismatched_keys"])
    missing = sorted(_without_twins(model, info["missing_keys"]))
    if missing:
        raise InputError(
            f"{path} has no weights for {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; "
            f"expected {expected}"
        )
    _check_finite_weights(path, model)


def _check_shapes(path: str, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise InputError if a weight (name, shape in the file, shape in the model) has another shape than expected."""
    for name, in_file, expected in sorted(mismatched):
        raise InputError(
            f"{path}: the weights do not fit its config.json: {name} has the shape {list(in_file)} in the file, and "
            f"{list(expected)} by the configuration; expected both of the same model"
        )


def _without_twins(model: PreTrainedModel, missing: Collection[str]) -> set[str]:
    """The names that are missing, less those whose weights stand under their other name, from which they are copied.

    transformers 4 gave the bias of BERT's and RoBERTa's MLM head two names, and saved it under one of them. Where the
    head is tied to the embeddings, version 5 knows that; where it is not, it takes them for two.
    """
    absent = set(missing)
    for name, twin in _twin_biases(model):
        for one, other in ((name, twin), (twin, name)):
            if one in absent and other not in missing:
                _copy(model, source=other, target=one)
                absent.remove(one)
    return absent


def agree_twins(model: PreTrainedModel) -> None:
    """Give both names of an untied head's bias the value that is in use, so that transformers 4 finds it as well."""
    for name, twin in _twin_biases(model):
        _copy(model, source=name, target=twin)


def _twin_biases(model: PreTrainedModel) -> list[tuple[str, str]]:
    """The names of a head's bias: that in use, and the other."""
    names = dict(model.named_parameters(remove_duplicate=False))
    twins = [(name, name.replace(".decoder.", ".")) for name in names if name.endswith(".decoder.bias")]
    return [(name, twin) for name, twin in twins if twin in names]


def _copy(model: PreTrainedModel, source: str, target: str) -> None:
    with torch.no_grad():
        model.get_parameter(target).copy_(model.get_parameter(source))


def _check_finite_weights(path: str, model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            num_bad = int((~torch.isfinite(weight)).sum())
            raise InputError(
                f"{path}: {num_bad:,} of {weight.numel():,} weights of {name} are not finite (NaN or infinite), so "
                "nothing can be learned from it; expected the weights of a training that went well"
            )


def check_finite_outputs(model: PreTrainedModel, input_ids: Tensor, role: str) -> None:
    """Refuse a model that answers rows, ``input_ids`` [B, T] int64, with numbers that are not finite.

    Weights that are finite do not keep an activation from overflowing. The model is used as it is: on its device, in
    its precision, in its mode.

    Args:
        role: what the model is, for the message: ``"teacher"``.

    Raises:
        InputError: its last hidden states or its logits are not finite.
    """
    with torch.inference_mode():
        hidden = encode(model, input_ids).flatten(0, 1)
        # In parts, as the logits of a whole row may not fit. [N, D] -> [N, V]
        logits = (predict(model, part) for part in hidden.split(_LOGITS_ROWS) if has_head(model))
        if all(bool(torch.isfinite(output).all()) for output in (hidden, *logits)):
            return
    raise InputError(
        f"the {role}'s outputs are not finite (NaN or infinite) on rows of this text, in {model.dtype}; nothing can be "
        f"learned from it. Try the {role} in plain transformers, and runtime.precision=fp32 if that works"
    )


def load_classifier(path: str, num_labels: int, seed: int, revision: str | None = None) -> PreTrainedModel:
    """Load an encoder in fp32, with a new head of ``num_labels`` outputs whose weights are drawn from ``seed``.

    Raises:
        InputError: as `load_masked_lm`, except that the MLM head is not needed.
        OutageError: the Hub does not answer.
    """
    return _load_with_new_head(AutoModelForSequenceClassification, path, num_labels, seed, revision)


def load_span_answerer(path: str, seed: int, revision: str | None = None) -> PreTrainedModel:
    """Load an encoder in fp32, with a new head for starts and ends of spans; raises what `load_classifier` does."""
    return _load_with_new_head(AutoModelForQuestionAnswering, path, 2, seed, revision)


def load_token_classifier(path: str, num_labels: int, seed: int, revision: str | None = None) -> PreTrainedModel:
    """Load an encoder in fp32, with a new head of ``num_labels`` outputs per piece, like `load_classifier`."""
    return _load_with_new_head(AutoModelForTokenClassification, path, num_labels, seed, revision)


def _load_with_new_head(
    auto_class: Any, path: str, num_labels: int, seed: int, revision: str | None
) -> PreTrainedModel:
    with (
        loading("a model", path, revision, needs=CONFIG_FILE, weights=True) as location,
        torch.random.fork_rng(devices=[]),
    ):
        torch.default_generator.manual_seed(seed)
        config = _read_config(location, path)
        config.num_labels = num_labels
        model, info = _read_weights(auto_class, location, config)
    encoder = f"{model.base_model_prefix}."
    _check_shapes(path, [entry for entry in info["mismatched_keys"] if entry[0].startswith(encoder)])
    missing = [key for key in sorted(info["missing_keys"]) if key.startswith(encoder) and ".pooler." not in key]
    if missing:
        raise InputError(f"{path} has no weights for {', '.join(missing[:3])}; expected a whole model")
    return model


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer that has the special tokens cls, sep, mask and pad, from a folder or the Hub.

    It is what `AutoTokenizer` gives, unless that would split texts differently from the folder's tokenizer.json.

    Raises:
        InputError: nothing there, no vocabulary, a slow tokenizer, or a special token that is not set.
        OutageError: the Hub does not answer.
    """
    with loading("a tokenizer", path, revision, files=TOKENIZER_FILES) as location:
        tokenizer = load_as_filed(location)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {path} is a slow one; expected a fast one (with a tokenizer.json)")
    # A folder without tokenizer files is no error to transformers: it answers with the special tokens alone.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(f"{path} holds no tokenizer; expected a folder with tokenizer.json, or vocab.txt")
    unset = [name for name in ("cls", "sep", "mask", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
    if unset:
        raise InputError(
            f"the tokenizer of {path} has no {' and no '.join(unset)} token; expected one made for masked "
            "language modelling, with cls, sep, mask and pad set. If it has other names for them (bos, eos), set "
            "cls_token and sep_token in the tokenizer_config.json of a copy"
        )
    return tokenizer


def load_tokenizer_of(model: PreTrainedModel, path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of ``path`` so that it tells the two texts of a pair apart only if the model can.

    Raises:
        InputError, OutageError: as `load_tokenizer`.
    """
    return fit_inputs(load_tokenizer(path, revision), model.config)


# ---------------------------------------------------------------------------------------------- from scratch


def model_from_config(
    config: Mapping[str, Any] | str,
    vocab_size: int,
    pad_token_id: int,
    seed: int,
    revision: str | None = None,
    *,
    with_head: bool = True,
) -> PreTrainedModel:
    """Return an untrained model, a pure function of the arguments; the global random state is left alone.

    Args:
        config: ``{"model_type": …, …}`` with the fields of that family's configuration, or the path of a
            config.json or of a folder that holds one.
        vocab_size, pad_token_id: the tokenizer's; they replace those of ``config``.
        seed: of the random weights.
        revision: of a ``config`` on the Hub.
        with_head: whether it has an MLM head, and is not a bare encoder.

    Raises:
        InputError: unknown family or field, a value that does not fit, or an unreadable file.
    """
    make = initialize if with_head else initialize_encoder
    from_tokenizer = {"vocab_size": vocab_size, "pad_token_id": pad_token_id}
    if isinstance(config, str):
        needs = None if Path(config).expanduser().is_file() else CONFIG_FILE
        with loading("a model configuration", config, revision, needs=needs) as location:
            model_config = _read_config(location, config, needs_head=with_head, **from_tokenizer)
        return make(model_config, seed)

    fields = {**config, **from_tokenizer}
    model_type = fields.pop("model_type", None)
    if model_type not in FAMILIES:
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
        check_config(model_config, "the configuration", needs_head=with_head)
        return make(model_config, seed)
    except InputError:
        raise
    except Exception as error:  # transformers' validation and its modules' constructors raise several types
        raise InputError(f"the {model_type} configuration does not fit: {' '.join(str(error).split())}") from error


def initialize(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Return an fp32 model of ``config`` with its MLM head, weights drawn from ``seed`` (no global random state)."""
    return _initialize(AutoModelForMaskedLM, config, seed)


def initialize_encoder(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Return the same without a head and without a pooler."""
    return _initialize(AutoModel, config, seed, **_no_pooler(config))


def _initialize(auto_class: Any, config: PreTrainedConfig, seed: int, **options: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators, too
        model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32, **_attention(config), **options)
    return model


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
    """Raise InputError if the tokenizer gives ids for which the model has no embeddings."""
    num_ids = id_space(tokenizer)
    if num_ids > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has ids for {num_ids} tokens, the model only {model.config.vocab_size} embeddings "
            "(vocab_size); expected the tokenizer that the model was trained with"
        )
