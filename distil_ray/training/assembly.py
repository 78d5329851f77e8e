"""Configuration -> the parts of a run: tokenizer, models, plan of the data. The same in the driver and the workers."""

from typing import get_args

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray import config as configuration
from distil_ray.config import Config
from distil_ray.data.corpus import Source
from distil_ray.data.plan import DataPlan, make_plan
from distil_ray.data.rows import RowSettings
from distil_ray.data.tokenization import Vocabulary, id_space
from distil_ray.distillation.distiller import Distiller, Term
from distil_ray.distillation.models import (
    check_vocabulary,
    check_vocabulary_fits,
    load_masked_lm,
    load_tokenizer,
    max_tokens,
    model_from_config,
)
from distil_ray.distillation.student import build_student
from distil_ray.errors import InputError


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Load the student's tokenizer, which must have the teacher's vocabulary.

    Raises:
        InputError: it cannot be loaded, or the vocabularies differ.
    """
    teacher = config.teacher
    own_path = config.student.tokenizer or config.student.path
    if teacher is None:
        assert own_path is not None
        return load_tokenizer(own_path)
    tokenizer = load_tokenizer(teacher.path, teacher.revision)
    if own_path is not None:
        own = load_tokenizer(own_path)
        check_vocabulary(tokenizer, own)
        return own
    return tokenizer


def build_models(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """Load the teacher (None without one) and make the student as it is before the first update, on the CPU.

    Raises:
        InputError: a model cannot be loaded, made, or used with this tokenizer, row length and the other model.
    """
    teacher = None
    if config.teacher is not None:
        teacher = load_masked_lm(config.teacher.path, config.teacher.revision)
    student = _build_student(config, teacher, tokenizer)
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
    build_distiller(config, teacher, student)
    return teacher, student


def build_distiller(config: Config, teacher: PreTrainedModel | None, student: PreTrainedModel) -> Distiller:
    """The losses with a positive weight, of this student against this teacher.

    Raises:
        InputError: the two do not go together.
    """
    distill = config.distill
    terms: tuple[Term, ...] = get_args(Term)
    return Distiller(
        student,
        teacher,
        terms=frozenset(term for term in terms if distill.shares[term] > 0),
        temperature=distill.temperature,
        ce_positions=distill.ce_positions,
    )


def _build_student(
    config: Config, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    student = config.student
    if student.path is not None:
        return load_masked_lm(student.path)
    if student.config is not None:
        vocab_size = teacher.config.vocab_size if teacher is not None else id_space(tokenizer)
        pad_token_id = tokenizer.pad_token_id
        assert isinstance(pad_token_id, int)
        return model_from_config(student.config, vocab_size, pad_token_id, config.run.seed)
    assert teacher is not None
    return build_student(
        teacher,
        layers=student.layers,
        architecture=student.architecture,
        init=student.init,
        seed=config.run.seed,
    )


def build_plan(config: Config, tokenizer: PreTrainedTokenizerBase) -> DataPlan:
    """List the corpus and lay out the run's data; without the weights of `mlm_smoothing`, which need its text.

    Raises:
        InputError: a source is unusable.
    """
    data = config.data
    return make_plan(
        _sources(data.sources),
        None if data.eval_sources is None else _sources(data.eval_sources),
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


def _sources(sources: tuple[configuration.Source, ...]) -> list[Source]:
    return [Source(**source.model_dump()) for source in sources]


def smoothing_weights(piece_counts: np.ndarray, smoothing: float) -> np.ndarray:
    """Weights ``[V]`` with which pieces are masked: ``max(count, 1)^-smoothing`` (the DistilBERT authors' code)."""
    weights: np.ndarray = np.maximum(piece_counts, 1).astype(np.float64) ** -smoothing
    return weights
