"""Completion as a shell asks for it: by argcomplete's protocol, of the real program."""

import os
import subprocess
import sys

import pytest

from distil_ray.commands import COMMANDS
from distil_ray.shipped import recipe_names


def completions(line, folder):
    """What the shell would offer at the end of the line."""
    answer = folder / ".answer"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",  # as in bash
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    watched = (
        "import runpy, sys, atexit, os\n"
        "leave = os._exit\n"
        "def left(status):\n"
        "    assert not {'torch', 'ray', 'transformers'} & sys.modules.keys()\n"
        "    leave(status)\n"
        "os._exit = left\n"
        "sys.argv = ['distil-ray']\n"
        "runpy.run_module('distil_ray', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", watched], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [one for one in answer.read_text().split("\n") if one]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "sub").mkdir()
    return tmp_path


def test_commands(folder):
    assert set(COMMANDS) <= {one.strip() for one in completions("distil-ray ", folder)}
    assert completions("distil-ray tr", folder) == ["train "]


def test_options_of_the_command_that_is_named(folder):
    assert completions("distil-ray train --dry", folder) == ["--dry-run "]
    assert completions("distil-ray report --dry", folder) == []
    assert completions("distil-ray tune --retry", folder) == ["--retry-failed "]


def test_keys_of_the_configuration_after_which_the_value_follows(folder):
    assert completions("distil-ray train optim.learning_", folder) == ["optim.learning_rate="]
    assert set(completions("distil-ray quickstart run.", folder)) == {"run.name=", "run.storage_path=", "run.seed="}
    line = "distil-ray train run.name=x --dry-run a.b=c --config mine.yaml distill.te"
    assert completions(line, folder) == ["distill.temperature="]


def test_keys_of_searches_ablations_and_protocols(folder):
    assert completions("distil-ray tune search.num_t", folder) == ["search.num_trials="]
    assert completions("distil-ray ablate ablation.s", folder) == ["ablation.seeds="]
    assert completions("distil-ray train search.num_t", folder) == []
    assert completions("distil-ray evaluate --set finetuning.prec", folder) == ["finetuning.precision="]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train runtime.precision=", {"auto", "fp32", "bf16", "fp16"}),
        ("train runtime.precision=b", {"bf16"}),
        ("train runtime.compile=", {"true", "false"}),
        ("train student.layers=", {"null"}),
        ("train optim.learning_rate=", set()),
        ("evaluate --set resources.gpus=", {"auto"}),
    ],
)
def test_values_of_which_there_are_few(typed, offered, folder):
    assert {one.strip() for one in completions(f"distil-ray {typed}", folder)} == offered


def test_files_and_recipes(folder):
    offered = {one.strip() for one in completions("distil-ray train --config ", folder)}
    assert offered == {"mine.yaml", "sub/", *recipe_names()}
    assert completions("distil-ray report no", folder) == ["notes.txt "]
    assert completions("distil-ray train --config distilb", folder) == ["distilbert-base-uncased "]
