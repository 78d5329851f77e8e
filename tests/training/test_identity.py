"""What a run was made with is known by content: what may change when it is resumed, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from plain_runs import PlainRun
from runs import changed, digests, run
from small_models import small_model
from training_parts import save_model, small_config, small_tokenizer

from distil_ray.config import learned, parse_config
from distil_ray.data.sources import commits_of
from distil_ray.errors import InputError
from distil_ray.models.origin import Origin, config_digest, content_digest, resolve
from distil_ray.runs.storage import IDENTITY_FILE, RunFolder
from distil_ray.training.assembly import build_models, build_plan, build_tokenizer, outline_models, sources_of
from distil_ray.training.identity import SCHEMA, Identity, Pin, data_commits, pin_models

pytest_plugins = ("local_hub",)

BEGUN = Path(__file__).parents[1] / "fixtures" / "begun_run"
"""A run of 120 steps that release 0.1 began (schema 1) and that was stopped after 27, with its teacher and text."""


@pytest.fixture
def begun(tmp_path: Path) -> dict[str, Any]:
    """A copy of the run of the old release, in a place of its own; its settings."""
    folder = tmp_path / "begun_run"
    shutil.copytree(BEGUN, folder)
    for file in (folder / "runs/begun/config.yaml", folder / "runs/begun/identity.json"):
        file.write_text(file.read_text().replace("{folder}", str(folder)))
    settings: dict[str, Any] = yaml.safe_load((folder / "runs/begun/config.yaml").read_text())
    return settings


def folder_of(settings: dict[str, Any]) -> RunFolder:
    return RunFolder(settings["run"]["storage_path"], settings["run"]["name"])


def test_the_identity_of_an_older_release_is_that_of_the_same_settings_today(begun):
    config, folder = parse_config(begun), folder_of(begun)
    known = Identity.read(folder)
    assert known is not None
    assert known.schema == 1
    assert known.models == {}
    known.check_settings(learned(config), folder)  # settings that came later count by their defaults

    with pytest.raises(InputError, match=r"student\.init: was \"teacher\", now \"random\""):
        known.check_settings(learned(parse_config(begun | {"student": {"init": "random"}})), folder)
    with pytest.raises(InputError, match=r"teacher\.path: was"):  # all that it knows of the teacher
        known.check_settings(learned(parse_config(begun | {"teacher": {"path": "org/other"}})), folder)


def identity_of(config, folder, **models) -> Identity:
    identity = Identity(learned(config), {"corpus": {}}, models)
    identity.write(folder)
    read = Identity.read(folder)
    assert read == identity
    return read


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return save_model(tmp_path / "teacher", small_model("bert"))


def test_the_same_models_elsewhere_are_no_change(teacher, tmp_path):
    folder, config = RunFolder(str(tmp_path), "run"), small_config(teacher__path=teacher)
    known = identity_of(config, folder, **pin_models(config, {}))

    moved = shutil.move(teacher, tmp_path / "elsewhere")
    config = small_config(teacher__path=str(moved))
    known.check_settings(learned(config), folder)
    known.check_models(pin_models(config, known.models), folder)


def test_other_weights_at_the_same_place_are_refused(teacher, tmp_path):
    folder, config = RunFolder(str(tmp_path), "run"), small_config(teacher__path=teacher)
    known = identity_of(config, folder, **pin_models(config, {}))

    save_model(Path(teacher), small_model("bert", seed=1))
    message = f"was started with different models:\n  teacher: {teacher} had different weights"
    with pytest.raises(InputError, match=message):
        known.check_models(pin_models(config, known.models), folder)


def test_another_configuration_of_the_same_weights_is_refused(teacher, tmp_path):
    folder, config = RunFolder(str(tmp_path), "run"), small_config(teacher__path=teacher)
    known = identity_of(config, folder, **pin_models(config, {}))
    file = Path(teacher) / "config.json"
    content = json.loads(file.read_text())

    file.write_text(json.dumps(content | {"_name_or_path": "elsewhere", "transformers_version": "9.9"}))
    known.check_models(pin_models(config, known.models), folder)
    file.write_text(json.dumps(content | {"num_attention_heads": 2}))
    with pytest.raises(InputError, match="a different configuration"):
        known.check_models(pin_models(config, known.models), folder)


def test_students_and_configurations_are_known_by_content_too(teacher, tmp_path):
    student = save_model(tmp_path / "student", small_model("bert", seed=3))
    config = small_config(teacher__path=teacher, student__path=student, student__tokenizer=student)
    pins = pin_models(config, {})
    assert {role: pin.digest is not None for role, pin in pins.items()} == {
        "teacher": True,
        "student": True,
        "tokenizer": False,  # whose content is a part of the data's fingerprint
    }
    file = tmp_path / "config.json"
    shutil.copy(Path(student) / "config.json", file)
    pins = pin_models(small_config(teacher__path=teacher, student__config=str(file)), {})
    assert pins["configuration"].digest == config_digest(Origin(student))
    file.write_text(file.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    assert config_digest(Origin(str(file))) != pins["configuration"].digest


def test_a_teacher_that_is_left_out_or_added_is_a_change_of_settings(teacher, tmp_path):
    folder, config = RunFolder(str(tmp_path), "run"), small_config(teacher__path=teacher)
    known = identity_of(config, folder, **pin_models(config, {}))
    settings = {"teacher": None, "student__path": teacher, "distill": {"alpha_ce": 0, "alpha_cos": 0}}
    with pytest.raises(InputError, match=r"teacher\.path: was|student\.path: was null"):
        known.check_settings(learned(small_config(**settings)), folder)


def test_what_was_pinned_is_not_looked_up_again():
    config = small_config(teacher__path="org/model", teacher__revision="main")
    pin = Pin("org/model", "main", "a" * 40, "digest")
    assert pin_models(config, {"teacher": pin}) == {"teacher": pin}
    assert pin.origin == Origin("org/model", "a" * 40)
    with pytest.raises(InputError, match="teacher:"):  # offline, and not cached
        pin_models(config, {"teacher": replace_revision(pin, "other")})


def replace_revision(pin: Pin, revision: str) -> Pin:
    return pin._replace(revision=revision)


def test_bin_weights_are_known_by_content(tmp_path):
    import torch

    folder = tmp_path / "model"
    save_model(folder, small_model("bert"))
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(3)}, folder / "pytorch_model.bin")
    before = content_digest(resolve(str(folder), None))
    torch.save({"a": torch.ones(3)}, folder / "pytorch_model.bin")
    assert content_digest(resolve(str(folder), None)) != before
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="has no weights"):
        content_digest(resolve(str(folder), None))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"learned": {}}', '{"learned": 1, "data": 2, "models": 3}'])
def test_a_damaged_identity_is_named(tmp_path, content):
    folder = RunFolder(str(tmp_path), "run")
    folder.write_text(IDENTITY_FILE, content)
    with pytest.raises(InputError, match=r"identity\.json is damaged.*restore it"):
        Identity.read(folder)


def test_an_identity_of_a_later_schema_is_read_as_far_as_it_is_known(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    later = replace(Identity({"run.seed": 1}, {"corpus": {}}), schema=SCHEMA + 1)
    later.write(folder)
    assert Identity.read(folder) == later


def test_a_run_of_an_older_release_is_resumed(begun, capsys):
    plain = PlainRun(changed(begun, runtime__precision="auto"))
    plain.fastest = ("bf16", "bf16")
    folder = plain.path

    assert plain.start().kind == "finished"
    assert "resuming from checkpoint_000000027" in plain.texts[0]
    assert plain.texts[1] == "precision: fp32"  # that release's default
    assert "begun by an older version" in capsys.readouterr().out
    assert digests(folder) == (BEGUN / "whole-digests.csv").read_text()
    known = Identity.read(folder_of(begun))
    assert known is not None
    assert (known.schema, set(known.models)) == (SCHEMA, {"teacher"})
    (folder / "finished.json").unlink()
    text = Path(begun["data"]["sources"][0]["path"])
    content = text.read_text()
    text.write_text(content.replace("a", "b", 1))
    with pytest.raises(InputError, match=r"was started on different text:\n  text\.txt: its content has changed"):
        run(begun)
    text.write_text(content)
    save_model(Path(begun["teacher"]["path"]), small_model("bert"), small_tokenizer())
    with pytest.raises(InputError, match="was started with different models"):
        run(begun)


# A Hub


@pytest.fixture
def on_hub(local_hub, teacher, tmp_path):
    """A configuration that names a teacher and a text by their branches on the Hub, and the commits of the two."""
    of_teacher = local_hub.push(
        "org/teacher", {file.name: file.read_bytes() for file in Path(teacher).iterdir()}, kind="models"
    )
    of_text = local_hub.push("org/text", {"data/train.txt": "w1 w2 w3 w4\n\n" * 2000})
    config = small_config(
        teacher__path="org/teacher",
        data={"sources": ["hf://datasets/org/text", {"hub": "org/text"}], "max_seq_length": 12},
    )
    return config, of_teacher, of_text


def test_branches_of_the_hub_are_pinned_when_a_run_begins(local_hub, on_hub, tmp_path):
    config, of_teacher, of_text = on_hub
    one = config.model_copy(update={"data": config.data.model_copy(update={"sources": config.data.sources[:1]})})
    pins = pin_models(one, {})
    tokenizer = build_tokenizer(one, pins)
    plan = build_plan(one, tokenizer)
    commits = data_commits(one, plan)
    assert pins["teacher"].commit == of_teacher
    assert commits == {"hf://datasets/org/text": of_text}

    # Both branches move; what was pinned stays what it was, and no model is asked for again.
    local_hub.push("org/teacher", {"config.json": "{}"}, kind="models")
    local_hub.push("org/text", {"data/train.txt": "other\n\n" * 3000})
    local_hub.reset()
    assert pin_models(one, pins) == pins
    assert local_hub.requests["api"] == 0
    assert build_plan(one, tokenizer, commits).fingerprint() == plan.fingerprint()
    assert build_plan(one, tokenizer).fingerprint() != plan.fingerprint()
    teacher, student = build_models(one, tokenizer, pins)
    outlines = outline_models(one, tokenizer, pins)
    assert [model.num_parameters() for model in outlines] == [teacher.num_parameters(), student.num_parameters()]

    with pytest.raises(InputError, match="has no weights"):  # a run that begins now takes what is there now
        pin_models(one, {})


def test_a_copy_of_a_model_of_the_hub_is_no_change(local_hub, on_hub, teacher, tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    known = identity_of(on_hub[0], folder, **pin_models(on_hub[0], {}))
    known.check_models(pin_models(small_config(teacher__path=teacher), known.models), folder)
    save_model(Path(teacher), small_model("bert", seed=1))
    with pytest.raises(InputError, match="different weights"):
        known.check_models(pin_models(small_config(teacher__path=teacher), known.models), folder)


def test_sources_of_the_hub_are_taken_at_the_commit_that_was_found(on_hub):
    config, _, commit = on_hub
    path, hub = sources_of(config.data.sources, {})
    assert commits_of([path, hub], [f"hf://datasets/org/text@{commit}/data/train.txt"]) == {
        "hf://datasets/org/text": commit
    }
    found = sources_of(config.data.sources, {"hf://datasets/org/text": commit})
    assert [(one.path, one.revision) for one in found] == [
        (f"hf://datasets/org/text@{commit}", None),
        (None, commit),
    ]
