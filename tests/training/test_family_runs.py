"""Whole runs with teachers of other families than BERT's, in plain processes: exact resume, and what is exported."""

import pytest
import torch
from plain_runs import PlainRun, expected_digests
from runs import changed, digest_column, records
from small_models import small_model
from teacher_runs import NUM_STEPS, check_that_a_kill_changes_nothing, fields_for, settings_with
from transformers import AutoModelForMaskedLM, AutoTokenizer


@pytest.fixture(scope="module", params=["modernbert", "mpnet"])
def whole(request, corpus, tokenizer_folder, tmp_path_factory):
    """The settings of a run of two workers with dropout, a checkpoint every three steps, and its folder."""
    settings = settings_with(
        small_model(request.param, **fields_for(tokenizer_folder), num_hidden_layers=3),
        *(corpus, tokenizer_folder, tmp_path_factory.mktemp(request.param)),
    )
    settings = changed(settings, run__name="whole")
    run = PlainRun(settings)
    assert run.start().kind == "finished"
    return settings, run.path


def test_rows_are_those_of_the_plan_and_the_student_learns(whole):
    settings, folder = whole
    assert digest_column(folder) == expected_digests(PlainRun(settings).config)[:NUM_STEPS]
    assert records(folder)[-1]["eval/kl_to_teacher"] < 0.9 * records(folder)[0]["eval/kl_to_teacher"]


def test_a_killed_worker_changes_nothing(whole):
    settings, folder = whole
    check_that_a_kill_changes_nothing(settings, folder)


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
