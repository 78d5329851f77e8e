"""README and documentation keep to the code: commands run, configurations load, keys, messages and links exist."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from distil_ray.commands import COMMANDS as SUBCOMMANDS
from distil_ray.config import load_config, parse_config
from distil_ray.config.description import fields
from distil_ray.evaluation.protocol import load_protocol
from distil_ray.studies.settings import load_search

ROOT = Path(__file__).parents[1]
PACKAGE, DOCS = ROOT / "distil_ray", ROOT / "docs"


def load_hooks() -> ModuleType:
    """What MkDocs runs beside its own, which needs no MkDocs to be loaded."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()
# The pages that are written by hand, and further files that people read in the repository.
PAGES = ["README.md", "CONTRIBUTING.md", "cluster/README.md", *(str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md"))]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str) -> Iterator[tuple[str, str]]:
    """Yield what stands after the opening of each block of code, and its text without the block's indentation."""
    for indent, info, text in re.findall(r"^( *)```(\S.*?)\n(.*?)^\1```$", text_of(page), re.DOTALL | re.MULTILINE):
        yield info, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def blocks(page: str, info: str) -> list[str]:
    return [text for found, text in fences(page) if found == info]


# --------------------------------------------------------------------------------------------------- commands

# Each block of commands, by page and in order: a line of it, how many it has, and what they leave behind, None if
# continuous integration or test_wheel.py runs it.
COMMANDS = {
    "README.md": [("make quickstart", 2, None)],
    "docs/start.md": [
        ("make setup", 2, None),
        ("make quickstart", 1, None),
        ("distil-ray vocabulary", 4, ("runs/tiny/export/model.safetensors", "runs/tiny/report.html")),
    ],
    "docs/search.md": [("distil-ray tune", 2, ("runs/tune-cpu/best.yaml", "runs/tune-cpu-best/export/config.json"))],
}
SHORTER = (
    "optim.num_steps=4 optim.global_batch_size=16 runtime.micro_batch_size=8 runtime.num_workers=1 eval.num_rows=16 "
    "eval.every_steps=4"
)


def test_no_command_is_left_out():
    found = {page: blocks(page, "bash") for page in PAGES}
    assert {page: len(texts) for page, texts in found.items() if texts} == {p: len(c) for p, c in COMMANDS.items()}
    for page, commands in COMMANDS.items():
        for text, (line, count, _) in zip(found[page], commands, strict=True):
            assert line in text
            assert len(text.splitlines()) == count


def shortened(line: str) -> str:
    """The same command for little text and few steps."""
    if "best.yaml" in line:
        return f"{line} {SHORTER}"
    if line.startswith("distil-ray train"):
        return f"{line} {SHORTER} data.eval_fraction=0.1"
    if line.startswith("distil-ray tune"):
        return f"{line} {SHORTER} search.num_trials=1 search.scheduler=none"
    return line.replace("--size 8000", "--size 300")


RUN_HERE = [(p, i) for p, commands in COMMANDS.items() for i, (*_, left) in enumerate(commands) if left is not None]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "index"), RUN_HERE)
def test_commands_run(corpus, ray_cluster, tmp_path, page, index):
    (tmp_path / "text").symlink_to(corpus)
    for name in ("configs", "distil_ray"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    lines = [shortened(line) for line in blocks(page, "bash")[index].splitlines()]
    result = subprocess.run(
        ["bash", "-euc", "\n".join([". .venv/bin/activate", *lines])],
        cwd=tmp_path,
        env={**os.environ, "PATH": binaries, "RAY_ADDRESS": ray_cluster},  # one Ray for all, to be quicker
        capture_output=True,
        text=True,
        timeout=450,
    )

    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    for name in COMMANDS[page][index][2]:
        assert (tmp_path / name).exists()
    assert "finished: the student is in" in result.stdout


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_those_of_the_package(page):
    text = text_of(page)
    assert set(re.findall(r"(?:^ *|`)distil-ray ([a-z]+)\b", text, flags=re.MULTILINE)) <= SUBCOMMANDS.keys()
    for module in re.findall(r"python -m distil_ray\.(\w+)", text):
        assert (PACKAGE / f"{module}.py").exists()
    for recipe in re.findall(r"--config ([\w-]+)(?=[\s`])", text):
        assert recipe in {path.stem for path in (ROOT / "configs").glob("*.yaml")} | {"FILE"}
    assert not re.findall(r"--config configs/", text), "recipes are called by their names"


# ---------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(("page", "text"), [(page, text) for page in PAGES for text in blocks(page, "yaml")])
def test_configurations_load(page, text, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    if "search:" in text:
        assert load_search([str(file)], []).num_trials == 32
    else:
        assert load_config([str(file)], []).run.name


def test_the_protocol_loads(tmp_path):
    (text,) = blocks("docs/evaluate.md", 'yaml title="protocol.yaml"')
    (tmp_path / "protocol.yaml").write_text(text)
    protocol = load_protocol([str(tmp_path / "protocol.yaml")], [])
    assert {task.kind for task in protocol.tasks.values()} == {"classification", "tokens", "similarity"}
    assert protocol.finetuning_on("imdb").learning_rate == protocol.finetuning_on("tickets").learning_rate == 3e-4


def test_the_configuration_for_a_cluster_is_valid():
    (text,) = blocks("docs/clusters/index.md", 'yaml title="beside teacher, data and optim"')
    rest = {"teacher": {"path": "org/teacher"}, "data": {"sources": "/text"}}
    config = parse_config(yaml.safe_load(text) | rest | {"optim": {"num_steps": 1, "global_batch_size": 4096}})
    assert (config.runtime.min_workers, config.runtime.max_workers, config.block_rows) == (8, 64, 64)


# ------------------------------------------------------------------------------------------------------- keys

KEYS = {key for root in HOOKS.KEYS.values() for key, _ in fields(root)}
SECTIONS = {key.partition(".")[0] for key in KEYS}


def keys_named_in(page: str) -> set[str]:
    """What is called a key: a section and a name in code that ends there, or before its value."""
    code = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    code += [word for _, text in fences(page) for word in re.findall(r"[\w.]+=", text)]
    found = [re.match(r"'?([a-z_]+\.[a-z_]+)(?=$|[:=])", one) for one in code]
    named = {one[1] for one in found if one and one[1].partition(".")[0] in SECTIONS}
    return {name for name in named if name.partition(".")[2] not in ("csv", "json", "jsonl", "md", "py", "yaml")}


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_are_named_exist(page):
    assert keys_named_in(page) <= KEYS


def test_named_keys_are_found():
    assert {"runtime.num_workers", "eval.relation_loss", "data.sources"} <= set().union(*map(keys_named_in, PAGES))


def test_every_key_is_in_the_reference():
    page = text_of("docs/keys.md")
    assert re.findall(r"^<!-- keys: (\w+) -->$", page, flags=re.MULTILINE) == list(HOOKS.KEYS)
    for root in HOOKS.KEYS.values():
        lines = HOOKS.keys(root).splitlines()
        for key, field in fields(root):
            if "." in key:  # others are a section's name
                (line,) = [line for line in lines if line.startswith(f"| `{key}` |")]
                assert " ".join((field.description or "").split()).replace("|", "\\|") in line
    table = HOOKS.keys(HOOKS.KEYS["run"])
    assert re.search(r"\| `optim\.learning_rate` \| number > 0 \| `0.0005` \| Peak .*5e-4\)\. \|", table)


# --------------------------------------------------------------------------------------------------- messages


def messages(file: Path) -> Iterator[str]:
    """Yield each text of a module, with … for what it fills in."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_are_quoted_as_they_are():
    known = [message for file in PACKAGE.rglob("*.py") for message in messages(file)]
    quoted = re.findall(r"^### `(.+)`$", text_of("docs/troubleshooting.md"), flags=re.MULTILINE)
    rays = {"413 Request Entity Too Large"}
    strange = []
    for message in set(quoted) - rays:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
        if not any(pattern.search(one) for one in known):
            strange.append(message)
    assert strange == []
    assert len(quoted) >= 20


# ------------------------------------------------------------------------------------------------------ links


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives headings, as does the site."""
    text = text_of(page)
    if page == "docs/keys.md":
        text += "\n" + "\n".join(map(HOOKS.keys, HOOKS.KEYS.values()))
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/RESULTS.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]*))?\)", text):
        path = os.path.normpath((ROOT / page).parent / target) if target else str(ROOT / page)
        assert os.path.exists(path), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(os.path.relpath(path, ROOT)), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    """Tests, which guarantees and guides name, and what lies in `cluster/`, by name or by path."""
    here = {str(path.relative_to(ROOT)) for folder in ("tests", "cluster") for path in (ROOT / folder).rglob("*.*")}
    named = set(re.findall(r"\b((?:tests|cluster)/[\w/]+\.(?:py|yaml))\b", text_of(page)))
    assert named <= here
    names = set(re.findall(r"`(test_\w+\.py)`", text_of(page)))
    assert names <= {os.path.basename(file) for file in here}


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](docs/losses.md#which-to-take)", "[a](losses.md#which-to-take)"),
        ("index.md", "![a](docs/images/flow.svg)", "![a](images/flow.svg)"),
        ("clusters/aws.md", "[`a`](../../cluster/aws.yaml)", "`a`"),
        ("clusters/aws.md", "[a](../speed.md)", "[a](../speed.md)"),
        ("clusters/index.md", "[a](../../benchmarks/RESULTS.md#results)", "[a](../measured.md#results)"),
        ("speed.md", "[a](#micro-batch) [b](https://x.y/z)", "[a](#micro-batch) [b](https://x.y/z)"),
        (
            "speed.md",
            "`[a](nowhere.md)`\n```text\n[a](nowhere.md)\n```\n",
            "`[a](nowhere.md)`\n```text\n[a](nowhere.md)\n```\n",
        ),
    ],
)
def test_links_of_the_site(page, text, expected):
    assert HOOKS.linked(text, page) == expected


def test_links_into_the_repository_where_its_address_is_known():
    linked = HOOKS.linked("[a](../distil_ray/cli.py#L1)", "speed.md", "https://host/repository")
    assert linked == "[a](https://host/repository/blob/main/distil_ray/cli.py#L1)"


def test_a_link_that_leads_nowhere_is_an_error():
    with pytest.raises(FileNotFoundError, match=r"docs/speed\.md: the link to nowhere\.md leads to no file"):
        HOOKS.linked("[a](nowhere.md)", "speed.md")


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 75
