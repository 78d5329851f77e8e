"""What is accepted, what is refused and in which words, and what counts as learned."""

import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distil_ray.config import (
    Config,
    ConfigError,
    Section,
    describe_keys,
    difference,
    learned,
    load_config,
    output_path,
    parse_config,
    parse_mapping,
    parse_sources,
    to_settings,
    to_yaml,
)
from distil_ray.config.sections import LOSS_WEIGHTS
from distil_ray.errors import InputError
from distil_ray.models.origin import resolve
from distil_ray.runs.storage import RunFolder
from distil_ray.studies.settings import load_search

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = ("run.name=test", "teacher.path=org/teacher", "data.sources=a.parquet", "optim.num_steps=10")
NO_TEACHER = (
    "run.name=test",
    "data.sources=a.parquet",
    "optim.num_steps=10",
    "distill.alpha_ce=0",
    "distill.alpha_cos=0",
)


def load(*overrides: str) -> Config:
    """Load the smallest valid configuration, with some settings changed."""
    return load_config([], [*MINIMAL, *overrides])


def problems(*overrides: str, base: tuple[str, ...] = MINIMAL) -> list[str]:
    """Return the lines of the error that the settings cause, without its heading."""
    with pytest.raises(InputError) as caught:
        load_config([], [*base, *overrides])
    heading, *lines = str(caught.value).split("\n")
    assert heading.startswith("the configuration has ")
    return [line.strip() for line in lines]


def keys_of(section: type[Section], prefix: str = "") -> dict[str, Any]:
    """Return every field of every section, by its dotted name (not found by the module's own code)."""
    fields = {}
    for name, field in section.model_fields.items():
        fields[f"{prefix}{name}"] = field
        for nested in Section.__subclasses__():
            if re.search(rf"\.{nested.__name__}\b", str(field.annotation)):
                fields |= keys_of(nested, f"{prefix}{name}.")
    return fields


# ------------------------------------------------------------------------------------------------- reading


def test_defaults():
    config = load()
    assert config.run.seed == 56
    assert config.distill.temperature == 2.0
    assert config.optim.betas == (0.9, 0.98)
    assert config.optim.num_epochs is None
    assert config.runtime.max_workers == config.runtime.min_workers == 1
    assert config.data.sources[0].column == "text"


def test_later_files_and_then_dotted_settings_win(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(
        "run: {name: first, seed: 1}\nteacher: {path: org/t, revision: abc}\ndata: {sources: [a, b]}\n"
        "optim: {num_steps: 5, learning_rate: 1e-3, eps: 1e-7}\n"
    )
    second.write_text("run: {name: second}\ndata: {sources: [c]}\noptim: {learning_rate: 2e-3}\neval:\n")
    config = load_config([str(first), str(second)], ["optim.learning_rate=3e-3"])
    assert (config.run.name, config.run.seed) == ("second", 1)
    assert (config.optim.learning_rate, config.optim.eps) == (3e-3, 1e-7)
    assert [Path(source.path).name for source in config.data.sources] == ["c"]  # a list replaces a list
    assert config.teacher.revision == "abc"


def test_later_null_removes_the_teacher_but_an_empty_section_changes_nothing(tmp_path):
    file = tmp_path / "later.yaml"
    file.write_text("teacher: null\noptim:\n")
    base = tmp_path / "base.yaml"
    base.write_text(
        "run: {name: x}\nteacher: {path: org/t}\ndata: {sources: a}\noptim: {num_steps: 5}\n"
        "distill: {alpha_ce: 0, alpha_cos: 0}\nstudent: {path: org/s}\n"
    )
    config = load_config([str(base), str(file)], [])
    assert config.teacher is None
    assert config.optim.num_steps == 5


def test_sections_that_share_an_anchor_are_changed_apart(tmp_path):
    file = tmp_path / "anchor.yaml"
    file.write_text("eval: &often {every_steps: 5}\ncheckpoint: *often\n")
    config = load_config([str(file)], [*MINIMAL, "checkpoint.every_steps=7"])
    assert (config.eval.every_steps, config.checkpoint.every_steps) == (5, 7)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.learning_rate=1e-4", 1e-4),
        ("optim.learning_rate=2.5E+1", 25.0),
        ("optim.learning_rate=.5", 0.5),
        ("optim.learning_rate=1", 1.0),
        ("run.name=2024-01-31", "2024-01-31"),
        ("run.name='7'", "7"),
        ("optim.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("student.layers=[0, 2]", (0, 2)),
        ("student.layers=3", 3),
        ("student.layers=", None),
        ("runtime.use_gpu=true", True),
        ("runtime.resources_per_worker={CPU: 4}", {"CPU": 4}),
        ("runtime.num_workers=[2, 4]", (2, 4)),
    ],
)
def test_dotted_values_are_yaml(override, expected):
    section, key = override.split("=")[0].split(".")
    value = getattr(getattr(load(override), section), key)
    assert value == expected
    assert type(value) is type(expected)


def test_dotted_value_that_is_not_yaml_is_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("data.sources=*.parquet").data.sources[0].path == str(tmp_path / "*.parquet")


def test_dotted_key_reaches_below_null_and_into_mappings():
    config = load(
        "teacher=null",
        "teacher.path=org/other",
        "student.config={model_type: bert}",
        "student.config.hidden_size=64",
    )
    assert config.teacher.path == "org/other"
    assert config.student.config == {"model_type": "bert", "hidden_size": 64}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("s3://b/a", [("s3://b/a", None)]),
        ("{hub: org/data, name: en}", [(None, "org/data")]),
        ("[s3://b/a, {hub: org/data}]", [("s3://b/a", None), (None, "org/data")]),
    ],
)
def test_short_forms_of_sources(value, expected):
    config = load(f"data.sources={value}", f"data.eval_sources={value}")
    for sources in (config.data.sources, config.data.eval_sources):
        assert [(source.path, source.hub) for source in sources] == expected


def test_one_source_replaces_another_instead_of_merging_with_it():
    source = load("data.sources={path: a}", "data.sources={hub: org/data}").data.sources[0]
    assert (source.path, source.hub) == (None, "org/data")


def test_local_paths_become_absolute_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("teacher", "student", "pieces"):
        Path(folder).mkdir()
    config = load(
        "teacher.path=teacher",
        "student.path=student",
        "student.tokenizer=./pieces",
        "data.sources=[x/*.txt, s3://b/x, ~/y]",
    )
    assert config.run.storage_path == str(tmp_path / "runs")
    assert config.teacher.path == str(tmp_path / "teacher")
    assert config.student.path == str(tmp_path / "student")
    assert config.student.tokenizer == str(tmp_path / "pieces")
    paths = [source.path for source in config.data.sources]
    assert paths == [str(tmp_path / "x/*.txt"), "s3://b/x", str(Path.home() / "y")]
    remote = load("teacher.path=org/teacher", "run.storage_path=s3://bucket/runs")
    assert remote.teacher.path == "org/teacher"
    assert remote.run.storage_path == "s3://bucket/runs"


@pytest.mark.parametrize(("settings", "given"), [(["run.storage_path=out/runs"], "out/runs"), ([], "runs")])
def test_in_a_ray_job_outputs_do_not_go_into_its_package(settings, given, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=f'run.storage_path: given "{given}", which in a Ray job is in the job'):
        load("teacher.path=org/teacher", *settings)
    for place in ("/shared/runs", "s3://bucket/runs"):
        assert load("teacher.path=org/teacher", f"run.storage_path={place}").run.storage_path == place
    assert load("teacher.path=org/teacher", "run.storage_path=~/runs").run.storage_path.endswith("/runs")
    with pytest.raises(InputError, match=r'--output: given "report", .*; expected the absolute path of a folder'):
        output_path("report")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert output_path("report") == os.path.abspath("report")


def test_parse_config_leaves_what_it_is_given_alone():
    settings = {
        "run": {"name": "x"},
        "teacher": {"path": "t"},
        "data": {"sources": "a"},
        "optim": {"num_steps": 1},
        "eval": None,
    }
    before = json.dumps(settings)
    config = parse_config(settings)
    assert json.dumps(settings) == before
    assert config.eval.every_steps == 500


def test_config_is_frozen_and_travels():
    config = load()
    with pytest.raises(ValidationError):
        config.run.name = "other"
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("module", ["distil_ray", "distil_ray.commands.train", "distil_ray.commands.vocabulary"])
def test_help_and_mistakes_wait_for_neither_torch_nor_ray(module):
    code = f"import sys, {module}; print({{'torch', 'ray', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------------- what comes with the package, and Python


def test_a_recipe_is_known_by_its_name_and_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = load_config(["quickstart"], ["optim.num_steps=7"])
    assert named == load_config([str(CONFIGS / "quickstart.yaml")], ["optim.num_steps=7"])
    (tmp_path / "quickstart").write_text("run: {name: own}\n")
    assert load_config(["quickstart"], MINIMAL[1:]).run.name == "own"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "quikstart",
            "quikstart: no such file, and no such recipe (did you mean 'quickstart'?); expected a YAML",
        ),
        ("x.yaml", "x.yaml: cannot be read (No such file or directory)"),
        ("./quickstart", "./quickstart: cannot be read (No such file or directory)"),
    ],
)
def test_an_unknown_recipe(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_config([given], [])
    if "recipe" in message:
        assert str(caught.value).endswith(", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml"))))


def test_the_packages_own_teacher_is_found_from_anywhere_unless_there_is_one_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = "distil_ray/quickstart/teacher"
    assert load(f"teacher.path={named}").teacher.path == str(CONFIGS.parent / named)
    assert resolve(named, None).path == str(CONFIGS.parent / named)
    assert load("teacher.path=distil_ray/quickstart").teacher.path == "distil_ray/quickstart"  # an id on the Hub
    (tmp_path / named).mkdir(parents=True)
    assert load(f"teacher.path={named}").teacher.path == resolve(named, None).path == str(tmp_path / named)


def test_from_python_mappings_paths_and_configurations_are_merged(tmp_path):
    (tmp_path / "own.yaml").write_text("run: {name: own, seed: 5}\n")
    betas = (0.5, 0.6)
    config = load_config(
        [
            load(),
            tmp_path / "own.yaml",
            {"optim.num_steps": 7, "optim": {"betas": betas}, "student.path": tmp_path, "runtime.num_workers": 4},
            {"runtime": {"num_workers": 2}, "eval": None},
        ]
    )
    assert (config.run.name, config.run.seed, config.teacher.path) == ("own", 5, "org/teacher")
    assert (config.optim.num_steps, config.optim.betas, config.runtime.num_workers) == (7, betas, 2)
    assert config.student.path == str(tmp_path)


def test_keys_of_a_mapping_below_its_top_are_not_taken_apart():
    space = {"distill.temperature": {"loguniform": [1, 8]}}
    plan = load_search([load("eval.every_steps=1"), {"search": {"space": space, "scheduler": "none"}}])
    assert plan.search.space == space


# -------------------------------------------------------------------------------- files that cannot be read


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"run:\n  name: x\n  name: y\n", "line 3: the key name is given twice"),
        (b"run: {name: x}\noptim: {num_steps: 1\n", "line 3: "),
        (b"run:\n\tname: x\n", "line 2: "),
        (b"- run\n", 'given ["run"], expected a mapping of sections (run, teacher, '),
        (b"run: \xff\n", "not UTF-8 text (byte 5)"),
        (b"run: x\x00\n", "special characters are not allowed"),
    ],
)
def test_bad_file(tmp_path, content, expected):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_config([str(file)], [])
    line = str(caught.value).split("\n")[1].strip()
    assert line.startswith(str(file))
    assert expected in line


def test_empty_file_says_nothing(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert load_config([str(file)], MINIMAL) == load()


def test_everything_that_cannot_be_read_is_reported_at_once(tmp_path):
    lines = problems("run", "=3", ".a=1", "data.sources={a: 1, a: 2}", base=())
    assert [line.split(":")[0] for line in lines[:3]] == ["run", "=3", ".a=1"]
    assert all("expected section.key=value" in line for line in lines[:3])
    assert "the key a is given twice" in lines[3]
    missing = str(tmp_path / "missing.yaml")
    with pytest.raises(InputError) as caught:
        load_config([missing, str(tmp_path)], ["x"])
    assert f"{missing}: cannot be read (No such file or directory), expected a YAML file" in str(caught.value)
    assert f"{tmp_path}: cannot be read (Is a directory)" in str(caught.value)
    assert "x: expected section.key=value" in str(caught.value)


# ------------------------------------------------------------------------------------ settings that are wrong


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        # unknown keys
        (["optim.learnin_rate=1"], "unknown key optim.learnin_rate, did you mean optim.learning_rate?"),
        (["optimm.eps=1"], "unknown key optimm, did you mean optim?"),
        (["learning_rate=1"], "unknown key learning_rate, did you mean optim.learning_rate?"),
        (["data.seed=1"], "unknown key data.seed, did you mean run.seed?"),
        (["run.qqqq=1"], "unknown key run.qqqq, expected one of run.name, run.storage_path, run.seed"),
        (
            ["data.sources=[a, {paht: b}]"],
            "unknown key data.sources[1].paht, did you mean data.sources[1].path?",
        ),
        (['run={name: x, "a.b": 4}'], "unknown key run.a.b, expected one of run.name, run.storage_path, run.seed"),
        (["run={name: x, 3: 4}"], "unknown key run.3, expected one of run.name, run.storage_path, run.seed"),
        # types and ranges
        (["run.name=7"], "run.name: given 7, expected text (put it in quotes)"),
        (["run.name=a/b"], 'run.name: given "a/b", expected a name of up to 100 letters, digits, '),
        (["run.name=.."], 'run.name: given "..", expected a name'),
        (["run.storage_path="], "run.storage_path: given null, expected non-empty text"),
        (["run.seed=true"], "run.seed: given true, expected integer >= 0 and <= 4294967295"),
        (["teacher.path=''"], 'teacher.path: given "", expected non-empty text'),
        (["teacher=7"], "teacher: given 7, expected mapping, or null"),
        (
            ["student.layers=half"],
            'student.layers: given "half", expected integer >= 1, or non-empty list of (integer >= 0), or null',
        ),
        (["student.layers=[]"], "student.layers: given [], expected integer >= 1, or non-empty list"),
        (["student.hidden_size=0"], "student.hidden_size: given 0, expected integer >= 1, or null"),
        (["student.architecture=bert"], 'student.architecture: given "bert", expected distilbert or same, or null'),
        (["student.attention_dropout=1"], "student.attention_dropout: given 1, expected number >= 0 and < 1"),
        (["data.sources=[]"], "data.sources: given [], expected non-empty list of (path or mapping)"),
        (["data.sources=[a, 7]"], "data.sources[1]: given 7, expected path or mapping"),
        (
            ["data.sources={path: a, hub: b}"],
            "data.sources[0]: given path and hub, expected exactly one of",
        ),
        (["data.eval_sources={column: a}"], "data.eval_sources[0]: given none of path, hub and docstrings"),
        (
            ["data.sources={path: a, split: b}"],
            'data.sources[0]: given split "b", expected no such key beside path',
        ),
        (
            ["data.sources={docstrings: installed, column: a, name: b}"],
            'data.sources[0]: given column "a" and name "b", expected no such key beside docstrings',
        ),
        (["data.sources={docstrings: all}"], 'data.sources[0].docstrings: given "all", expected installed, or null'),
        (
            ["data.sources={docstrings: installed, split: test}"],
            'data.sources[0]: given split "test", expected train or heldout',
        ),
        (["data.max_seq_length=7"], "data.max_seq_length: given 7, expected integer >= 8 and <= 32767"),
        (["data.eval_fraction=1"], "data.eval_fraction: given 1, expected number >= 0 and < 1"),
        (["distill.alpha_ce=-1"], "distill.alpha_ce: given -1, expected number >= 0"),
        (["distill.temperature=.nan"], "distill.temperature: given NaN, expected number > 0"),
        (["optim.max_grad_norm=.inf"], "optim.max_grad_norm: given Infinity, expected number > 0"),
        (["distill.temperature=hot"], 'distill.temperature: given "hot", expected number > 0'),
        (
            ["optim.betas=[1, 2, 3]"],
            "optim.betas: given [1, 2, 3], expected [number >= 0 and < 1, number >= 0 and < 1]",
        ),
        (["optim.num_steps=1.5"], "optim.num_steps: given 1.5, expected integer >= 0, or null"),
        (["eval=often"], 'eval: given "often", expected mapping'),
        (
            ["runtime.resources_per_worker={CPU: 0}"],
            'runtime.resources_per_worker: given {"CPU": 0}, expected mapping of text to number > 0, or null',
        ),
        (["runtime.use_gpu=1"], "runtime.use_gpu: given 1, expected true or false"),
        # across settings
        (
            ["optim.num_steps=null"],
            "optim.num_steps: given neither it nor optim.num_epochs, expected exactly one of them",
        ),
        (
            ["optim.num_epochs=3"],
            "optim.num_steps: given both it and optim.num_epochs, expected exactly one of them",
        ),
        (
            ["data.eval_sources=b", "data.eval_fraction=0.01"],
            "data.eval_fraction: given 0.01 beside data.eval_sources, expected only one of them",
        ),
        (
            ["data.random_replace_prob=0.4"],
            "data.mask_replace_prob: given 0.8, which makes 1.2 with "
            "data.random_replace_prob 0.4; expected a sum of at most 1",
        ),
        (
            ["data.mlm_probability=0.01", "data.max_seq_length=16"],
            "data.mlm_probability: given 0.01, which masks "
            "none of the 14 positions of a row (data.max_seq_length 16); expected at least 0.0714",
        ),
        (
            ["distill.alpha_ce=0", "distill.alpha_mlm=0", "distill.alpha_cos=0"],
            "distill.alpha_ce: given 0 like distill.alpha_mlm, distill.alpha_cos, distill.alpha_relations, "
            "distill.alpha_hidden, expected one of them above 0",
        ),
        (
            ["teacher=null", "student.path=s"],
            "distill.alpha_ce: given 5, and distill.alpha_cos 1, without a teacher; expected 0, or a teacher.path",
        ),
        (
            ["teacher=null", "student.path=s", "distill={alpha_ce: 0, alpha_cos: 0, alpha_hidden: 0.5}"],
            "distill.alpha_hidden: given 0.5, without a teacher; expected 0, or a teacher.path",
        ),
        (
            ["teacher=null", "student.path=s", "distill={alpha_ce: 0, alpha_cos: 0}", "eval.relation_loss=true"],
            "eval.relation_loss: given true without a teacher; expected false, or a teacher.path",
        ),
        (
            ["distill.hidden_layers=[1, 1]"],
            "distill.hidden_layers: given [1, 1], expected layers of the teacher in increasing order, one for each",
        ),
        (
            ["student.path=s", "student.config={model_type: bert}"],
            "student.config: given beside student.path, expected only one of them",
        ),
        (
            ["student.config={hidden_size: 4}"],
            "student.config: given a mapping without model_type, expected one such as {model_type: bert}",
        ),
        (
            ["student.path=s", "student.layers=2"],
            "student.layers: given 2, which applies only to a student made "
            "from the teacher's layers; expected no such key beside student.path",
        ),
        (["student.config=c", "student.layers=[0]"], "student.layers: given [0], which applies only to"),
        (["student.path=s", "student.hidden_size=64"], "student.hidden_size: given 64, which applies only to"),
        (["student.config=c", "student.num_heads=2"], "student.num_heads: given 2, which applies only to"),
        (
            ["student.path=s", "student.intermediate_size=9"],
            "student.intermediate_size: given 9, which applies only to",
        ),
        (["student.path=s", "student.init=random"], 'student.init: given "random", which applies only to'),
        (
            ["student.config=c", "student.architecture=same"],
            'student.architecture: given "same", which applies',
        ),
        (
            ["checkpoint.every_steps=null"],
            "checkpoint.every_steps: given null, like checkpoint.every_minutes; expected a number for one of them",
        ),
        (["runtime.num_workers=[4, 2]"], "runtime.num_workers: given [4, 2], expected [min, max] with"),
        (
            ["optim.global_batch_size=100", "runtime.num_workers=[1, 8]"],
            "optim.global_batch_size: given 100, which 8 workers (runtime.num_workers) cannot share equally; "
            "expected 96 or 104, or 5 or 10 workers",
        ),
        (
            ["optim.global_batch_size=4", "runtime.num_workers=8"],
            "optim.global_batch_size: given 4, which 8 workers "
            "(runtime.num_workers) cannot share equally; expected 8, or 4 workers",
        ),
        (
            ["optim.global_batch_size=96", "runtime.num_workers=2", "runtime.micro_batch_size=20"],
            "runtime.micro_batch_size: given 20, which does not divide a worker's 48 rows "
            "(optim.global_batch_size 96 over 2 workers); expected 16 or 24",
        ),
    ],
)
def test_refused(overrides, line):
    found = problems(*overrides)
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            [],
            "student: given nothing to make it from; without a teacher, expected student.path, "
            "or student.config and student.tokenizer",
        ),
        (["student.config={model_type: bert}"], "student.tokenizer: missing; expected a local folder"),
    ],
)
def test_refused_without_a_teacher(overrides, line):
    found = problems(*overrides, base=NO_TEACHER)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_accepted_without_a_teacher():
    assert load_config([], [*NO_TEACHER, "student.path=org/student"]).teacher is None
    described = ["student.config={model_type: bert}", "student.tokenizer=org/pieces", "student.init=random"]
    assert load_config([], [*NO_TEACHER, *described]).distill.shares["mlm"] == 1.0


def test_required_keys_are_named_with_what_they_are():
    assert problems(base=()) == [
        "run.name: missing, expected text. Name of the run and of its folder; "
        "the same name resumes where that run stopped.",
        "data.sources: missing, expected non-empty list of (path or mapping). Training text: a path, "
        "a mapping with the keys below, or a list of these.",
        "student: given nothing to make it from; without a teacher, expected student.path, "
        "or student.config and student.tokenizer",
        "distill.alpha_ce: given 5, and distill.alpha_cos 1, without a teacher; expected 0, or a teacher.path",
        "optim.num_steps: given neither it nor optim.num_epochs, expected exactly one of them",
    ]
    assert [line.split(":")[0] for line in problems("teacher.revision=x", base=MINIMAL[:1] + MINIMAL[2:])] == [
        "teacher.path"
    ]


def test_a_wrong_setting_does_not_hide_those_that_do_not_go_together():
    lines = problems("run.seed=-1", "data.colum=text", "optim.num_epochs=3", "runtime.num_workers=3")
    assert sorted(line.split(":")[0] for line in lines) == [
        "optim.global_batch_size",
        "optim.num_steps",
        "run.seed",
        "unknown key data.colum, did you mean data.sources[].column?",
    ]


def test_a_wrong_setting_is_reported_once():
    # That leaves the run without a length or a teacher, which is not reported on top.
    assert [line.split(":")[0] for line in problems("optim.num_steps=soon")] == ["optim.num_steps"]
    assert [line.split(":")[0] for line in problems("teacher=7")] == ["teacher"]
    misspelt = (*MINIMAL[:3], "optim.num_step=10")
    assert problems(base=misspelt) == ["unknown key optim.num_step, did you mean optim.num_steps?"]


def test_a_long_value_is_cut():
    assert len(problems(f"optim.betas={'x' * 10_000}")[0]) < 400


# -------------------------------------------------------------------------------------------- what follows


def test_shares_sum_to_one_and_do_not_depend_on_the_scale():
    assert load().distill.shares == {"ce": 0.625, "mlm": 0.25, "cos": 0.125, "relations": 0.0, "hidden": 0.0}
    scaled = load("distill.alpha_ce=0.3", "distill.alpha_mlm=0.2", "distill.alpha_cos=0.1").distill.shares
    assert sum(scaled.values()) == pytest.approx(1.0)
    assert scaled["ce"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("global_batch_size", "num_workers", "micro_batch_size", "block_rows", "expected"),
    [
        (256, "1", "null", 256, 32),
        (256, "[2, 4]", "null", 64, 32),
        (96, "2", "null", 48, 24),
        (37, "1", "null", 37, 1),
        (6, "2", "null", 3, 3),
        (96, "2", "48", 48, 48),
    ],
)
def test_blocks_and_micro_batches(global_batch_size, num_workers, micro_batch_size, block_rows, expected):
    config = load(
        f"optim.global_batch_size={global_batch_size}",
        f"runtime.num_workers={num_workers}",
        f"runtime.micro_batch_size={micro_batch_size}",
    )
    assert (config.block_rows, config.micro_batch_size) == (block_rows, expected)


@pytest.mark.parametrize(
    ("global_batch_size", "max_seq_length", "expected"),
    [(4096, 512, 64), (4096, 128, 256), (96, 512, 48), (32, 512, 32), (37, 512, 37), (37, 1024, 1), (7, 32_767, 1)],
)
def test_micro_batches_of_a_gpu_are_limited_by_their_tokens(global_batch_size, max_seq_length, expected):
    sizes = (f"optim.global_batch_size={global_batch_size}", f"data.max_seq_length={max_seq_length}")
    assert load("runtime.use_gpu=true", *sizes).micro_batch_size == expected
    assert load("runtime.use_gpu=true", "runtime.micro_batch_size=1", *sizes).micro_batch_size == 1


def test_elastic_workers():
    runtime = load("runtime.num_workers=[2, 4]").runtime
    assert (runtime.min_workers, runtime.max_workers) == (2, 4)


# ------------------------------------------------------------------------------- describing and writing down


def test_every_key_is_described_with_its_default():
    fields = keys_of(Config)
    assert len(fields) > 60
    text = describe_keys()
    for key, field in fields.items():
        if "." not in key:
            assert f"\n{key}: " in f"\n{text}"
            continue
        assert field.description, key
        listed = key.replace("data.sources.", "data.sources[].")
        if not key.startswith("data.eval_sources."):
            assert f"\n  {listed}  (" in text, key
            assert textwrap.indent(field.description, "      ") in text
    assert "optim.learning_rate  (number > 0; default 0.0005)" in text
    assert "run.name  (text; required)" in text
    assert "optim.betas  ([number >= 0 and < 1, number >= 0 and < 1]; default [0.9, 0.98])" in text


class Long(Section):
    """A section of another command."""

    key: int = 1
    """The first line,
    and the second."""


class Other(Section):
    """What another command has."""

    long: Long = Long()


def test_all_lines_of_a_description_are_indented():
    assert "\n      The first line,\n      and the second." in describe_keys(Other)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.eval_sources=s3://b/held-out", "student.layers=[0, 3]", "runtime.num_workers=[1, 4]"],
        ["teacher.revision='1e5'", "run.name=2024-01-31", "data.sources={hub: 'null', name: 'true'}"],
        [
            "student.config={model_type: bert, hidden_size: 64, hidden_dropout_prob: 1e-3}",
            "data.eval_fraction=1e-7",
        ],
        ["runtime.data_label={ray-subcluster: é—x}", "optim.eps=1e-30"],
    ],
)
def test_written_configuration_reads_back_equal(tmp_path, overrides):
    config = load(*overrides)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    again = load_config([str(file)], [])
    assert again == config
    assert to_yaml(again) == to_yaml(config)


# ----------------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize(
    "override",
    [
        "run.name=other",
        "run.storage_path=/elsewhere",
        "data.sources=[b.parquet, c.parquet]",
        "student.architecture=distilbert",
        "data.on_bad_file=skip",
        "data.warn_skipped_fraction=0.5",
        "distill={alpha_ce: 10, alpha_mlm: 4, alpha_cos: 2}",
        "optim.max_skipped_updates=3",
        "eval.every_steps=1",
        "metrics.every_steps=1",
        "checkpoint.keep=1",
        "runtime={num_workers: [1, 2], use_gpu: true, precision: bf16, compile: true, micro_batch_size: 2}",
    ],
)
def test_changes_nothing_that_is_learned(override):
    assert difference(learned(load()), learned(load(override))) == []


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("run.seed=57", ["run.seed: was 56, now 57"]),
        ("teacher.path=org/b", ['teacher.path: was "org/teacher", now "org/b"']),
        ("teacher.revision=abc", ['teacher.revision: was null, now "abc"']),
        ("student.layers=[0, 1]", ["student.layers: was null, now [0, 1]"]),
        ("student.architecture=same", ['student.architecture: was "distilbert", now "same"']),
        ("student.hidden_size=64", ["student.hidden_size: was null, now 64"]),
        ("student.num_heads=2", ["student.num_heads: was null, now 2"]),
        ("student.intermediate_size=96", ["student.intermediate_size: was null, now 96"]),
        ("student.attention_dropout=0", ["student.attention_dropout: was null, now 0.0"]),
        (
            "student.config={model_type: bert}",
            ['student.config.model_type: was not set, now "bert"'],
        ),
        (
            "data.sources={path: a.parquet, column: body}",
            ['data.sources.columns: was ["text"], now ["body"]'],
        ),
        ("data.eval_sources=b.parquet", ["data.eval_fraction: was 0.01, now 0.0"]),
        ("data.mlm_smoothing=0.7", ["data.mlm_smoothing: was 0.0, now 0.7"]),
        ("data.steps_per_block=8", ["data.steps_per_block: was 1, now 8"]),
        ("distill.temperature=3", ["distill.temperature: was 2.0, now 3.0"]),
        (
            "distill.alpha_cos=0",
            [
                "distill.shares.ce: was 0.625, now 0.714285714286",
                "distill.shares.mlm: was 0.25, now 0.285714285714",
                "distill.shares.cos: was 0.125, now 0.0",
            ],
        ),
        ("optim.learning_rate=1e-4", ["optim.learning_rate: was 0.0005, now 0.0001"]),
        ("optim.betas=[0.9, 0.99]", ["optim.betas: was [0.9, 0.98], now [0.9, 0.99]"]),
    ],
)
def test_changes_what_is_learned(override, lines):
    assert difference(learned(load()), learned(load(override))) == lines


@pytest.mark.parametrize("origin", ["student.path=s", "student.config={model_type: bert}"])
def test_configurations_with_the_earlier_default_of_the_architecture_are_read(origin):
    """Runs write all their settings down, those that do not apply, too."""
    config = load(origin, "student.architecture=distilbert")
    assert parse_config(to_settings(config)) == config
    assert difference(learned(config), learned(load(origin))) == []


def test_a_setting_that_an_older_release_did_not_have_counts_by_its_default():
    old = learned(load())
    del old["data.mlm_smoothing"], old["student.init"], old["distill.shares.cos"]

    assert difference(old, learned(load("distill.alpha_cos=0"))) == [
        "distill.shares.ce: was 0.625, now 0.714285714286",
        "distill.shares.mlm: was 0.25, now 0.285714285714",
    ]
    changed = learned(load("data.mlm_smoothing=0.7", "student.init=random"))
    assert set(difference(old, changed)) == {
        'student.init: was "teacher", now "random"',
        "distill.shares.cos: was 0.0, now 0.125",
        "data.mlm_smoothing: was 0.0, now 0.7",
    }


def test_every_setting_is_either_learned_or_known_not_to_be():
    """A new key has to be put on one of the two sides."""
    not_learned = {
        "run.name",
        "run.storage_path",
        "data.on_bad_file",
        "data.warn_skipped_fraction",
        "optim.max_skipped_updates",
        "data.sources",
        "data.eval_sources",
        *(f"distill.{name}" for name in LOSS_WEIGHTS),
    }
    other = {"eval", "metrics", "checkpoint", "runtime"}
    keys = {key for key in keys_of(Config) if key.count(".") == 1 and key.partition(".")[0] not in other}
    derived = {"data.sources.columns", *(f"distill.shares.{name.removeprefix('alpha_')}" for name in LOSS_WEIGHTS)}
    assert set(learned(load())) == (keys - not_learned) | derived


def test_what_is_learned_survives_json():
    config = load("student.layers=[0, 1]")
    assert json.loads(json.dumps(learned(config))) == learned(config)


# ------------------------------------------------------------------------------------- the shipped recipes


OF_OTHER_KINDS = {"ablation", "ablation-losses", "evaluate"}  # not of a run: other tests load them


@pytest.mark.parametrize("name", sorted({file.stem for file in CONFIGS.glob("*.yaml")} - OF_OTHER_KINDS))
def test_shipped_recipe_loads_under_its_own_name(name):
    file = CONFIGS / f"{name}.yaml"
    needs_sources = "data.sources=" in file.read_text()
    load = load_search if name.startswith("tune") else load_config
    loaded = load([str(file)], ["data.sources=a.parquet"] if needs_sources else [])
    config = loaded if isinstance(loaded, Config) else loaded.config
    assert config.run.name == name


def test_recipes():
    tiny = load_config([str(CONFIGS / "tiny.yaml")], ["data.sources=a"])
    base = load_config([str(CONFIGS / "pretrain-tiny.yaml")], ["data.sources=a"])
    assert {name for name, share in base.distill.shares.items() if share > 0} == {"mlm"}
    assert tiny.teacher.path.endswith(f"runs/{base.run.name}/export")
    for name in ("distilbert-base-uncased", "distilroberta-base"):
        config = load_config([str(CONFIGS / f"{name}.yaml")], [])
        assert config.optim.global_batch_size == 4096
        assert config.runtime.max_workers == 8
        assert config.data.steps_per_block == 8
        assert config.distill.shares == load().distill.shares


def test_sources_of_a_command_line_are_paths_or_mappings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = parse_sources(["a/*.parquet", "{docstrings: installed, split: heldout}", "{path: b.txt, column: body}"])

    assert [source.path for source in sources] == [str(tmp_path / "a/*.parquet"), None, str(tmp_path / "b.txt")]
    assert (sources[1].docstrings, sources[1].split, sources[2].column) == ("installed", "heldout", "body")
    with pytest.raises(InputError, match="the sources have 2 problems:") as error:
        parse_sources(["{path: a, hub: b}", "a", "{paht: a}"])
    assert "{path: a, hub: b}: given path and hub, expected exactly one of" in str(error.value)
    assert "unknown key {paht: a}.paht, did you mean {paht: a}.path?" in str(error.value)


def test_yaml_text_reads_like_a_file():
    assert parse_config(parse_mapping(to_yaml(load()), "config.yaml")) == load()
    with pytest.raises(InputError, match=r"config\.yaml, line 1"):
        parse_mapping("run: {", "config.yaml")


def test_a_file_may_lie_elsewhere(tmp_path):
    folder = RunFolder("memory://configs", "here")
    folder.write_text("run.yaml", to_yaml(load("run.name=elsewhere")))

    assert load_config(["memory://configs/here/run.yaml"], []).run.name == "elsewhere"
    with pytest.raises(InputError, match=r"memory://configs/here/none\.yaml: cannot be read .*expected a YAML file"):
        load_config(["memory://configs/here/none.yaml"], [])
    with pytest.raises(InputError, match=r"nosuch://a\.yaml: cannot be opened: Protocol not known: nosuch"):
        load_config(["nosuch://a.yaml"], [])


@pytest.mark.parametrize("name", ["small-teacher", "small-student"])
def test_the_recipes_of_the_results_are_valid(name):
    assert (
        load_config([str(CONFIGS.parent / "benchmarks" / f"{name}.yaml")], ["data.sources=a"]).optim.num_steps >= 1000
    )
