"""Configuration -> the parts of a run: tokenizer, models, plan of the data. The same in the driver and the workers."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.config import Config, Source
from distil_ray.data.plan import DataPlan, make_plan
from distil_ray.data.rows import RowSettings
from distil_ray.data.sources import at_commit
from distil_ray.data.tokenization import Vocabulary, id_space
from distil_ray.errors import InputError
from distil_ray.models.loading import (
    check_vocabulary,
    check_vocabulary_fits,
    load_encoder,
    load_masked_lm,
    load_tokenizer,
    max_tokens,
    model_from_config,
    outline_encoder,
    outline_masked_lm,
)
from distil_ray.models.narrowing import Sizes
from distil_ray.models.student import build_student, grow_head, set_attention_dropout
from distil_ray.training.identity import Pins, unpinned
from distil_ray.training.objective import check_objective

Models = tuple[PreTrainedModel | None, PreTrainedModel]
"""The teacher, if there is one, and the student."""


def build_tokenizer(config: Config, pins: Pins | None = None) -> PreTrainedTokenizerBase:
    """Load the student's tokenizer, which must have the teacher's vocabulary.

    Args:
        pins: what names on the Hub stand for; None: what they stand for now.

    Raises:
        InputError: it cannot be loaded, or the vocabularies differ.
    """
    pins = unpinned(config) if pins is None else pins
    own = next((load_tokenizer(*pins[role].origin) for role in ("tokenizer", "student") if role in pins), None)
    if config.teacher is None:
        assert own is not None
        return own
    tokenizer = load_tokenizer(*pins["teacher"].origin)
    if own is None:
        return tokenizer
    check_vocabulary(tokenizer, own)
    return own


def build_models(config: Config, tokenizer: PreTrainedTokenizerBase, pins: Pins | None = None) -> Models:
    """Load the teacher (None without one) and make the student as it is before the first update, on the CPU.

    Args:
        pins: what names on the Hub stand for; None: what they stand for now.

    Raises:
        InputError: a model cannot be loaded, made, or used with this tokenizer, row length and the other model.
    """
    pins = unpinned(config) if pins is None else pins
    return _assembled(config, tokenizer, pins, load_masked_lm, load_encoder)


def outline_models(config: Config, tokenizer: PreTrainedTokenizerBase, pins: Pins) -> Models:
    """`build_models` without weights (on torch's meta device): what they are is known from their configurations.

    Raises:
        InputError: as `build_models`, except for what only the weights tell.
    """
    with torch.device("meta"):
        return _assembled(config, tokenizer, pins, outline_masked_lm, outline_encoder)


def _assembled(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    pins: Pins,
    masked_lm: Callable[..., PreTrainedModel],
    encoder: Callable[..., PreTrainedModel],
) -> Models:
    """Both models, made by functions that take the place of one with its head, and of one without."""
    teacher = student = None
    if config.teacher is not None:
        teacher = (masked_lm if config.teacher.head is None else encoder)(*pins["teacher"].origin)
    if "student" in pins:
        student = (masked_lm if config.student.head is None else encoder)(*pins["student"].origin)
        if config.student.head == "new":
            student = grow_head(student, config.run.seed)
    return _checked(config, tokenizer, teacher, student or _make_student(config, teacher, tokenizer, pins))


def _checked(
    config: Config, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel | None, student: PreTrainedModel
) -> Models:
    """Return the models, the student as it is to be trained, if they fit this tokenizer, row length and each other."""
    if config.student.attention_dropout is not None:
        set_attention_dropout(student, config.student.attention_dropout)
    for role, model in (("teacher", teacher), ("student", student)):
        if model is not None:
            check_vocabulary_fits(model, tokenizer)
            if config.data.max_seq_length > max_tokens(model):
                raise InputError(
                    f"data.max_seq_length: given {config.data.max_seq_length}, but the {role} has positions for "
                    f"{max_tokens(model)} tokens; expected at most that"
                )
    if teacher is not None and teacher.config.vocab_size != student.config.vocab_size:
        raise InputError(
            f"student: its vocab_size is {student.config.vocab_size}, the teacher's {teacher.config.vocab_size}; "
            "expected the same, since the student is compared with the teacher piece by piece"
        )
    check_objective(config, teacher, student)
    return teacher, student


def _make_student(
    config: Config, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, pins: Pins
) -> PreTrainedModel:
    student = config.student
    if student.config is not None:
        vocab_size = teacher.config.vocab_size if teacher is not None else id_space(tokenizer)
        pad_token_id = tokenizer.pad_token_id
        assert isinstance(pad_token_id, int)
        revision = pins["configuration"].commit if "configuration" in pins else None
        return model_from_config(
            student.config, vocab_size, pad_token_id, config.run.seed, revision, with_head=student.head is None
        )
    assert teacher is not None
    return build_student(
        teacher,
        layers=student.layers,
        architecture=student.architecture,
        init=student.init,
        seed=config.run.seed,
        head=student.head,
        sizes=Sizes(student.hidden_size, student.num_heads, student.intermediate_size),
    )


def build_plan(
    config: Config, tokenizer: PreTrainedTokenizerBase, commits: Mapping[str, str] | None = None
) -> DataPlan:
    """List the corpus and lay out the run's data; without the weights of `mlm_smoothing`, which need its text.

    Args:
        commits: of data sets on the Hub, see `commits_of`; others are taken as they are now.

    Raises:
        InputError: a source is unusable.
    """
    data = config.data
    return make_plan(
        sources_of(data.sources, commits or {}),
        None if data.eval_sources is None else sources_of(data.eval_sources, commits or {}),
        Vocabulary.from_pretrained(tokenizer),
        RowSettings(
            max_seq_length=data.max_seq_length,
            mlm_probability=data.mlm_probability,
            mask_replace_prob=data.mask_replace_prob,
            random_replace_prob=data.random_replace_prob,
            seed=config.run.seed,
        ),
        eval_fraction=data.eval_fraction,
        num_epochs=config.optim.num_epochs,
        on_bad_file=data.on_bad_file,
    )


def sources_of(sources: Sequence[Source], commits: Mapping[str, str]) -> list[Source]:
    """The sources of a configuration, those of the Hub at known commits."""
    return [at_commit(source, commits) for source in sources]


def smoothing_weights(piece_counts: np.ndarray, smoothing: float) -> np.ndarray:
    """Weights ``[V]`` with which pieces are masked: ``max(count, 1)^-smoothing`` (the DistilBERT authors' code)."""
    weights: np.ndarray = np.maximum(piece_counts, 1).astype(np.float64) ** -smoothing
    return weights
