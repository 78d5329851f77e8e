"""Masked language modeling on held-out text: one Ray Data pipeline from files to each model's figures.

Shapes: B rows, T tokens per row, K masked positions per row, P ordinary pieces of a row, M models.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distil_ray.config import Source
from distil_ray.data.batch import Arrays, Batch, to_device
from distil_ray.data.corpus import read_unit
from distil_ray.data.masking import special_table
from distil_ray.data.pipeline import Room, evaluated_blocks
from distil_ray.data.plan import IN_SAMPLE, TextPlan, plan_text
from distil_ray.data.rows import RowSettings
from distil_ray.data.tokenization import Vocabulary
from distil_ray.errors import InputError
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import HeldOutText, Resources
from distil_ray.models.host_memory import keep_freed_memory
from distil_ray.models.loading import (
    check_vocabulary,
    check_vocabulary_fits,
    load_masked_lm,
    load_tokenizer,
    max_tokens,
)
from distil_ray.runs.cluster import assigned_device, has_autoscaler
from distil_ray.runs.figures import format_seconds
from distil_ray.training.heldout import NUM_FIGURES, figure_sums

SECONDS_BETWEEN_LINES = 30.0

# A block of several batches costs Ray less, and too few blocks leave processes without work.
_MAX_BATCHES_PER_BLOCK, _MIN_BLOCKS = 16, 64


class Intrinsic(NamedTuple):
    """How well a model predicts masked pieces, and how close it is to the teacher.

    Attributes:
        num_rows: rows evaluated.
        num_masked: pieces masked in them, with the masks of training (80% [MASK], 10% a random piece, 10% as it is).
        mlm_loss: cross-entropy in nats per masked piece.
        mlm_accuracy: share of the masked pieces to which the model gives the highest probability.
        pseudo_perplexity: exp of the mean of -log p(piece | the others), each piece masked alone (Salazar et al. 2020,
            arXiv 1910.14659), over a sample of the rows; None without a sample.
        kl_to_teacher: KL(teacher ‖ model) in nats per masked piece, at T = 1; None for the teacher itself.
        teacher_agreement: share of the masked pieces for which both give the same piece the highest probability;
            None likewise.
    """

    num_rows: int
    num_masked: int
    mlm_loss: float
    mlm_accuracy: float
    pseudo_perplexity: float | None
    kl_to_teacher: float | None
    teacher_agreement: float | None


def measure_intrinsic(
    models: Sequence[Model],
    sources: Sequence[Source],
    text: HeldOutText,
    resources: Resources,
    tell: Callable[[str], None],
) -> dict[str, Intrinsic]:
    """Evaluate models on text that none of them was trained on, on the Ray that this process is connected to.

    The rows are a pure function of the sources, the teacher's tokenizer and ``text``, made like a run's held-out rows.
    Neither they nor the order of the sums depends on the cluster.

    Args:
        models: the teacher first.
        sources: the text.
        text: which rows and masks.
        resources: of each process that evaluates. Each holds all models.
        tell: called with a line at the start, and with progress from time to time.

    Raises:
        InputError: a model or the text cannot be used, or a process fits on no node.
        RunError: a process failed, or was lost too often.
    """
    vocabulary = _check_models(models, text.max_seq_length)
    plan = text_plan(sources, vocabulary, text)
    block_rows = rows_per_block(text)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    max_blocks = None if text.num_rows is None else -(-text.num_rows // block_rows)
    room = room_on(nodes, resources, resources.gpus_for(models), max_blocks, can_grow=has_autoscaler())
    tell(_describe(plan, text, room))
    arguments = (models, vocabulary.mask_id, vocabulary.special_ids, text.batch_size, resources.cpus)
    totals = Totals.zero(len(models))
    began = told = time.monotonic()
    for part in evaluated_blocks(plan, EvaluatorActor, arguments, block_rows=block_rows, room=room):
        totals = totals.plus(part)
        now = time.monotonic()
        if now - told > SECONDS_BETWEEN_LINES:
            told, share = now, plan.share_completed(*map(int, part["place"][-1]))
            left = format_seconds((now - began) / share * (1 - share))
            tell(f"text: {totals.num_rows:,} rows, {share:.0%}, {left} left")
    return figures_of(totals, [model.name for model in models], sources, text)


def text_plan(sources: Sequence[Source], vocabulary: Vocabulary, text: HeldOutText) -> TextPlan:
    """The rows and masks of a protocol.

    Raises:
        InputError: a source is unusable.
    """
    return plan_text(
        sources,
        vocabulary,
        RowSettings(
            max_seq_length=text.max_seq_length,
            mlm_probability=text.mlm_probability,
            mask_replace_prob=0.8,
            random_replace_prob=0.1,
            seed=text.seed,
        ),
        num_rows=text.num_rows,
        num_sampled=text.pseudo_perplexity_rows,
    )


def figures_of(
    totals: "Totals", names: Sequence[str], sources: Sequence[Source], text: HeldOutText
) -> dict[str, Intrinsic]:
    """The figures of each model, by its name.

    Raises:
        InputError: there was no row to evaluate.
    """
    if not totals.num_rows:
        raise InputError(
            f"{', '.join(map(str, sources))}: no row has {text.num_masked} ordinary pieces to mask; expected "
            "text, in the column that the source names, in a language that the tokenizer knows"
        )
    return {name: totals.of(index) for index, name in enumerate(names)}


def rows_per_block(text: HeldOutText) -> int:
    """Rows that a process gets at a time: one or several batches, depending on the protocol alone."""
    wanted = _MAX_BATCHES_PER_BLOCK if text.num_rows is None else text.num_rows // (_MIN_BLOCKS * text.batch_size)
    return text.batch_size * min(max(wanted, 1), _MAX_BATCHES_PER_BLOCK)


def room_on(
    nodes: Sequence[Mapping[str, float]],
    resources: Resources,
    gpus: float,
    max_processes: int | None,
    *,
    can_grow: bool,
) -> Room:
    """As many processes as fit on the nodes, and the remaining CPU slots for reading and masking.

    Args:
        nodes: Ray resources of each.
        resources: of a process.
        gpus: of a process.
        max_processes: that there is work for; None: any number.
        can_grow: whether nodes may be added, for which one process would then wait.

    Raises:
        InputError: a process fits on no node, and none will be added.
    """
    num_processes = sum(resources.num_fitting(node, gpus) for node in nodes)
    if not num_processes and not can_grow:
        raise InputError(
            f"resources: no node of the cluster has {resources.cpus} CPU slots and {gpus:g} GPUs for a "
            "process that evaluates text; request less (resources.cpus, resources.gpus), or add nodes"
        )
    num_processes = max(min(num_processes, max_processes or num_processes), 1)
    spare = int(sum(node.get("CPU", 0.0) for node in nodes)) - num_processes * resources.cpus
    return Room(num_processes, resources.cpus, gpus, max(spare, 0), resources.max_retries)


def _describe(plan: TextPlan, text: HeldOutText, room: Room) -> str:
    rows = "all rows" if text.num_rows is None else f"up to {text.num_rows:,} rows"
    gpus = f" and {room.gpus:g} GPU" if room.gpus else ""
    return (
        f"text: {rows} of {text.max_seq_length} pieces from {len(plan.units):,} of {plan.corpus.num_units:,} units; "
        f"processes: {room.num_actors} × {room.cpus:g} CPU{gpus}"
    )


def text_digest(sources: Sequence[Source], models: Sequence[Model], text: HeldOutText) -> str:
    """SHA-256 of the documents that `measure_intrinsic` would read, wherever they are stored.

    Raises:
        InputError: a source or the teacher's tokenizer is unusable.
    """
    vocabulary = Vocabulary.from_pretrained(load_tokenizer(*models[0].origin))
    plan = text_plan(sources, vocabulary, text)
    digest = hashlib.sha256()
    for unit, num_rows in zip(plan.units, plan.num_rows, strict=True):
        digest.update(f"unit of which {num_rows} rows\n".encode())
        for document in read_unit(plan.corpus, int(unit)):
            digest.update(json.dumps(document).encode())
    return digest.hexdigest()


def _check_models(models: Sequence[Model], max_seq_length: int) -> Vocabulary:
    """Load each model once, to check that all can be compared on such rows; return the teacher's vocabulary."""
    tokenizer = load_tokenizer(*models[0].origin)
    vocab_size = None
    for one in models:
        where = f"{one.name}, {one.path}"
        model = load_masked_lm(*one.origin)
        vocab_size = vocab_size or model.config.vocab_size
        try:
            check_vocabulary(tokenizer, load_tokenizer(*one.origin))
            check_vocabulary_fits(model, tokenizer)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if model.config.vocab_size != vocab_size:
            raise InputError(
                f"{where}: its vocab_size is {model.config.vocab_size}, the teacher's {vocab_size}; expected "
                "the same, since it is compared with the teacher piece by piece"
            )
        if max_seq_length > max_tokens(model):
            raise InputError(
                f"text.max_seq_length: given {max_seq_length}, but {where}, takes {max_tokens(model)} tokens at most"
            )
    return Vocabulary.from_pretrained(tokenizer)


# ------------------------------------------------------------------------------------------------- numerics


class Totals(NamedTuple):
    """Sums over blocks.

    Attributes:
        num_rows, num_masked, num_alone: rows, masked pieces, and pieces masked alone.
        masked: the sums of `figure_sums` ``[M, NUM_FIGURES]``.
        alone: -log p of the pieces masked alone ``[M]``.
    """

    num_rows: int
    num_masked: int
    num_alone: int
    masked: npt.NDArray[np.float64]
    alone: npt.NDArray[np.float64]

    @classmethod
    def zero(cls, num_models: int) -> Self:
        return cls(0, 0, 0, np.zeros((num_models, NUM_FIGURES)), np.zeros(num_models))

    def plus(self, part: Arrays) -> Self:
        """These sums and a block's, as `Evaluator` returns them."""
        num_rows, num_masked, num_alone = part["counts"].sum(axis=0).tolist()
        return type(self)(
            self.num_rows + num_rows,
            self.num_masked + num_masked,
            self.num_alone + num_alone,
            self.masked + part["masked"].sum(axis=0),
            self.alone + part["alone"].sum(axis=0),
        )

    def of(self, index: int) -> Intrinsic:
        """The figures of a model; index 0 is the teacher."""
        loss, accuracy, kl, agreement = (self.masked[index] / self.num_masked).tolist()
        return Intrinsic(
            num_rows=self.num_rows,
            num_masked=self.num_masked,
            mlm_loss=loss,
            mlm_accuracy=accuracy,
            pseudo_perplexity=float(np.exp(self.alone[index] / self.num_alone)) if self.num_alone else None,
            kl_to_teacher=kl if index else None,
            teacher_agreement=agreement if index else None,
        )


class Evaluator:
    """Evaluates blocks with models of one vocabulary, the teacher first, on one device.

    Args:
        mask_id, special_ids: the tokenizer's.
        batch_size: rows in a forward pass.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        mask_id: int,
        special_ids: Sequence[int],
        batch_size: int,
        device: torch.device,
    ) -> None:
        keep_freed_memory(device)
        self._models = [nn.Module.to(model.eval(), device) for model in models]
        self._mask_id, self._batch_size, self._device = mask_id, batch_size, device
        self._is_special = torch.from_numpy(special_table(models[0].config.vocab_size, tuple(special_ids))).to(device)

    @torch.no_grad()
    def __call__(self, rows: Arrays) -> Arrays:
        """Evaluate a block: the arrays of `batch` and `IN_SAMPLE`.

        Returns:
            Arrays of one row: ``masked [1, M, NUM_FIGURES]`` and ``alone [1, M]`` float64, ``counts [1, 3]`` and
            ``place [1, 3]`` int64; see `Totals`. The place is that of the block's last row, see
            `TextPlan.share_completed`.
        """
        masked = torch.zeros(len(self._models), NUM_FIGURES, dtype=torch.float64, device=self._device)
        alone = torch.zeros(len(self._models), dtype=torch.float64, device=self._device)
        num_alone = 0
        num_rows = len(rows["row"])
        for start in range(0, num_rows, self._batch_size):
            stop = min(start + self._batch_size, num_rows)
            batch = to_device(rows, start, stop, self._device)
            masked += figure_sums(self._models, batch)
            whole = batch.input_ids.scatter(1, batch.masked_positions, batch.masked_labels)
            for row in np.flatnonzero(rows[IN_SAMPLE][start:stop]):
                singles = mask_each(whole[row], self._is_special, self._mask_id)
                num_alone += len(singles.input_ids)
                for parts in zip(*(values.split(self._batch_size) for values in singles), strict=True):
                    alone += figure_sums(self._models, Batch(*parts))[:, 0]
        counts = [num_rows, rows["masked_labels"].size, num_alone]
        place = [rows[name][-1] for name in ("group", "row", "group_rows")]
        return {
            "masked": masked.cpu().numpy()[None],
            "alone": alone.cpu().numpy()[None],
            "counts": np.array([counts], dtype=np.int64),
            "place": np.array([place], dtype=np.int64),
        }


class EvaluatorActor(Evaluator):
    """An evaluator in a process of the cluster, on its GPU if it has one."""

    def __init__(
        self, models: Sequence[Model], mask_id: int, special_ids: Sequence[int], batch_size: int, num_threads: int
    ) -> None:
        torch.set_num_threads(num_threads)
        loaded = [load_masked_lm(*model.origin) for model in models]
        super().__init__(loaded, mask_id, special_ids, batch_size, assigned_device())


def mask_each(row: Tensor, is_special: Tensor, mask_id: int) -> Batch:
    """A row ``[T]`` once for each of its P ordinary pieces, with that one masked: ``input_ids [P, T]``, K = 1.

    Args:
        row: ids int64.
        is_special: bool table of pieces that are neither masked nor predicted.
        mask_id: id of [MASK].
    """
    positions = (~is_special[row]).nonzero()
    whole = row.expand(len(positions), -1)
    return Batch(whole.scatter(1, positions, mask_id), positions, whole.gather(1, positions))
