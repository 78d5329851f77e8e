"""`--dry-run`: everything a run would do first, shown to the person who is about to pay for it; nothing is trained."""

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.config import Config, learned, to_yaml
from distil_ray.data.batch import Arrays, to_device
from distil_ray.data.plan import DataPlan
from distil_ray.data.tally import describe_text, text_warnings
from distil_ray.models.loading import check_finite_outputs
from distil_ray.models.precision import DTYPES, Precision, fastest_precision
from distil_ray.runs.cluster import check_fits, connect, describe_resources, slots_needed
from distil_ray.runs.console import Console
from distil_ray.runs.storage import RunFolder
from distil_ray.training.assembly import build_models
from distil_ray.training.launcher import check_learned_settings, examine, prepare_data

_NUM_EXAMPLES = 2


def dry_run(config: Config, console: Console) -> None:
    """Resolve the configuration, list what is there, build one batch and show masked rows.

    Raises:
        InputError: anything that a run would refuse, and text that gives no row.
    """
    console.line(to_yaml(config).rstrip() + "\n")
    folder = RunFolder(config.run.storage_path, config.run.name)
    try:
        _show(config, folder, console)
    finally:
        folder.remove_if_empty()


def _show(config: Config, folder: RunFolder, console: Console) -> None:
    known = check_learned_settings(learned(config), folder)
    identity, tokenizer, _, plan = examine(config, folder, console, known)
    teacher, student = build_models(config, tokenizer, identity.models)  # as each worker will
    for line in describe_memory(config, teacher, student):
        console.line(line)
    console.line(connect(slots_needed(config)["CPU"]))
    console.line(describe_resources(config))
    for line in check_fits(config):
        console.line(line)
    notes: list[str] = []
    plan, heldout, sample, _ = prepare_data(config, tokenizer, plan, notes.append)
    if teacher is not None:
        check_finite_outputs(teacher, torch.from_numpy(sample.astype(np.int64)), "teacher")
    rows, tally = plan.first_rows()
    counts, places = tally.counts(), tally.first_places
    warnings = text_warnings(counts, places, max_lost_fraction=config.data.warn_skipped_fraction)
    num_heldout = len(heldout.get("group", ()))
    if len(plan.eval_units) and not num_heldout:
        warnings.append("the held-out text gives no row, so nothing will be evaluated")
    lines = [
        *notes,
        *(f"left out: {error}" for error in tally.unit_errors),
        *(f"of the text that was looked at: {line}" for line in describe_text(counts, places)),
        *_describe_length(config, plan, rows),
        f"held-out rows: {num_heldout:,}",
        *_describe_batch(config, rows),
        *_examples(tokenizer, rows),
        *(f"warning: {warning}" for warning in warnings),
        "dry run: nothing was trained",
    ]
    for line in lines:
        console.line(line)


def _describe_length(config: Config, plan: DataPlan, rows: Arrays) -> list[str]:
    """Tokens and steps, estimated from the bytes per row of the first group that gives rows and of those before it."""
    schedule = plan.schedule
    groups = range(int(rows["group"][0]) + 1)
    num_bytes = sum(int(plan.corpus.unit_bytes[schedule.units_of(group)].sum()) for group in groups)
    bytes_per_row = num_bytes / len(rows["group"])
    rows_per_epoch = int(schedule.unit_bytes.sum() / bytes_per_row)
    batch = config.optim.global_batch_size
    if config.optim.num_steps is not None:
        num_steps, num_epochs = config.optim.num_steps, config.optim.num_steps * batch / max(rows_per_epoch, 1)
    else:
        assert config.optim.num_epochs is not None
        num_epochs = float(config.optim.num_epochs)
        steps_per_block = config.data.steps_per_block
        num_steps = int(rows_per_epoch * num_epochs) // (batch * steps_per_block) * steps_per_block
    length = config.data.max_seq_length
    return [
        f"an epoch: {rows_per_epoch * length:,} tokens in {rows_per_epoch:,} rows, estimated from the first rows",
        f"the run: about {num_steps:,} steps of {batch:,} rows, {num_steps * batch * length:,} tokens, "
        f"{num_epochs:.2f} epochs",
    ]


def _describe_batch(config: Config, rows: Arrays) -> list[str]:
    size = min(config.micro_batch_size, len(rows["group"]))
    batch = to_device(rows, 0, size, torch.device("cpu"))
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch._asdict().items())
    steps = config.block_rows // config.micro_batch_size
    return [
        f"a micro-batch: {shapes}; {steps} per worker per step with {config.runtime.max_workers} workers",
    ]


def describe_memory(config: Config, teacher: PreTrainedModel | None, student: PreTrainedModel) -> list[str]:
    """What a worker holds: fixed by the models, and the largest tensors of a micro-batch (a rough estimate)."""
    half = DTYPES[_precision(config)].itemsize
    fixed = student.num_parameters() * (4 + 4 + 8)  # weights, gradients, Adam's two moments
    fixed += teacher.num_parameters() * half if teacher is not None else 0
    tokens = config.micro_batch_size * config.data.max_seq_length
    width, layers = student.config.hidden_size, student.config.num_hidden_layers
    # About 34 half-precision values per token, layer and unit of width (Korthikanti et al. 2022, without the attention
    # matrix, which fused attention does not keep).
    activations = tokens * width * layers * 17 * half
    return [
        f"memory of a worker: {fixed / 1e9:.2f} GB for weights, gradients and optimizer, "
        f"about {activations / 1e9:.2f} GB more for a micro-batch"
    ]


def _precision(config: Config) -> Precision:
    """The run's, as far as this machine tells: with GPUs, it may be fp16, which takes as much memory as bf16."""
    given = config.runtime.precision
    if given != "auto":
        return given
    return "bf16" if config.runtime.use_gpu else fastest_precision(torch.device("cpu"))


def _examples(tokenizer: PreTrainedTokenizerBase, rows: Arrays) -> list[str]:
    lines = []
    for index in range(min(_NUM_EXAMPLES, len(rows["group"]))):
        positions = rows["masked_positions"][index].astype(int)
        labels = tokenizer.convert_ids_to_tokens(rows["masked_labels"][index].tolist())
        shown = ", ".join(f"{position} {label}" for position, label in zip(positions, labels, strict=True))
        lines += [
            f"row {index}: {tokenizer.decode(rows['input_ids'][index].tolist())}",
            f"  masked (position piece): {shown}",
        ]
    return lines
