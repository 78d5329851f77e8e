"""Whole runs of students that are narrower and shallower than their teachers, in plain processes."""

import pytest
import torch
from plain_runs import PlainRun
from runs import changed, records
from small_models import small_model
from teacher_runs import check_that_a_kill_changes_nothing, fields_for, settings_with
from transformers import AutoModelForMaskedLM, AutoTokenizer


@pytest.fixture(scope="module")
def base(corpus, tokenizer_folder, tmp_path_factory):
    """The settings of a run: half of the layers, half as wide."""
    return settings_with(
        small_model("bert", **fields_for(tokenizer_folder)),
        *(corpus, tokenizer_folder, tmp_path_factory.mktemp("narrow")),
        student={"hidden_size": 16},
        distill={"alpha_ce": 0.0, "alpha_mlm": 1.0, "alpha_cos": 0.0, "alpha_relations": 1.0, "alpha_hidden": 1.0},
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
    check_that_a_kill_changes_nothing(base, whole)


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
