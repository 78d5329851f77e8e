"""The JSON Schemas for editors: they are current, take what the commands take and refuse what these refuse."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from distil_ray.commands import schema
from distil_ray.config import load_config
from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import load_protocol
from distil_ray.studies.settings import load_ablation, load_search

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMAS = {"run": CONFIGS / "schema.json", "protocol": CONFIGS / "protocol.schema.json"}
MINIMAL = {
    "run": {"name": "a"},
    "teacher": {"path": "org/teacher"},
    "data": {"sources": "a.parquet"},
    "optim": {"num_steps": 10},
}


class EditorLoader(yaml.SafeLoader):
    """Reads scalars by the core schema of YAML 1.2, as editors do."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own way to set a loader up)


for tag, pattern in (
    ("null", r"null|Null|NULL|~|$"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
):
    EditorLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), None)


def validator(kind: str) -> Any:
    return jsonschema.Draft7Validator(json.loads(SCHEMAS[kind].read_text(encoding="utf-8")))


def errors(text: str, kind: str = "run") -> list[str]:
    """What an editor would complain about."""
    return [error.message for error in validator(kind).iter_errors(yaml.load(text, EditorLoader))]


def loaded(tmp_path: Path, text: str, kind: str) -> Any:
    """What the commands make of the same text beside the keys that must be given."""
    file, rest = tmp_path / "given.yaml", tmp_path / "rest.yaml"
    file.write_text(text, encoding="utf-8")
    rest.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    load: Any = {"search": load_search, "ablation": load_ablation}.get(text.partition(":")[0], load_config)
    return load_protocol([str(file)], []) if kind == "protocol" else load([str(rest), str(file)], [])


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_committed_schemas_are_current(kind, capsys):
    assert schema.main([kind]) == 0
    renewal = f"renew it: distil-ray schema {kind} > configs/{SCHEMAS[kind].name}"
    assert capsys.readouterr().out == SCHEMAS[kind].read_text(encoding="utf-8"), renewal
    jsonschema.Draft7Validator.check_schema(validator(kind).schema)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_each_shipped_file_names_its_schema_and_is_valid(file):
    text = file.read_text(encoding="utf-8")
    kind = "protocol" if file.name == "evaluate.yaml" else "run"
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMAS[kind].relative_to(file.parent)}\n")
    assert errors(text, kind) == []


@pytest.mark.parametrize("file", sorted(CONFIGS.parent.glob("benchmarks/**/*.yaml")), ids=lambda file: file.name)
def test_each_file_of_the_benchmarks_is_valid(file):
    assert errors(file.read_text(encoding="utf-8"), "protocol" if file.name == "protocol.yaml" else "run") == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("data: {sources: a.parquet}", "run"),
        ("data: {sources: {docstrings: installed}, eval_sources: null}", "run"),
        ("data: {sources: [a.parquet, {hub: org/text, name: en}], eval_sources: [b.txt]}", "run"),
        ("optim: {learning_rate: 1e-3, eps: 1, betas: [0.9, 1e-1], num_steps: 10_000}", "run"),
        ("student: {layers: [0, 2], hidden_size: null}", "run"),
        ("student: {config: {model_type: bert}, tokenizer: org/tokenizer}", "run"),
        ("teacher:\nstudent: {path: org/student}\ndistill: {alpha_ce: 0, alpha_cos: 0}", "run"),
        ("distill: {hidden_layers: uniform}", "run"),
        ("runtime: {num_workers: [1, 2], resources_per_worker: {CPU: 2}, data_label: {a: b}}", "run"),
        ("eval:\nrun:", "run"),
        (
            "search: {num_trials: 2, scheduler: none, space: {distill.temperature: {uniform: [1, 4]}, "
            "loss_weights: {simplex: [distill.alpha_ce, distill.alpha_mlm]}}}",
            "run",
        ),
        ("ablation: {variants: {full: {}, plain: {distill.alpha_ce: 0.0}}, seeds: [1, 2]}", "run"),
        ("tasks: {own: {train: a.csv, validation: b.csv, text: [one, two]}}", "protocol"),
        ("resources: {gpus: auto}\nfinetuning_of: {own: {num_epochs: 2}}", "protocol"),
    ],
)
def test_what_the_commands_take_is_valid(text, kind, tmp_path):
    loaded(tmp_path, text, kind)
    assert errors(text, kind) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("optim: {learning_rat: 1e-3}", "run"),
        ("optimizer: {learning_rate: 1e-3}", "run"),
        ("data: {sources: [{path: a.parquet, colum: body}]}", "run"),
        ("data: {sources: []}", "run"),
        ("data: {sources: 3}", "run"),
        ("optim: {num_steps: ten}", "run"),
        ("optim: {num_steps: -1}", "run"),
        ("optim: {num_steps: 2.5}", "run"),
        ("optim: {betas: [0.9]}", "run"),
        ("optim: {betas: [0.9, 1.5]}", "run"),
        ("optim: {learning_rate: null}", "run"),
        ("optim: 3", "run"),
        ("distill: {hidden_loss: l1}", "run"),
        ("distill: {hidden_layers: even}", "run"),
        ("runtime: {use_gpu: 1}", "run"),
        ("runtime: {data_label: {zone: 1}}", "run"),
        ("run: {name: 5}", "run"),
        ("teacher: {path: ''}", "run"),
        ("student: {layers: []}", "run"),
        ("search: {trials: 3, space: {distill.temperature: {uniform: [1, 4]}}}", "run"),
        ("search: {metric: train/loss, space: {distill.temperature: {uniform: [1, 4]}}}", "run"),
        ("ablation: {variants: {full: {}}}", "run"),
        ("ablation: {variants: {full: {}, plain: {}}, seeds: [-1]}", "run"),
        ("finetunin: {num_epochs: 3}", "protocol"),
        ("finetuning: {num_epochs: many}", "protocol"),
        ("finetuning:", "protocol"),
        ("tasks: {own: {kind: summary, hub: org/text}}", "protocol"),
        ("tasks: {own: {hub: org/text, text: [one, two, three]}}", "protocol"),
        ("resources: {gpus: some}", "protocol"),
    ],
)
def test_what_the_commands_refuse_is_not_valid(text, kind, tmp_path):
    with pytest.raises(InputError):
        loaded(tmp_path, text, kind)
    assert errors(text, kind) != []


def undescribed(properties: dict[str, Any], path: str) -> Iterator[str]:
    yield from (f"{path}.{key}" for key, value in properties.items() if not value.get("description"))


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_key_has_a_description(kind):
    made = validator(kind).schema
    sections = {kind: made, **made["$defs"]}
    assert len(sections) > 5
    assert [line for name, section in sections.items() for line in undescribed(section["properties"], name)] == []


def test_descriptions_defaults_and_limits_are_those_of_the_sections():
    steps = validator("run").schema["$defs"]["Checkpoint"]["properties"]["every_steps"]
    assert steps["description"] == "Steps between two checkpoints; null saves by time alone."
    assert steps["default"] == 500
    assert {"type": "integer", "minimum": 1} in steps["anyOf"]
