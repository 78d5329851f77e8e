"""The one command: what it lists, what it finds, and the modules that stand for its commands."""

import subprocess
import sys
from pathlib import Path

import pytest

import distil_ray
from distil_ray import __version__
from distil_ray.__main__ import main
from distil_ray.commands import COMMANDS

ENTRIES = {name for name in COMMANDS if Path(distil_ray.__file__).with_name(f"{name}.py").exists()}


def ended(*arguments: str, **options) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_every_command(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert shown.startswith("usage: distil-ray ")
    assert [line.split()[0] for line in shown.split("commands:\n")[1].splitlines()[: len(COMMANDS)]] == [*COMMANDS]


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"distil-ray {__version__}\n")


def test_a_command_gets_its_arguments(capsys):
    assert main(["train", "run.nam=x"]) == 2
    assert capsys.readouterr().err.startswith("distil-ray train: error: the configuration has ")


def test_an_unknown_command_ends_with_2_and_the_nearest_one(capsys):
    assert main(["trian", "run.name=x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distil-ray: error: trian: no such command (did you mean 'train'?); expected one of ")
    assert len(error.splitlines()) == 1


def test_listing_the_commands_loads_none_of_them():
    script = "import sys, distil_ray.__main__ as m\ntry:\n    m.main(['--help'])\nexcept SystemExit:\n    pass\n"
    status, _, errors = ended("-c", f"{script}assert not {{'pydantic', 'yaml', 'numpy', 'ray'}} & sys.modules.keys()")
    assert (status, errors) == (0, "")


@pytest.mark.parametrize(
    ("called", "name"),
    [
        (["distil_ray.train"], "distil_ray.train"),
        (["distil_ray", "train"], "distil_ray train"),
    ],
)
def test_messages_name_the_command_as_it_was_called(called, name):
    assert ended("-m", *called, "run.nam=x")[2].startswith(f"{name}: error: ")
    assert ended("-m", *called, "--help")[1].startswith(f"usage: python -m {name} ")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_a_command_runs_as_a_module(name):
    status, shown, _ = ended("-m", f"distil_ray.{name}", "--help")
    assert status == 0
    assert shown.startswith(f"usage: python -m distil_ray.{name} ")


def test_clusters_and_jobs_find_their_modules():
    assert {"train", "tune", "evaluate", "ablate", "report", "doctor", "drain", "vocabulary"} == ENTRIES


def test_a_module_to_run_cannot_be_imported():
    status, _, errors = ended("-c", "import distil_ray.train")
    assert status == 1
    assert errors.splitlines()[-1].startswith("ImportError: distil_ray.train is a command, to be run: `distil-ray tra")


def test_processes_that_a_command_spawns_may_import_its_module():
    """As multiprocessing does, for what is in `__main__`."""
    script = "import runpy; runpy.run_module('distil_ray.train', run_name='__mp_main__', alter_sys=True)"
    assert ended("-c", script) == (0, "", "")
