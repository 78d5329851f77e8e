"""The functions for Python: what they take, return and raise, and how they leave the caller's process.

A search is in studies/test_tune.py.
"""

import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_settings
from runs import changed, own_ray, records

import distil_ray

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_importing_the_package_loads_nothing_heavy():
    script = (
        "import sys, distil_ray\n"
        "loaded = {'torch', 'ray', 'transformers', 'pydantic', 'numpy', 'yaml'} & sys.modules.keys()\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["train", "tune", "evaluate"])
def test_a_command_of_the_same_name_never_takes_a_functions_place(name):
    function = getattr(distil_ray, name)
    with pytest.raises(ImportError, match=f"distil_ray.{name} is a command, to be run"):
        __import__(f"distil_ray.{name}")
    assert getattr(distil_ray, name) is function
    assert inspect.isfunction(function)
    assert inspect.getdoc(function)
    assert pickle.loads(pickle.dumps(function)) is function


def test_mistakes_are_input_errors(tmp_path):
    with pytest.raises(distil_ray.InputError, match=r"did you mean optim\.num_steps\?"):
        distil_ray.train("quickstart", {"optim.num_step": 3})
    with pytest.raises(distil_ray.InputError, match="no such recipe"):
        distil_ray.tune("tune-gpu")
    with pytest.raises(distil_ray.InputError, match=r"^students: two models would be called a; name them"):
        distil_ray.evaluate("org/teacher", ["x/a", "y/a"], output=tmp_path / "out")
    with pytest.raises(distil_ray.InputError, match=r"^seeds: given 0, expected at least 1"):
        distil_ray.evaluate("org/teacher", {"a": "x/a"}, output=tmp_path / "out", seeds=0)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def settings(corpus, tokenizer_folder, tmp_path):
    return changed(tiny_settings(corpus, tokenizer_folder, tmp_path / "runs"), runtime__num_workers=1)


def of_ray(environment):
    return {name: value for name, value in environment.items() if name.startswith(("RAY_", "TUNE_"))}


def test_on_a_ray_of_the_caller(settings, corpus, ray_cluster, tmp_path):
    import ray

    before = [signal.getsignal(number) for number in SIGNALS]
    environment = of_ray(os.environ)

    trained = distil_ray.train(settings, {"run.name": "named", "optim.num_steps": 8})

    assert Path(trained.folder) == tmp_path / "runs" / "named"
    assert (Path(trained.export) / "model.safetensors").exists()
    assert trained.figures["step"] == 8
    last = next(record for record in reversed(records(Path(trained.folder))) if "eval/mlm_loss" in record)
    assert trained.figures["eval/mlm_loss"] == last["eval/mlm_loss"]
    assert distil_ray.train(settings, {"run.name": "named", "optim.num_steps": 8}) == trained  # not repeated

    board = distil_ray.evaluate(
        trained.export,
        {"same": trained.export},
        output=tmp_path / "evaluation",
        text=[{"path": corpus}],
        protocol={"text": {"num_rows": 16, "max_seq_length": 32, "pseudo_perplexity_rows": 0}},
    )

    assert [result.name for result in board.results] == ["teacher", "same"]
    assert board.results[1].text.teacher_agreement == 1
    assert (tmp_path / "evaluation" / "report.html").exists()
    assert ray.is_initialized()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert of_ray(os.environ) == environment


INTERRUPTED = """
import json, os, signal, sys, threading, time
from pathlib import Path
import distil_ray

settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
before = [signal.getsignal(number) for number in numbers]
os.environ.pop("MALLOC_ARENA_MAX", None)  # of the tests' process

def interrupt():
    while not list(folder.glob("checkpoint_*/complete.json")):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    distil_ray.train(settings)
except KeyboardInterrupt as error:
    print("interrupted:", error)
for attempt in range(2):
    import ray
    assert not ray.is_initialized()
    assert [signal.getsignal(number) for number in numbers] == before
    print("done:", distil_ray.train(settings).figures["step"])
assert not ray.is_initialized()
assert "MALLOC_ARENA_MAX" not in os.environ
"""


@pytest.mark.slow
def test_an_interrupted_call_resumes_in_the_same_process(settings, tmp_path):
    """As in a notebook, without a Ray of its own."""
    settings = changed(settings, optim__num_steps=80, eval__every_steps=80)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, json.dumps(settings), str(tmp_path / "runs" / "run")],
        env=own_ray(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "interrupted: stopped: step " in done.stdout
    assert "resuming from checkpoint_" in done.stdout
    assert done.stdout.count("done: 80\n") == 2
