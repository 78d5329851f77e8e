"""A text of the small tokenizer's pieces, models that know it, and figures found the plain way: all logits at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_models import VOCAB_SIZE, small_model
from torch.nn import functional as F
from training_parts import CPU, save_model, small_tokenizer
from transformers import PreTrainedModel

from distil_ray.config import Source
from distil_ray.data.plan import IN_SAMPLE
from distil_ray.data.tokenization import Vocabulary
from distil_ray.evaluation.intrinsic import Evaluator, Totals, rows_per_block, text_plan
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import HeldOutText
from distil_ray.models.origin import Origin

TOKENIZER = small_tokenizer()
VOCABULARY = Vocabulary.from_pretrained(TOKENIZER)
TEXT = HeldOutText(max_seq_length=12, mlm_probability=0.2, seed=1, num_rows=22, pseudo_perplexity_rows=3, batch_size=4)


def write_text(path: Path, lengths: Sequence[int]) -> list[Source]:
    """A Parquet file with one unit a document of so many words, always in the same order; one of no word is blank."""
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in generator.permutation(VOCAB_SIZE - 5)]
    starts = generator.integers(0, len(words), len(lengths)).tolist()
    parts = zip(starts, lengths, strict=True)
    documents = [" ".join(words[i % len(words)] for i in range(start, start + length)) for start, length in parts]
    pq.write_table(pa.table({"text": [document or " " * 200 for document in documents]}), path, row_group_size=1)
    return [Source(path=str(path))]


def save_models(folder: Path) -> dict[str, str]:
    """A teacher, and a student that agrees with it now and then; by the name of their row."""
    teacher = small_model("bert", num_hidden_layers=2)
    return {
        "teacher": save_model(folder / "teacher", teacher),
        "half": save_model(folder / "half", nearby(teacher)),
    }


def listed(paths: dict[str, str]) -> list[Model]:
    """Models by the names and paths of `save_models`."""
    return [Model(name, Origin(path)) for name, path in paths.items()]


def nearby(model: PreTrainedModel) -> PreTrainedModel:
    """The model with other, but similar, weights."""
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return other


def plain_figures(models: list[PreTrainedModel], rows: dict[str, Any]) -> list[dict[str, float | None]]:
    """What `Intrinsic` says of each model, the teacher first, row by row and piece by piece."""
    input_ids, positions, labels = (
        torch.from_numpy(rows[name].astype("int64")) for name in ("input_ids", "masked_positions", "masked_labels")
    )
    index = torch.arange(len(input_ids)).unsqueeze(1)
    whole = input_ids.clone()
    whole[index, positions] = labels
    teacher_log_q = None
    found = []
    for model in models:
        with torch.no_grad():
            log_p = model(input_ids=input_ids).logits[index, positions].double().log_softmax(-1)
            alone = [plain_pseudo_losses(model, row) for row in whole[torch.from_numpy(rows[IN_SAMPLE])]]
        log_q = log_p if teacher_log_q is None else teacher_log_q
        figures = {
            "num_rows": len(input_ids),
            "num_masked": labels.numel(),
            "mlm_loss": F.nll_loss(log_p.flatten(0, 1), labels.flatten()).item(),
            "mlm_accuracy": (log_p.argmax(-1) == labels).double().mean().item(),
            "pseudo_perplexity": torch.cat(alone).mean().exp().item() if alone else None,
            "kl_to_teacher": None,
            "teacher_agreement": None,
        }
        if teacher_log_q is not None:
            figures["kl_to_teacher"] = (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()
            figures["teacher_agreement"] = (log_q.argmax(-1) == log_p.argmax(-1)).double().mean().item()
        teacher_log_q = log_q
        found.append(figures)
    return found


def plain_pseudo_losses(model: PreTrainedModel, row: torch.Tensor) -> torch.Tensor:
    """-log p of each ordinary piece of a row when it alone is masked (Salazar et al. 2020)."""
    losses = []
    for position, piece in enumerate(row.tolist()):
        if piece in TOKENIZER.all_special_ids:
            continue
        masked = row.clone()
        masked[position] = TOKENIZER.mask_token_id
        logits = model(input_ids=masked.unsqueeze(0)).logits[0, position].double()
        losses.append(-logits.log_softmax(-1)[piece])
    return torch.stack(losses)


def close(figures: dict[str, float | None], rel: float) -> dict[str, Any]:
    """What equals figures up to rounding; their counts, and figures that there are not, must be the same."""
    return {
        name: pytest.approx(value, rel=rel) if isinstance(value, float) else value for name, value in figures.items()
    }


def all_rows(sources: list[Source], text: HeldOutText) -> dict[str, np.ndarray]:
    """The rows of a protocol."""
    plan = text_plan(sources, VOCABULARY, text)
    units = [plan.rows_of(index) for index in range(len(plan.units))]
    return {name: np.concatenate([rows[name] for rows in units]) for name in units[0]}


def totals_of(models: list[PreTrainedModel], rows: dict[str, np.ndarray], text: HeldOutText) -> Totals:
    """What the pipeline adds up, found in this process block by block."""
    totals, step = Totals.zero(len(models)), rows_per_block(text)
    evaluator = Evaluator(models, VOCABULARY.mask_id, VOCABULARY.special_ids, text.batch_size, CPU)
    for start in range(0, len(rows["row"]), step):
        block = {name: values[start : start + step] for name, values in rows.items()}
        totals = totals.plus(evaluator(block))
    return totals
