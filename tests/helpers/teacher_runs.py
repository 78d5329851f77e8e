"""Short runs with a small random teacher, and what has to hold for each of them. Without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
from conftest import tiny_settings
from plain_runs import Event, PlainRun
from runs import changed, digests, losses, weights
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.models.loading import load_tokenizer

NUM_STEPS = 8


def fields_for(tokenizer_folder: Path) -> dict[str, Any]:
    """What a teacher's configuration takes from the tokenizer, with room for rows of 32 tokens in all families."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    return {"max_position_embeddings": 34, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}


def settings_with(
    model: PreTrainedModel, corpus: Path, tokenizer_folder: Path, folder: Path, **sections: Any
) -> dict[str, Any]:
    """Two workers, dropout, a checkpoint every three steps; ``model`` is the teacher.

    Args:
        sections: replace or add to the usual ones.
    """
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(str(tokenizer_folder))
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    settings = tiny_settings(corpus, tokenizer_folder, folder / "runs")
    del settings["student"], settings["distill"]
    return changed(
        settings | sections,
        teacher__path=str(folder / "teacher"),
        optim__num_steps=NUM_STEPS,
        optim__learning_rate=5e-3,
        eval__every_steps=NUM_STEPS,
        checkpoint__every_steps=3,
    )


def check_that_a_kill_changes_nothing(settings: dict[str, Any], whole: Path) -> None:
    """A run whose second worker is killed comes to the batches, weights and losses of the run that nobody disturbed."""
    run = PlainRun(changed(settings, run__name="killed"), events=[[Event("kill", 5, rank=1)]])
    assert run.start().kind == "finished"
    assert run.num_losses == 1
    assert digests(run.path) == digests(whole)
    assert weights(run.path) == weights(whole)
    np.testing.assert_array_equal(losses(run.path), losses(whole))
