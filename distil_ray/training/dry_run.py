"""`--dry-run`: everything a run would do first, shown to the person who is about to pay for it; nothing is trained."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.config import Config, learned, to_yaml
from distil_ray.data.batch import Arrays, to_device
from distil_ray.data.plan import DataPlan
from distil_ray.data.tally import describe_text, text_warnings
from distil_ray.distillation.intermediate import MAX_HEADS
from distil_ray.distillation.relations import MAX_RELATION_BYTES
from distil_ray.errors import InputError
from distil_ray.models.families import family_of
from distil_ray.models.loading import check_finite_outputs
from distil_ray.models.precision import DTYPES, Precision, fastest_precision
from distil_ray.runs.cluster import check_fits, connect, describe_resources, slots_needed, usable_cpus
from distil_ray.runs.console import Console
from distil_ray.runs.storage import RunFolder
from distil_ray.runs.trackers import check_trackers
from distil_ray.training.assembly import build_models
from distil_ray.training.estimate import Length, run_length
from distil_ray.training.examination import examine, prepare_data
from distil_ray.training.forecast import Assumptions, Subject, assumptions, forecast
from distil_ray.training.launcher import check_learned_settings

_NUM_EXAMPLES = 2


def dry_run(config: Config, console: Console, *, mfu: float | None = None, cluster: Path | None = None) -> None:
    """Resolve the configuration, list what is there, build one batch, show masked rows, and estimate the run.

    Args:
        mfu, cluster: what the estimate assumes, see `assumptions`.

    Raises:
        InputError: anything that a run would refuse but for a cluster that is too small, and text that gives no row.
    """
    check_trackers(config)
    assumed = assumptions(config, mfu, cluster)
    console.line(to_yaml(config).rstrip() + "\n")
    folder = RunFolder(config.run.storage_path, config.run.name)
    try:
        _show(config, folder, console, assumed)
    finally:
        folder.remove_if_empty()


def _show(config: Config, folder: RunFolder, console: Console, assumed: Assumptions) -> None:
    known = check_learned_settings(learned(config), folder)
    identity, tokenizer, outlines, plan = examine(config, folder, console, known)
    teacher, _ = build_models(config, tokenizer, identity.models)  # as each worker will
    precision = _precision(config)
    fixed_bytes, batch_bytes = worker_bytes(config, *outlines, precision)
    console.line(
        f"memory of a worker: {fixed_bytes / 1e9:.2f} GB for weights, gradients and optimizer, "
        f"about {batch_bytes / 1e9:.2f} GB more for a micro-batch"
    )
    console.line(connect(slots_needed(config)["CPU"]))
    console.line(describe_resources(config))
    here, remarks = _fitted(config)
    for line in remarks:
        console.line(line)
    notes: list[str] = []
    plan, heldout, sample, _ = prepare_data(here, tokenizer, plan, notes.append)
    if teacher is not None:
        check_finite_outputs(teacher, torch.from_numpy(sample.astype(np.int64)), "teacher")
    rows, tally = plan.first_rows()
    counts, places = tally.counts(), tally.first_places
    warnings = text_warnings(counts, places, max_lost_fraction=config.data.warn_skipped_fraction)
    num_heldout = len(heldout.get("group", ()))
    if len(plan.eval_units) and not num_heldout:
        warnings.append("the held-out text gives no row, so nothing will be evaluated")
    length = run_length(config, _rows_per_epoch(plan, rows))
    lines = [
        *notes,
        *(f"left out: {error}" for error in tally.unit_errors),
        *(f"of the text that was looked at: {line}" for line in describe_text(counts, places)),
        *_describe_length(config, length),
        f"held-out rows: {num_heldout:,}",
        *_describe_batch(config, rows),
        *_examples(tokenizer, rows),
        *(f"warning: {warning}" for warning in warnings),
    ]
    for line in lines:
        console.line(line)
    del teacher  # the workers that are timed need its room
    subject = Subject(
        config, identity.models, outlines, plan, rows, num_heldout, length, precision, fixed_bytes + batch_bytes
    )
    for line in forecast(subject, assumed, here.runtime.data_label):
        console.line(line)
    console.line("dry run: nothing was trained")


def _fitted(config: Config) -> tuple[Config, list[str]]:
    """The configuration with which text is looked at here, and what there is to say of the cluster."""
    try:
        return config, check_fits(config)
    except InputError as error:
        fewer = {"data_label": None, "data_cpus": min(config.runtime.data_cpus, usable_cpus())}
        here = config.model_copy(update={"runtime": config.runtime.model_copy(update=fewer)})
        return here, [f"warning: the run would be refused here: {error}"]


def _rows_per_epoch(plan: DataPlan, rows: Arrays) -> int:
    """Estimated from the bytes per row of the first group that gives rows and of those before it."""
    schedule = plan.schedule
    groups = range(int(rows["group"][0]) + 1)
    num_bytes = sum(int(plan.corpus.unit_bytes[schedule.units_of(group)].sum()) for group in groups)
    return int(schedule.unit_bytes.sum() / (num_bytes / len(rows["group"])))


def _describe_length(config: Config, length: Length) -> list[str]:
    batch, tokens = config.optim.global_batch_size, config.data.max_seq_length
    num_rows, num_steps = length.rows_per_epoch, length.num_steps
    return [
        f"an epoch: {num_rows * tokens:,} tokens in {num_rows:,} rows, estimated from the first rows",
        f"the run: about {num_steps:,} steps of {batch:,} rows, {num_steps * batch * tokens:,} tokens, "
        f"{length.num_epochs:.2f} epochs",
    ]


def _describe_batch(config: Config, rows: Arrays) -> list[str]:
    size = min(config.micro_batch_size, len(rows["group"]))
    batch = to_device(rows, 0, size, torch.device("cpu"))
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch._asdict().items())
    steps = config.block_rows // config.micro_batch_size
    return [
        f"a micro-batch: {shapes}; {steps} per worker per step with {config.runtime.max_workers} workers",
    ]


def worker_bytes(
    config: Config, teacher: PreTrainedModel | None, student: PreTrainedModel, precision: Precision
) -> tuple[float, float]:
    """What a worker holds: fixed by the models, and the largest tensors of a micro-batch (a rough estimate)."""
    num_bytes = DTYPES[precision].itemsize
    fixed = student.num_parameters() * (4 + 4 + 8)  # weights, gradients, Adam's two moments
    fixed += teacher.num_parameters() * num_bytes if teacher is not None else 0
    tokens = config.micro_batch_size * config.data.max_seq_length
    width, layers = student.config.hidden_size, student.config.num_hidden_layers
    relations = 0
    if config.distill.alpha_relations > 0:  # five tensors of them are alive, see `relation_loss`
        heads = config.distill.relation_heads or MAX_HEADS
        relations = 5 * min(MAX_RELATION_BYTES, 4 * heads * tokens * config.data.max_seq_length)
    # About 34 bytes in half precision per token, layer and unit of width, and 5 per score of attention, which fused
    # attention does not keep (Korthikanti et al. 2022).
    is_fused = family_of(student.config).attention == "sdpa"
    scores = 0 if is_fused else student.config.num_attention_heads * config.data.max_seq_length
    return fixed, tokens * layers * (17 * width + 2.5 * scores) * num_bytes + relations


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
