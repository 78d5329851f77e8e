"""Imports point one way, and Ray stays in the few modules that are its shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from distil_ray.commands import COMMANDS

PACKAGE = Path(__file__).parents[1] / "distil_ray"

# Each layer imports its own and those below. The last is also that of the modules that are named nowhere here.
LAYERS = (
    "errors outages shipped",
    "reporting",
    "data",
    "models",
    "distillation",
    "runs",
    "training",
    "evaluation",
    "studies",
    "api",
    "commands",
)

# For `python -m` alone: an import of them fails, so that a function of the same name stays in the package.
ENTRIES = {name for name in COMMANDS if (PACKAGE / f"{name}.py").exists()}

# Ray's parts, and the only modules that may import them.
HOME_OF = {
    "ray.data": {"data.pipeline"},
    "ray.train": {"runs.ray_internals", "training.launcher", "training.ray_train"},
    "ray.tune": {"studies.objective", "studies.tuner"},
}
# These import nothing of Ray at all, but for data.pipeline.
PLAIN = ("errors", "outages", "shipped", "config", "reporting", "data", "models", "distillation")
# Of the training, these alone know Ray: the loop and what it uses run without.
TRAINING_WITH_RAY = {"training.checkup", "training.launcher", "training.ray_train"}
# What Ray marks as private, by an underscore; each needs a test that fails when Ray changes it.
WITH_PRIVATE_RAY = {"data.pipeline", "runs.ray_internals"}


def layer_of(module: str) -> int:
    folder = module.partition(".")[0]
    if folder in ("config", "__version__"):
        return 0
    return next((rank for rank, names in enumerate(LAYERS) if folder in names.split()), LAYERS.index("commands"))


def imports(module: str, source: str) -> Iterator[str]:
    """Yield the absolute name of everything that the module imports or reaches as `ray.<part>`."""
    package = ["distil_ray", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ray":
            yield f"ray.{node.attr}"


def violations(module: str, source: str) -> list[str]:
    """Return what the module (its name within the package) imports against the rules."""
    found = []
    folder = module.partition(".")[0]
    is_pipeline = module == "data.pipeline"
    for name in imports(module, source):
        parts = name.split(".")
        own = ".".join(parts[1:])
        if parts[0] == "distil_ray" and own:
            takes_plain_arguments = folder in ("data", "models", "distillation") and not is_pipeline
            if parts[1] in ENTRIES:
                found.append(f"{module} imports {own}, which is to be run")
            elif layer_of(own) > layer_of(module) or (
                parts[1] == "config" and takes_plain_arguments and own != "config.Source"
            ):
                found.append(f"{module} imports {own}")
        elif parts[0] == "ray":
            needs_none = folder == "training" and module not in TRAINING_WITH_RAY
            if (folder in PLAIN and not is_pipeline) or needs_none:
                found.append(f"{module} imports {name}")
            if any(part.startswith("_") for part in parts) and module not in WITH_PRIVATE_RAY:
                found.append(f"{module} imports the private {name}")
            found += [
                f"{module} imports {name}"
                for part, homes in HOME_OF.items()
                if f"{name}.".startswith(f"{part}.") and module not in homes
            ]
    return list(dict.fromkeys(found))


MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_rules(module):
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_modules_are_found():
    assert {"config", "errors", "data.hashing"} <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.corpus", "from distil_ray.distillation import losses"),
        ("data.corpus", "from distil_ray.config import Config"),
        ("data.corpus", "from distil_ray import config"),
        ("data.corpus", "from ..config import Config"),
        ("data.corpus", "from .. import training"),
        ("data.corpus", "def f():\n    import distil_ray.training.loop"),
        ("data.corpus", "import ray"),
        ("data.corpus", "from ray.util import get_node_ip_address"),
        ("data.pipeline", "from ray import train"),
        ("distillation.losses", "from distil_ray.config import Distill"),
        ("distillation.losses", "from distil_ray.training.learner import build"),
        ("distillation.losses", "import ray"),
        ("training.learner", "import ray.train"),
        ("training.learner", "import ray\nray.train.report({})"),
        ("data.corpus", "from distil_ray.models import loading"),
        ("runs.storage", "from distil_ray.training import launcher"),
        ("training.loop", "from distil_ray.commands.train import main"),
        ("commands.quickstart", "from distil_ray import train"),
        ("api", "from distil_ray.commands.evaluate import make_parser"),
        ("training.loop", "import ray.data"),
        ("training.loop", "import ray"),
        ("training.world", "from ray.train import get_context"),
        ("runs.cluster", "from ray._raylet import GcsClient"),
        ("runs.cluster", "def f():\n    from ray._private.worker import get_dashboard_url"),
        ("training.launcher", "from ray.tune import Tuner"),
        ("commands.train", "from ray.train.torch import TorchTrainer"),
        ("evaluation.guesses", "from distil_ray.commands.tune import main"),
        ("evaluation.speed", "from distil_ray.studies.trials import best"),
        ("reporting.report", "from distil_ray.data import corpus"),
        ("commands.tune", "from ray.tune import Tuner"),
        ("config", "from distil_ray.data.corpus import Source"),
        ("errors", "from distil_ray.data.hashing import mix"),
    ],
)
def test_a_violation_is_seen(module, source):
    assert violations(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "data.pipeline",
            "import ray.data\nfrom distil_ray.config import Data\nfrom distil_ray.data.corpus import x",
        ),
        ("data.sources", "from distil_ray.config import Source"),
        ("data.corpus", "import pyarrow\nfrom distil_ray.errors import InputError\nfrom . import hashing"),
        (
            "distillation.distiller",
            "import torch\nfrom distil_ray import __version__\nfrom distil_ray.data import batch",
        ),
        (
            "training.ray_train",
            "import ray.train\nfrom distil_ray.config import Config\nfrom distil_ray.training import loop",
        ),
        (
            "studies.tuner",
            "from ray.tune.integration import ray_train\nfrom distil_ray.training import launcher",
        ),
        (
            "commands.train",
            "import ray\nfrom distil_ray import __version__\nfrom distil_ray.evaluation.export import export",
        ),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(module, source) == []
