"""What one node sees of itself, of the storage, the models and the text. Runs on every node of the cluster."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from distil_ray.config import Config
from distil_ray.data.plan import DataPlan
from distil_ray.data.tally import text_warnings
from distil_ray.errors import InputError, reason_of
from distil_ray.training.assembly import build_models, build_tokenizer
from distil_ray.training.storage import RunFolder

PACKAGES = ("distil-ray", "ray", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "safetensors")


@dataclass(frozen=True)
class NodeFacts:
    """What a node found out.

    Attributes:
        versions: of Python and of the packages that have to be equal; "not installed" where one is missing.
        gpu_names: of all GPUs that torch sees.
        shared_memory_bytes: size of /dev/shm; None where there is none.
        errors: by what was tried (storage, models, text): why it did not work, empty if it did.
        text_warnings: what the person who gave the text should look at.
    """

    versions: dict[str, str]
    gpu_names: list[str]
    shared_memory_bytes: int | None
    errors: dict[str, str] = field(default_factory=dict)
    text_warnings: list[str] = field(default_factory=list)


def probe(config: Config, plan: DataPlan | None, mark: str, node: str, *, has_data_tasks: bool) -> NodeFacts:
    """Look around on this node.

    Args:
        plan: of the data; None leaves the text out.
        mark: folder in the run's storage path, the same for all nodes, where each leaves a file.
        node: name of that file.
        has_data_tasks: whether text will be read here.
    """
    warnings: list[str] = []
    errors = {
        "storage": _error(lambda: RunFolder(config.run.storage_path, mark).write_text(node, node)),
        "models": _error(lambda: build_models(config, build_tokenizer(config))),
    }
    if has_data_tasks and plan is not None:
        errors["text"] = _error(lambda: warnings.extend(_look_at_text(config, plan)))
    return NodeFacts(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        gpu_names=_gpu_names(),
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        errors=errors,
        text_warnings=warnings,
    )


def _error(attempt: Callable[[], object]) -> str:
    """Why something does not work; empty if it does."""
    try:
        attempt()
    except InputError as error:
        return str(error)
    except Exception as error:  # whatever it is, it is the answer
        return f"{type(error).__name__}: {reason_of(error)}"
    return ""


def _look_at_text(config: Config, plan: DataPlan) -> list[str]:
    """Make rows of a little text, and return what is worth a warning."""
    tally = plan.glance()
    limit = config.data.warn_skipped_fraction
    return text_warnings(tally.counts(), tally.first_places, max_lost_fraction=limit)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu_names() -> list[str]:
    """Asked in a process of its own: Ray hides the GPUs from a task that has not asked for one."""
    script = "import torch\nfor i in range(torch.cuda.device_count()): print(torch.cuda.get_device_name(i))"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    return result.stdout.splitlines()
