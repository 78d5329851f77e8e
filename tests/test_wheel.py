"""The wheel works without the repository: its command, its recipes and the quickstart, from an empty folder."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import assert_readable
from runs import own_ray, records, wait_for

from distil_ray import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
BUILT_FROM = ("distil_ray", "configs", "pyproject.toml", "README.md", "LICENSE")
RUNS = ("quickstart", "quickstart-mlm-only", "quickstart-from-scratch")
SHORTER = [
    *("optim.num_steps=12", "optim.global_batch_size=8", "eval.num_rows=16", "eval.every_steps=6"),
    *("checkpoint.every_steps=2", "metrics.every_steps=1"),
    *("runtime.num_workers=1", "runtime.micro_batch_size=4", "runtime.precision=fp32"),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but what `pip install` puts there."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    for name in BUILT_FROM:  # a copy, as building leaves files behind
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    pip = [sys.executable, "-m", "pip"]
    offline = ["--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", target, wheel], check=True)
    return target


@pytest.fixture
def start(installed, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the installed command in an empty folder; its processes, of Ray, too, find no repository either."""
    environment = own_ray()
    environment["PYTHONPATH"] = str(installed)

    def run(*arguments: str, program: str = "bin/distil-ray") -> subprocess.Popen[str]:
        command = [sys.executable, *([str(installed / program)] if program else []), *arguments]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)

    return run


def test_command_and_recipes(start, installed):
    assert start("--version").communicate()[0] == f"distil-ray {__version__}\n"
    assert start("--help").communicate()[0].startswith("usage: distil-ray ")
    printed, errors = start("train", "--config", "quickstart", "--print-config").communicate()
    assert f"path: {installed}/distil_ray/quickstart/teacher\n" in printed, errors
    for recipe in (ROOT / "configs").glob("*.yaml"):
        assert (installed / "distil_ray" / "configs" / recipe.name).read_bytes() == recipe.read_bytes()


def test_nothing_is_taken_from_the_repository(start, installed):
    script = "import distil_ray, distil_ray.reporting as r; print(distil_ray.__file__, r.__file__)"
    found = start("-c", script, program="").communicate()[0].split()
    assert found == [f"{installed}/distil_ray/__init__.py", f"{installed}/distil_ray/reporting/__init__.py"]


def test_the_quickstart_interrupted_and_typed_again(start, tmp_path):
    runs = tmp_path / "runs"
    first = start("quickstart", *SHORTER)
    wait_for(lambda: any(runs.glob("quickstart/checkpoint_*/complete.json")) or first.poll() is not None)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    _, errors = first.communicate()

    assert first.returncode == 130
    assert re.search(r"stopped: step \d+ is saved; the same command resumes from checkpoint_\d+ \(SIGINT\)", errors)
    assert "Traceback" not in errors
    assert not (runs / "quickstart" / "finished.json").exists()

    again = start("quickstart", *SHORTER)
    output, errors = again.communicate()

    assert again.returncode == 0, errors
    assert "Traceback" not in errors
    assert "resuming from checkpoint_" in output
    assert "All runs trained on the same batches in the same order: 12 steps of equal digests." in output
    assert len({(runs / name / "digests.csv").read_text() for name in RUNS}) == 1
    assert [records(runs / name)[0]["eval/mlm_loss"] for name in RUNS[:2]] == pytest.approx(
        [records(runs / RUNS[0])[0]["eval/mlm_loss"]] * 2
    )
    # The teacher is as good as its card says, within what 304 masked pieces of these packages can tell.
    assert records(runs / "quickstart")[0]["eval/teacher_mlm_accuracy"] > 0.4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert (runs / "quickstart" / "export" / "model.safetensors").exists()
    assert str(ROOT) not in (runs / "quickstart" / "config.yaml").read_text()

    third = start("quickstart", *SHORTER)
    assert third.communicate()[0].count("is finished: the student is in") == 3
    page = (runs / "quickstart" / "report.html").read_text()
    for name in RUNS:
        assert f"<td>{name}<br>" in page
    assert "student.init" in page
    assert_readable(page, tmp_path, num_charts=page.count("<svg"))
