"""Students pushed to a Hub over HTTP and loaded back from there, and what is refused or fails on the way."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from embedding_folders import write_modules
from local_hub import OTHER_TOKEN, READ_TOKEN, TOKEN, LocalHub
from plain_runs import PlainRun
from small_models import random_ids, small_model
from training_parts import save_model, small_config, small_tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from distil_ray import __version__
from distil_ray.commands.push import main
from distil_ray.config import Config, to_yaml
from distil_ray.models.embedding import sentence_transformers_files
from distil_ray.models.origin import Origin, card_metadata
from distil_ray.outages import Patience
from distil_ray.runs.storage import CONFIG_FILE, FINISHED_FILE, RunFolder
from distil_ray.training.export import export_student
from distil_ray.training.identity import Identity, pin_models
from distil_ray.training.publishing import Publication, check_before_training

pytest_plugins = ("local_hub", "local_s3")

REPO = "owner/student"
SUMMARY = {"step": 1200, "tokens": 34, "eval/mlm_loss": 2.5, "eval/mlm_accuracy": 0.5, "eval/teacher_agreement": 0.7}
CARD = "---\nlicense: mit\nlanguage: en\n---\n# A teacher\n"

# In a process of its own, with an empty cache, where this package cannot be imported.
LOAD = """
import json, sys
sys.modules["distil_ray"] = None
import torch
exec(sys.argv[1])
with torch.no_grad():
    print(json.dumps(model(**tokenizer("w3 w17 [MASK] w5", return_tensors="pt")).logits.tolist()))
"""


@pytest.fixture(autouse=True)
def _token(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("distil_ray.outages._FIRST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = Path(save_model(tmp_path / "secret" / "teacher", small_model("bert")))
    (folder / "README.md").write_text(CARD)
    return folder


def finish(config: Config, *, seed: int = 3, embedding: bool = False) -> str:
    """Write what a finished run leaves behind, and return its folder."""
    folder = RunFolder(config.run.storage_path, config.run.name)
    folder.write_text(CONFIG_FILE, to_yaml(config))
    Identity({"run.seed": seed}, {"eval_corpus": {"digest": ""}, "tokenizer": ""}, pin_models(config, {})).write(folder)
    student = small_model("bert", num_hidden_layers=1, seed=seed)
    files = {}
    if embedding:
        assert config.teacher is not None
        files, _ = sentence_transformers_files(Origin(write_modules(Path(config.teacher.path)).as_posix()), student)
    export_student(folder, student, small_tokenizer(), config, SUMMARY, files)
    folder.write_json(FINISHED_FILE, SUMMARY)
    return folder.path


@pytest.fixture
def config(tmp_path: Path, teacher: Path) -> Config:
    storage = str(tmp_path / "secret" / "runs")
    return small_config(teacher__path=str(teacher), run__storage_path=storage, data__sources=str(tmp_path / "secret"))


@pytest.fixture
def run(config: Config) -> str:
    return finish(config)


def header(hub: LocalHub, repo: str = REPO) -> dict[str, object]:
    found = yaml.safe_load(hub.files(repo)["README.md"].decode().partition("---\n")[2].partition("\n---\n")[0])
    assert isinstance(found, dict)
    return found


# What is pushed


def test_a_pushed_student_loads_by_its_name_as_its_card_says(
    local_hub: LocalHub, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run, REPO]) == 0
    assert f"pushed to {local_hub.url}/{REPO} (commit " in capsys.readouterr().out
    card = local_hub.files(REPO)["README.md"].decode()
    example = card.partition("```python\n")[2].partition("```")[0]
    assert f'AutoModelForMaskedLM.from_pretrained("{REPO}")' in example
    assert "\nWith transformers 4.57 or later:\n" in card
    loading = [sys.executable, "-W", "ignore", "-c", LOAD, example]
    loaded = subprocess.run(
        loading, capture_output=True, text=True, check=True, env={**os.environ, "HF_HOME": str(tmp_path / "empty")}
    )
    tokens = AutoTokenizer.from_pretrained(f"{run}/export")("w3 w17 [MASK] w5", return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForMaskedLM.from_pretrained(f"{run}/export")(**tokens).logits
    assert torch.equal(torch.tensor(json.loads(loaded.stdout)), expected)


def test_an_embedding_student_loads_with_sentence_transformers(local_hub: LocalHub, config: Config) -> None:
    from sentence_transformers import SentenceTransformer

    run = finish(config, embedding=True)
    assert main([run, REPO]) == 0
    assert f'SentenceTransformer("{REPO}")' in local_hub.files(REPO)["README.md"].decode()
    assert "1_Pooling/config.json" in local_hub.files(REPO)
    expected = SentenceTransformer(f"{run}/export").encode(["w1 w2", "w3"])
    assert (SentenceTransformer(REPO).encode(["w1 w2", "w3"]) == expected).all()


def test_a_run_on_s3_is_pushed(local_hub: LocalHub, bucket: object, teacher: Path) -> None:
    run = finish(small_config(teacher__path=str(teacher), run__storage_path="s3://runs/below"))
    assert main([f"s3://{run}", REPO]) == 0
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= local_hub.files(REPO).keys()


def test_nothing_of_the_machine_is_pushed(local_hub: LocalHub, config: Config, tmp_path: Path) -> None:
    run = finish(config, embedding=True)
    (Path(run) / "export" / ".cache").write_text("not for others")
    assert main([run, REPO]) == 0
    files = local_hub.files(REPO)
    assert not [name for name in files if name.startswith(".") and name != ".gitattributes"]
    for content in files.values():
        assert str(tmp_path).encode() not in content
        assert b"secret" not in content.replace(b"path: secret", b"").replace(b"`secret`", b"")


def test_pushing_twice_changes_nothing_and_says_so(
    local_hub: LocalHub, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run, REPO]) == 0
    capsys.readouterr()
    local_hub.reset()
    assert main([run, REPO]) == 0
    output = capsys.readouterr()
    assert f"{REPO} holds this student already: nothing to push" in output.out
    assert output.err == ""
    assert local_hub.titles(REPO) == [f"small: step 1,200, distil_ray {__version__}", "initial commit"]
    assert local_hub.requests["upload"] == 0


def test_the_same_runs_newer_card_replaces_the_old_one(local_hub: LocalHub, run: str) -> None:
    assert main([run, REPO]) == 0
    local_hub.reset()
    with (Path(run) / "export" / "README.md").open("a") as file:
        file.write("More was measured.\n")
    assert main([run, REPO, "--license", "apache-2.0"]) == 0
    assert local_hub.files(REPO)["README.md"].endswith(b"More was measured.\n")
    assert header(local_hub)["license"] == "apache-2.0"
    assert local_hub.requests["upload"] == 0  # the weights are there


def test_a_branch_and_a_private_repository(local_hub: LocalHub, run: str) -> None:
    assert main([run, REPO, "--private", "--revision", "v1"]) == 0
    assert local_hub.titles(REPO, "main") == ["initial commit"]
    assert local_hub._repos["models", REPO].is_private
    assert f'from_pretrained("{REPO}", revision="v1")' in local_hub.files(REPO, "v1")["README.md"].decode()
    model = AutoModelForMaskedLM.from_pretrained(REPO, revision="v1")
    assert model(random_ids(1, 4)).logits.shape == (1, 4, model.config.vocab_size)
    assert main([run, REPO, "--revision", "v1"]) == 0
    assert len(local_hub.titles(REPO, "v1")) == 2


# The card


def test_the_metadata_are_those_of_the_hub(local_hub: LocalHub, config: Config, teacher: Path) -> None:
    content: dict[str, bytes | str | Path] = {file.name: file.read_bytes() for file in teacher.iterdir()}
    card = "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE.md\nlanguage: [de, en]\n---\n"
    local_hub.push("owner/teacher", content | {"README.md": card}, kind="models")
    sources = [{"hub": "owner/texts"}]
    settings = {"teacher__path": "owner/teacher", "data__sources": sources}
    card_metadata(Origin("owner/teacher"))  # which a run fetches with the model
    assert main([finish(small_config(run__storage_path=config.run.storage_path, **settings)), REPO]) == 0
    found = header(local_hub)
    (index,) = found.pop("model-index")  # type: ignore[attr-defined]
    assert found == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["distil_ray", "distillation"],
        "base_model": "owner/teacher",
        "base_model_relation": "finetune",
        "datasets": ["owner/texts"],
        "metrics": ["accuracy"],
        "language": ["de", "en"],
        "license": "other",
        "license_name": "own",
        "license_link": "https://huggingface.co/owner/teacher/blob/main/LICENSE.md",
    }
    (result,) = index["results"]
    assert index["name"] == "small"
    assert result["task"] == {"type": "fill-mask"}
    assert result["dataset"] == {"type": "owner/texts", "name": "held-out text"}
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [
        ("loss", 2.5),
        ("accuracy", 0.5),
        ("agreement", 0.7),
    ]


@pytest.mark.parametrize(
    "card", ["", "---\nlanguage: en\n---\n", "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"]
)
def test_a_license_has_to_be_known(
    local_hub: LocalHub, config: Config, teacher: Path, card: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (teacher / "README.md").write_text(card)
    run = finish(config)
    assert main([run, REPO]) == 2
    error = capsys.readouterr().err
    assert "license" in error
    assert "--license" in error
    assert ("models", REPO) not in local_hub._repos
    assert main([run, REPO, "--license", "Own License=https://example.org/license"]) == 0
    found = header(local_hub)
    assert [found[key] for key in ("license", "license_name", "license_link")] == [
        *("other", "Own License", "https://example.org/license")
    ]


def test_a_teachers_license_that_its_student_did_not_get_is_looked_up(
    local_hub: LocalHub, config: Config, teacher: Path
) -> None:
    (teacher / "README.md").unlink()
    run = finish(config)
    (teacher / "README.md").write_text(CARD)
    assert main([run, REPO]) == 0
    assert header(local_hub)["license"] == "mit"


@pytest.mark.parametrize(
    ("license_", "message"),
    [
        ("apache", "does not take .*'license': 'apache'"),
        ("other", "NAME=URL"),
        ("=https://a.org", "NAME=URL"),
        ("own=LICENSE", "NAME=URL"),
    ],
)
def test_a_license_that_the_hub_does_not_know(
    local_hub: LocalHub, run: str, license_: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run, REPO, "--license", license_]) == 2
    assert_one_message(capsys, message)
    assert ("models", REPO) not in local_hub._repos


# What is refused


def assert_one_message(capsys: pytest.CaptureFixture[str], pattern: str, program: str = "push") -> None:
    """One message of one line, and no traceback."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"distil-ray {program}: error: ")
    assert re.search(pattern, error), error


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("student", "expected OWNER/NAME"),
        ("owner/a/b", "is no repository"),
        ("owner/-a", "is no repository"),
        ("https://huggingface.co/owner/a", "is no repository"),
    ],
)
def test_a_name_that_is_none(
    local_hub: LocalHub, run: str, repo: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run, repo]) == 2
    assert_one_message(capsys, message)
    assert not local_hub.log


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "there is no Hugging Face token, and pushing needs one; .*HF_TOKEN"),
        ("hf_unknown", "token is not valid"),
        (READ_TOKEN, r"token of owner \(read\) may not write to owner/student"),
        (OTHER_TOKEN, r"token of other \(write\) may not write to owner/student; .*or name a repository of that user"),
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_tokens_that_do_not_do(
    local_hub: LocalHub,
    run: str,
    token: str | None,
    message: str,
    is_there: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if is_there:
        local_hub.push(REPO, {}, kind="models")
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert main([run, REPO]) == 2
    assert_one_message(capsys, message)
    assert (("models", REPO) in local_hub._repos) == is_there


def test_offline_is_a_contradiction(
    run: str, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main([run, REPO]) == 2
    assert_one_message(capsys, "HF_HUB_OFFLINE is set")


def test_a_run_that_is_not_finished(
    run: str, local_hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(run) / FINISHED_FILE).unlink()
    assert main([run, REPO]) == 2
    assert_one_message(capsys, "not finished, so there is no student to push; finish it with the command that began")
    assert main([str(tmp_path), REPO]) == 2
    assert_one_message(capsys, "is not the folder of a run")
    assert not local_hub.log


def test_nothing_else_is_replaced_unless_asked_for(
    local_hub: LocalHub, run: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"pytorch_model.bin": b"weights", "vocab.txt": "a"}
    local_hub.push(REPO, other, kind="models")
    assert main([run, REPO]) == 2
    assert_one_message(capsys, r"holds something else \(pytorch_model.bin, vocab.txt\).*'Update by hand'.*--overwrite")
    assert local_hub.files(REPO).keys() == other.keys()
    assert main([run, REPO, "--overwrite"]) == 0
    assert not other.keys() & local_hub.files(REPO).keys()
    assert len(local_hub.titles(REPO)) == 2  # what there was stays in the history

    another = finish(small_config(**{**places_of(config), "run__name": "another"}), seed=4)
    assert main([another, REPO]) == 2
    assert_one_message(capsys, "its last commit, 'small: step 1,200, .*is not of this run")

    edited = local_hub.files(REPO) | {"README.md": b"---\nlicense: mit\n---\nEdited on the Hub"}
    local_hub.push(REPO, edited, kind="models")
    assert main([run, REPO]) == 2
    assert_one_message(capsys, "holds something else .*--overwrite")
    assert local_hub.files(REPO) == edited


def places_of(config: Config) -> dict[str, str]:
    assert config.teacher is not None
    return {"teacher__path": config.teacher.path, "run__storage_path": config.run.storage_path}


def test_a_public_repository_does_not_become_private(
    local_hub: LocalHub, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    local_hub.push(REPO, {}, kind="models")
    assert main([run, REPO, "--private"]) == 2
    assert_one_message(capsys, "there already, and public")
    assert local_hub.files(REPO) == {}


# When the Hub fails


@pytest.mark.parametrize(
    "failure",
    [
        {"pattern": "POST /api/repos/create", "status": 503, "times": 2},
        {"pattern": "POST /api/validate-yaml", "refuse": True, "times": 1},
        {"pattern": "/preupload/", "status": 429, "headers": {"Retry-After": "1"}, "times": 1},
        {"pattern": "PUT /upload/", "refuse": True, "times": 2},
        {"pattern": "POST .*/commit/main", "status": 500, "times": 1},
        {"pattern": "GET .*/revision/", "cut_after": 20, "times": 1},
        {"pattern": "PUT /upload/", "sleep": 1.0, "times": 1},
    ],
    ids=lambda failure: failure["pattern"],
)
def test_a_hub_that_fails_for_a_moment(
    local_hub: LocalHub, run: str, failure: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    local_hub.fail(**failure)  # type: ignore[arg-type]
    assert main([run, REPO]) == 0
    assert capsys.readouterr().err == ""
    assert len(local_hub.titles(REPO)) == 2
    assert AutoModelForMaskedLM.from_pretrained(REPO).config.num_hidden_layers == 1


def test_a_commit_whose_answer_is_lost_is_made_once(local_hub: LocalHub, run: str) -> None:
    local_hub.fail("POST .*/commit/", cut_after=5, times=1)
    assert main([run, REPO]) == 0
    assert local_hub.requests["failed"] == 1
    assert len(local_hub.titles(REPO)) == 2


@pytest.mark.parametrize("pattern", ["/api/", "PUT /upload/|POST .*/commit/"])
def test_a_hub_that_stays_away_is_one_message_and_the_same_command_goes_on(
    local_hub: LocalHub, run: str, pattern: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distil_ray.training.publishing.AT_START", Patience(1))
    local_hub.fail(pattern, status=502)
    assert main([run, REPO]) == 1
    assert_one_message(capsys, r"the Hugging Face Hub \(owner/student\) did not answer for .*502")
    local_hub.heal()
    assert main([run, REPO]) == 0
    assert len(local_hub.titles(REPO)) == 2


# By the command that trains


def train_main(config_file: Path, *more: str) -> int:
    from distil_ray.commands.train import main as train_command

    return train_command(["--config", str(config_file), *more])


@pytest.fixture
def trained(settings: dict[str, Any]) -> Path:
    run = PlainRun(settings)
    assert run.start().kind == "finished"
    return run.path


def test_what_has_been_trained_is_pushed(
    local_hub: LocalHub, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [trained / "config.yaml", "--push", REPO, "--license", "mit", "--private"]
    assert train_main(*options) == 0  # type: ignore[arg-type]
    assert f"pushed to {local_hub.url}/{REPO}" in capsys.readouterr().out
    assert local_hub._repos["models", REPO].is_private
    assert local_hub.titles(REPO)[0] == f"run: step 12, distil_ray {__version__}"
    assert {"license", "model-index"} <= header(local_hub).keys()
    assert "base_model" not in header(local_hub)

    local_hub.fail("POST .*/commit/", status=418)
    (trained / "export" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert train_main(*options) == 1  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert error.startswith(f"distil-ray train: error: the run is finished and its student is in {trained}/export, but")
    assert error.endswith(f"\nTo push it: distil-ray push {trained} {REPO}\n")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--push", "student"], TOKEN, "expected OWNER/NAME"),
        (["--push", REPO], None, "there is no Hugging Face token"),
        (["--push", REPO], READ_TOKEN, "may not write to owner/student"),
        (["--push", REPO, "--license", "none-such"], TOKEN, "does not take"),
        (["--push", "owner/taken"], TOKEN, "holds something else"),
        (["--push", REPO, "--dry-run"], TOKEN, "expected only one of --push and --dry-run"),
        (["--license", "mit"], TOKEN, "expected --push OWNER/NAME beside"),
        (["--private"], TOKEN, "expected --push OWNER/NAME beside"),
    ],
)
def test_what_could_not_be_pushed_is_not_trained(
    local_hub: LocalHub,
    config: Config,
    tmp_path: Path,
    options: list[str],
    token: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local_hub.push("owner/taken", {"config.json": "{}"}, kind="models")
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert train_main(tmp_path / "config.yaml", *options) == 2
    assert_one_message(capsys, message, "train")
    assert not Path(config.run.storage_path).exists()


def test_a_teacher_without_a_license_is_noticed_before_the_training(
    local_hub: LocalHub, config: Config, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, bytes | str | Path] = {file.name: file.read_bytes() for file in teacher.iterdir()}
    old = local_hub.push("owner/teacher", content | {"README.md": "---\nlanguage: en\n---\n"}, kind="models")
    local_hub.push("owner/teacher", content, kind="models")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    of_hub = ["teacher.path=owner/teacher", "--push", REPO]
    assert train_main(tmp_path / "config.yaml", *of_hub, f"teacher.revision={old}") == 2
    assert_one_message(capsys, "the license of the student is not known", "train")
    check_before_training(Publication.of(REPO, license_=None), small_config(teacher__path="owner/teacher"))
    assert local_hub.titles(REPO) == ["initial commit"]
