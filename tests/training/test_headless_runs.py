"""Whole runs without masked-language-modelling heads, or with new ones, in plain processes."""

import pytest
import torch
from plain_runs import PlainRun
from runs import changed, records
from small_models import small_encoder
from teacher_runs import check_that_a_kill_changes_nothing, fields_for, settings_with
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from distil_ray.commands import report
from distil_ray.config import parse_config
from distil_ray.training.assembly import build_plan, build_tokenizer
from distil_ray.training.identity import unpinned
from distil_ray.training.timing import prepare_timing

INSIDE = {"alpha_ce": 0.0, "alpha_mlm": 0.0, "alpha_cos": 1.0, "alpha_relations": 1.0, "alpha_hidden": 1.0}


@pytest.fixture(scope="module")
def base(corpus, tokenizer_folder, tmp_path_factory):
    """The settings of a run whose teacher is an encoder of four layers without a head."""
    return settings_with(
        small_encoder("bert", **fields_for(tokenizer_folder)),
        *(corpus, tokenizer_folder, tmp_path_factory.mktemp("headless")),
        teacher={"head": "none"},
        student={"head": "none"},
        distill=INSIDE,
    )


@pytest.fixture(scope="module")
def whole(base):
    run = PlainRun(changed(base, run__name="whole"))
    assert run.start().kind == "finished"
    return run.path


def test_a_student_without_a_head_learns_what_is_inside_its_teacher(whole):
    first, last = records(whole)[0], records(whole)[-1]
    assert {name for name in last if name.startswith("eval/")} == {"eval/relation_loss", "eval/hidden_loss"}
    assert last["eval/relation_loss"] < 0.9 * first["eval/relation_loss"]
    assert last["eval/hidden_loss"] < 0.9 * first["eval/hidden_loss"]
    assert last["train/loss_cos"] < records(whole)[1]["train/loss_cos"]


def test_a_killed_worker_changes_nothing(base, whole):
    check_that_a_kill_changes_nothing(base, whole)


def test_an_encoder_is_exported(whole):
    student, info = AutoModel.from_pretrained(whole / "export", output_loading_info=True)
    assert not any(info.values())
    assert (student.config.model_type, student.config.num_hidden_layers) == ("distilbert", 2)
    inputs = AutoTokenizer.from_pretrained(whole / "export")("some words", return_tensors="pt")
    with torch.no_grad():
        assert student(**inputs).last_hidden_state.isfinite().all()
    card = (whole / "export" / "README.md").read_text()
    assert "A distilbert encoder of 2 layers" in card
    assert "AutoModel.from_pretrained" in card
    assert "pipeline_tag: feature-extraction" in card
    assert "loss between attention relations" in card
    assert "All tokens of held-out rows of 32 tokens" in card


def test_a_new_head_learns_beside_the_encoder(base):
    settings = base | {"student": {"head": "new"}, "distill": INSIDE | {"alpha_mlm": 2.0}}
    run = PlainRun(changed(settings, run__name="new"))
    assert run.start().kind == "finished"
    first, last = records(run.path)[0], records(run.path)[-1]
    assert last["eval/mlm_loss"] < first["eval/mlm_loss"]
    assert "eval/kl_to_teacher" not in last
    assert last["eval/relation_loss"] < first["eval/relation_loss"]
    _, info = AutoModelForMaskedLM.from_pretrained(run.path / "export", output_loading_info=True)
    assert not any(info.values())


def test_a_head_is_grown_on_an_encoder_and_the_result_is_a_teacher(base):
    path = base["teacher"]["path"]
    alone = {"teacher": None, "student": {"path": path, "head": "new"}, "distill": {"alpha_ce": 0.0, "alpha_cos": 0.0}}
    run = PlainRun(changed(base | alone, run__name="grown"))
    assert run.start().kind == "finished"
    assert records(run.path)[-1]["eval/mlm_loss"] < records(run.path)[0]["eval/mlm_loss"]
    triple = base | {"teacher": {"path": str(run.path / "export")}, "student": {}, "distill": {}}
    again = PlainRun(changed(triple, run__name="triple"))
    assert again.start().kind == "finished"
    assert records(again.path)[-1]["eval/kl_to_teacher"] < records(again.path)[0]["eval/kl_to_teacher"]


def test_a_report_shows_the_losses_inside_the_models(whole, capsys):
    assert report.main([str(whole)]) == 0
    text = (whole / "report.md").read_text()
    assert "relation loss" in text
    assert "hidden loss" in text
    assert "AutoModel.from_pretrained" in text
    assert "puts in the gap" not in text


def test_a_step_of_an_encoder_is_timed(base):
    config = parse_config(base)
    plan = build_plan(config, build_tokenizer(config))
    timing = prepare_timing(config, unpinned(config), plan.first_rows()[0], "fp32")()
    assert timing.row > 0
    assert timing.evaluated_row > 0
