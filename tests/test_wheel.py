"""The wheel works without the repository: its command, its recipes and the quickstart, from an empty folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distil_ray import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
BUILT_FROM = ("distil_ray", "configs", "pyproject.toml", "README.md", "LICENSE")
SHORTER = [
    *("optim.num_steps=2", "optim.global_batch_size=8", "eval.num_rows=8", "eval.every_steps=2"),
    *("runtime.num_workers=1", "runtime.micro_batch_size=8", "runtime.precision=fp32"),
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
def called(installed, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the installed command in an empty folder, on a Ray of its own, whose processes find no repository either."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(installed)

    def run(*arguments: str, program: str = "bin/distil-ray") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *([str(installed / program)] if program else []), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_command_and_recipes(called, installed):
    assert called("--version").stdout == f"distil-ray {__version__}\n"
    assert called("--help").stdout.startswith("usage: distil-ray ")
    printed = called("train", "--config", "quickstart", "--print-config")
    assert printed.returncode == 0, printed.stderr
    assert f"path: {installed}/distil_ray/quickstart/teacher\n" in printed.stdout
    for recipe in (ROOT / "configs").glob("*.yaml"):
        assert (installed / "distil_ray" / "configs" / recipe.name).read_bytes() == recipe.read_bytes()


def test_nothing_is_taken_from_the_repository(called, installed):
    script = "import distil_ray, distil_ray.reporting as r; print(distil_ray.__file__, r.__file__)"
    found = called("-c", script, program="").stdout.split()
    assert found == [f"{installed}/distil_ray/__init__.py", f"{installed}/distil_ray/reporting/__init__.py"]


def test_the_quickstart(called, tmp_path):
    made = called("quickstart", *SHORTER)

    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert (tmp_path / "runs" / "quickstart" / "export" / "model.safetensors").exists()
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()
    assert str(ROOT) not in (tmp_path / "runs" / "quickstart" / "config.yaml").read_text()
    again = called("quickstart", *SHORTER)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished: the student is in") == 3
