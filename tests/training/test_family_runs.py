"""Whole runs with teachers of other families than BERT's, in plain processes: exact resume, and what is exported."""

import numpy as np
import pytest
import torch
from conftest import tiny_settings
from plain_runs import Event, PlainRun, expected_digests
from runs import changed, digest_column, digests, losses, records, weights
from small_models import small_model
from transformers import AutoModelForMaskedLM, AutoTokenizer

from distil_ray.models.loading import load_tokenizer

NUM_STEPS = 8


@pytest.fixture(scope="module", params=["modernbert", "mpnet"])
def whole(request, corpus, tokenizer_folder, tmp_path_factory):
    """The settings of a run of two workers with dropout, a checkpoint every three steps, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = load_tokenizer(str(tokenizer_folder))
    fields = {"max_position_embeddings": 34, "num_hidden_layers": 3, "pad_token_id": tokenizer.pad_token_id}
    small_model(request.param, vocab_size=len(tokenizer), **fields).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    settings = tiny_settings(corpus, tokenizer_folder, folder / "runs")
    del settings["student"], settings["distill"]
    settings = changed(
        settings,
        run__name="whole",
        teacher__path=str(folder / "teacher"),
        optim__num_steps=NUM_STEPS,
        optim__learning_rate=5e-3,
        eval__every_steps=NUM_STEPS,
        checkpoint__every_steps=3,
    )
    run = PlainRun(settings)
    assert run.start().kind == "finished"
    return settings, run.path


def test_rows_are_those_of_the_plan_and_the_student_learns(whole):
    settings, folder = whole
    assert digest_column(folder) == expected_digests(PlainRun(settings).config)[:NUM_STEPS]
    assert records(folder)[-1]["eval/kl_to_teacher"] < 0.9 * records(folder)[0]["eval/kl_to_teacher"]


def test_a_killed_worker_changes_nothing(whole):
    settings, folder = whole
    run = PlainRun(changed(settings, run__name="killed"), events=[[Event("kill", 5, rank=1)]])
    assert run.start().kind == "finished"
    assert run.num_losses == 1
    assert digests(run.path) == digests(folder)
    assert weights(run.path) == weights(folder)
    np.testing.assert_array_equal(losses(run.path), losses(folder))


def test_the_student_loads_with_transformers_alone(whole):
    settings, folder = whole
    teacher = AutoModelForMaskedLM.from_pretrained(settings["teacher"]["path"])
    student, info = AutoModelForMaskedLM.from_pretrained(folder / "export", output_loading_info=True)
    assert not any(info.values())
    assert type(student) is type(teacher)
    assert student.config.num_hidden_layers == 2
    if teacher.config.model_type == "modernbert":
        assert student.config.layer_types == ["full_attention", "sliding_attention"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "export")
    assert tokenizer.model_max_length == (32 if teacher.config.model_type == "mpnet" else 34)
    inputs = tokenizer("some words of a text", return_tensors="pt")
    with torch.no_grad():
        assert student(**inputs).logits.isfinite().all()
