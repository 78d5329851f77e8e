"""A small configuration, rows and models for tests of the training, without text and without Ray.

Shapes: B rows, T tokens per row, K masked positions per row.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import VOCAB_SIZE, small_model
from transformers import BertTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.config import Config, parse_config
from distil_ray.data.batch import SKIPPED, Arrays, digest
from distil_ray.data.hashing import draws, stream_key, to_unit_interval
from distil_ray.data.schedule import Position
from distil_ray.models.student import build_student
from distil_ray.training.feed import Block, StepRows
from distil_ray.training.learner import Learner

B, T, K = 8, 12, 2
CPU = torch.device("cpu")

torch.set_num_threads(1)  # with models this small, several threads mostly wait for each other


def small_config(**settings: Any) -> Config:
    """A configuration; ``settings`` as in ``optim__eps=1e-3``, or a whole section as in ``teacher=None``."""
    sections: dict[str, Any] = {
        "run": {"name": "small", "storage_path": "/unused"},
        "teacher": {"path": "/unused"},
        "data": {"sources": "/unused", "max_seq_length": T, "mlm_probability": 0.2},
        "optim": {"global_batch_size": B, "num_steps": 100, "learning_rate": 1e-3},
        "runtime": {"micro_batch_size": B, "precision": "fp32"},
    }
    for key, value in settings.items():
        section, _, name = key.partition("__")
        if name:
            sections.setdefault(section, {})[name] = value
        else:
            sections[section] = value
    return parse_config(sections)


def random_rows(num_rows: int, seed: int = 0) -> Arrays:
    """The arrays of `data.batch`: rows 0, 1, … of group ``seed``; some of what was skipped stands at the first."""

    def words(name: str, *shape: int) -> np.ndarray:
        counters = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape)
        return draws(stream_key("test", name, seed), counters)

    input_ids = (2 + words("ids", num_rows, T) % np.uint64(VOCAB_SIZE - 2)).astype(np.uint16)
    positions = np.sort(1 + words("positions", num_rows, T - 2).argsort(axis=1)[:, :K], axis=1).astype(np.int16)
    labels = (2 + words("labels", num_rows, K) % np.uint64(VOCAB_SIZE - 2)).astype(np.uint16)
    skipped = np.zeros((num_rows, len(SKIPPED)), dtype=np.int32)
    skipped[:1, :3] = (3, 1, 0)
    return {
        "input_ids": input_ids,
        "masked_positions": positions,
        "masked_labels": labels,
        "group": np.full(num_rows, seed, dtype=np.int32),
        "row": np.arange(num_rows, dtype=np.int32),
        "group_rows": np.full(num_rows, num_rows, dtype=np.int32),
        "skipped": skipped,
    }


def blocks_of(rows: Arrays, block_rows: int) -> list[Arrays]:
    """Cut rows into blocks; the last one is left out if it is shorter."""
    starts = range(0, len(rows["group"]) - block_rows + 1, block_rows)
    return [{name: values[start : start + block_rows] for name, values in rows.items()} for start in starts]


def step_rows(config: Config, seed: int = 0, *, rank: int = 0, world_size: int = 1) -> StepRows:
    """One step's random rows, as the worker ``rank`` of ``world_size`` gets them."""
    rows = random_rows(config.optim.global_batch_size, seed)
    blocks = [Block(index, block) for index, block in enumerate(blocks_of(rows, config.block_rows))]
    return StepRows(
        blocks=blocks[rank::world_size],
        index=0,
        position=Position(seed, config.optim.global_batch_size - 1),
        group_rows=config.optim.global_batch_size,
        groups_done=seed + 1.0,
        digest=digest(rows),
        skipped=dict.fromkeys(SKIPPED, 0),
        wait_seconds=0.0,
    )


def small_pair(*, dropout: float = 0.0, num_layers: int = 2) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A teacher, and a student of half its layers that disagrees with it. Every weight is set by a hash."""
    fields = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "num_hidden_layers": num_layers}
    teacher, other = (set_weights(small_model("bert", **fields), name) for name in ("teacher", "student"))
    return teacher, build_student(other, layers=None, architecture="distilbert", init="teacher", seed=0)


def set_weights(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Weights that no random generator of any PyTorch version decides."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            key = stream_key(name, index)
            uniform = to_unit_interval(draws(key, np.arange(parameter.numel(), dtype=np.uint64)))
            mean = 1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0  # of LayerNorm's weights
            parameter.copy_(torch.from_numpy(mean + 0.6 * (uniform - 0.5)).view_as(parameter))
    return model


def small_learner(config: Config, *, dropout: float = 0.0) -> Learner:
    """A learner of a small pair, the same one each time."""
    precision = config.runtime.precision
    assert precision != "auto"
    return Learner(config, *small_pair(dropout=dropout), CPU, precision)


def train(learner: Learner, config: Config, steps: range, **part: int) -> list[float]:
    """Do the updates ``steps`` on random rows and return their losses (those of this worker's rows)."""
    losses = []
    for step in steps:
        meter = learner.new_meter(world_size=1)
        learner.update(step_rows(config, seed=step, **part), step, step / config.optim.num_steps, meter)
        losses.append(meter.record()["train/loss"])
    return losses


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of the student's parameters."""
    return {name: parameter.detach().clone() for name, parameter in learner.student.named_parameters()}


def small_tokenizer(*, swapped: bool = False) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of VOCAB_SIZE pieces; ``swapped`` gives two of them each other's id."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB_SIZE - 5))]
    if swapped:
        pieces[10], pieces[11] = pieces[11], pieces[10]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=T)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """Save a Hugging Face folder and return its path."""
    model.save_pretrained(folder)
    (tokenizer or small_tokenizer()).save_pretrained(folder)
    return str(folder)
