"""What a run is made of, examined before it starts: its models and its text, and what must be known of them first."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.config import Config, learned
from distil_ray.data.batch import Arrays
from distil_ray.data.parity import check_parity, with_fast_tokenizer
from distil_ray.data.pipeline import heldout_rows, look_at_text, sample_piece_counts
from distil_ray.data.plan import DataPlan
from distil_ray.data.rows import pack_rows
from distil_ray.data.tally import text_warnings
from distil_ray.data.tokenization import token_stream
from distil_ray.models.tokenizer import remarks
from distil_ray.runs.console import Console
from distil_ray.runs.storage import RunFolder
from distil_ray.training.assembly import Models, build_plan, build_tokenizer, outline_models, smoothing_weights
from distil_ray.training.identity import SCHEMA, Identity, data_commits, pin_models, text_contents


class Examined(NamedTuple):
    """What a run is made of; ``models``: teacher and student without their weights."""

    identity: Identity
    tokenizer: PreTrainedTokenizerBase
    models: Models
    plan: DataPlan


def examine(
    config: Config, folder: RunFolder, console: Console, known: Identity | None, *, is_resumed: bool = True
) -> Examined:
    """Examine and describe everything that needs neither Ray nor the models' weights.

    Args:
        known: what models and text are, as far as that is known already.
        is_resumed: whether that is of the run in the folder, so that it must not have changed.

    Raises:
        InputError: something cannot be used, or does not belong to the run that is in the folder.
    """
    models = pin_models(config, {} if known is None else known.models)
    if known is not None and is_resumed:
        known.check_models(models, folder)
        if known.schema < SCHEMA:
            console.line("the run was begun by an older version, which did not record the models' content")
    tokenizer = build_tokenizer(config, models)
    outlines = outline_models(config, tokenizer, models)
    for line in [*describe_models(config, *outlines), *remarks(tokenizer)]:
        console.line(line)
    plan = build_plan(config, tokenizer, {} if known is None else known.commits)
    for line in describe_data(config, plan):
        console.line(line)
    folder.check_writable()
    text = text_contents(plan, known.text if known is not None else ())
    if known is not None and is_resumed:
        known.check_data(plan.fingerprint(), text, folder)
    identity = Identity(learned(config), plan.fingerprint(), models, text, data_commits(config, plan))
    return Examined(identity, tokenizer, outlines, plan)


def describe_models(config: Config, teacher: PreTrainedModel | None, student: PreTrainedModel) -> list[str]:
    """Lines about teacher, student and the losses."""
    lines = []
    if teacher is not None and config.teacher is not None:
        lines.append(f"teacher: {config.teacher.path}, {_describe_model(teacher)}")
    share = f" ({student.num_parameters() / teacher.num_parameters():.0%} of the teacher)" if teacher else ""
    lines.append(f"student: {_describe_model(student)}{share}")
    weights = ", ".join(f"{name} {share:.3f}" for name, share in config.distill.shares.items() if share > 0)
    lines.append(f"loss weights, as shares of their sum: {weights}")
    return lines


def _describe_model(model: PreTrainedModel) -> str:
    config = model.config
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{model.num_parameters():,} parameters"
    )


def describe_data(config: Config, plan: DataPlan) -> list[str]:
    """Lines about the corpus and its order."""
    corpus, schedule = plan.corpus, plan.schedule
    lines = [
        f"text: {len(corpus.files):,} files, {corpus.num_bytes / 1e6:,.1f} MB in {corpus.num_units:,} units; "
        f"{len(schedule.units):,} to train on in {schedule.groups_per_epoch:,} groups per epoch, "
        + _describe_held_out(plan, config.data.eval_fraction)
    ]
    lines += [f"left out {file.path}: {file.reason}" for file in corpus.skipped_files]
    if plan.eval_corpus is not corpus:
        lines += [f"left out {file.path}: {file.reason}" for file in plan.eval_corpus.skipped_files]
    return lines


def _describe_held_out(plan: DataPlan, eval_fraction: float) -> str:
    line = f"{len(plan.eval_units):,} held out"
    if plan.eval_corpus is not plan.corpus or len(plan.eval_units) == 0:
        return line
    share = plan.corpus.unit_bytes[plan.eval_units].sum() / plan.corpus.num_bytes
    line += f", {share:.1%} of the text"
    if share > max(2 * eval_fraction, _LARGE_HELD_OUT_SHARE):
        line += f" where data.eval_fraction is {eval_fraction:g}: units are not divided, so that text in more files or "
        line += "row groups would leave more to train on"
    return line


_LARGE_HELD_OUT_SHARE = 0.05  # of the text: what is held out teaches nothing


class Prepared(NamedTuple):
    """What must be known about the text before the first step.

    Attributes:
        plan: with the weights of `mlm_smoothing` and the fast tokenizer, if there is one.
        heldout: held-out rows.
        sample: ids of some rows to train on ``[B, T]``, not masked.
        warnings: what the user should look at.
    """

    plan: DataPlan
    heldout: Arrays
    sample: npt.NDArray[np.integer]
    warnings: list[str]


def prepare_data(
    config: Config, tokenizer: PreTrainedTokenizerBase, plan: DataPlan, tell: Callable[[str], None]
) -> Prepared:
    """Try the text and the tokenizer on each other, and read what must be known before the first step.

    Args:
        tell: takes lines for the user.

    Raises:
        InputError: the text cannot be used, or the tokenizer gives other pieces here than in transformers.
    """
    label = config.runtime.data_label
    tally, texts = look_at_text(plan, node_label=label)
    check_parity(tokenizer, plan.vocabulary, texts)
    vocabulary, line = with_fast_tokenizer(plan.vocabulary, texts)
    if line is not None:
        tell(line)
    plan = replace(plan, vocabulary=vocabulary)
    cpus: dict[str, Any] = {"num_cpus": config.runtime.data_cpus, "node_label": label}
    smoothing = config.data.mlm_smoothing
    if smoothing:
        weights = smoothing_weights(sample_piece_counts(plan, **cpus), smoothing)
        plan = replace(plan, settings=replace(plan.settings, piece_weights=weights))
    max_lost = config.data.warn_skipped_fraction
    return Prepared(
        plan,
        heldout_rows(plan, config.eval.num_rows, warn=tell, **cpus),
        _rows_of(plan, texts),
        text_warnings(tally.counts(), tally.first_places, max_lost_fraction=max_lost),
    )


def _rows_of(plan: DataPlan, texts: Sequence[str]) -> npt.NDArray[np.integer]:
    vocabulary = plan.vocabulary
    ids = {"cls_id": vocabulary.cls_id, "sep_id": vocabulary.sep_id}
    stream = token_stream(vocabulary, texts)
    return pack_rows(stream, max_seq_length=plan.settings.max_seq_length, **ids)[:_NUM_SAMPLE_ROWS]


_NUM_SAMPLE_ROWS = 4  # on which the teacher is tried
