"""Whole runs of students that are narrower and shallower than their teachers, in plain processes."""

import numpy as np
import pytest
import torch
from conftest import tiny_settings
from plain_runs import Event, PlainRun
from runs import changed, digests, losses, records, weights
from small_models import small_model
from transformers import AutoModelForMaskedLM, AutoTokenizer

from distil_ray.models.loading import load_tokenizer

NUM_STEPS = 8


@pytest.fixture(scope="module")
def base(corpus, tokenizer_folder, tmp_path_factory):
    """The settings of a run: half of the layers, half as wide."""
    folder = tmp_path_factory.mktemp("narrow")
    tokenizer = load_tokenizer(str(tokenizer_folder))
    fields = {"max_position_embeddings": 34, "pad_token_id": tokenizer.pad_token_id}
    small_model("bert", **fields, vocab_size=len(tokenizer)).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    sections = {
        "teacher": {"path": str(folder / "teacher")},
        "student": {"hidden_size": 16},
        "distill": {"alpha_ce": 0.0, "alpha_mlm": 1.0, "alpha_cos": 0.0, "alpha_relations": 1.0, "alpha_hidden": 1.0},
    }
    return changed(
        tiny_settings(corpus, tokenizer_folder, folder / "runs") | sections,
        optim__num_steps=NUM_STEPS,
        optim__learning_rate=5e-3,
        eval__every_steps=NUM_STEPS,
        checkpoint__every_steps=3,
    )


@pytest.fixture(scope="module")
def whole(base):
    run = PlainRun(changed(base, run__name="whole"))
    assert run.start().kind == "finished"
    return run.path


def test_it_learns(whole):
    first, last = records(whole)[0], records(whole)[-1]
    for name in ("eval/relation_loss", "eval/hidden_loss", "eval/mlm_loss"):
        assert last[name] < first[name]


def test_a_killed_worker_changes_nothing(base, whole):
    run = PlainRun(changed(base, run__name="killed"), events=[[Event("kill", 5, rank=1)]])
    assert run.start().kind == "finished"
    assert run.num_losses == 1
    assert digests(run.path) == digests(whole)
    assert weights(run.path) == weights(whole)
    np.testing.assert_array_equal(losses(run.path), losses(whole))


def test_the_student_loads_with_transformers_alone(whole):
    student, info = AutoModelForMaskedLM.from_pretrained(whole / "export", output_loading_info=True)
    assert not any(info.values())
    config = student.config
    assert (config.model_type, config.n_layers, config.dim, config.n_heads, config.hidden_dim) == (
        *("distilbert", 2, 16, 2),
        24,
    )
    inputs = AutoTokenizer.from_pretrained(whole / "export")("some words", return_tensors="pt")
    with torch.no_grad():
        assert student(**inputs).logits.isfinite().all()
