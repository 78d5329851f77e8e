"""Whole runs for tests: launching them, waiting for them, and reading what they left behind."""

import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from distil_ray.config import parse_config
from distil_ray.runs.console import Console
from distil_ray.training.launcher import launch


def own_ray() -> dict[str, str]:
    """An environment in which a command starts a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def changed(settings: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A copy with dotted keys set, dots written as two underscores."""
    settings = copy.deepcopy(settings)
    for key, value in values.items():
        section, _, name = key.partition("__")
        settings.setdefault(section, {})[name] = value
    return settings


def run(settings: dict[str, Any], **values: Any) -> Path:
    """Launch a run in this process and return its folder."""
    config = parse_config(changed(settings, **values))
    launch(config, Console())
    return Path(config.run.storage_path) / config.run.name


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> np.ndarray:
    return np.array([record["train/loss"] for record in records(folder) if "train/loss" in record])


def digests(folder: Path) -> str:
    return (folder / "digests.csv").read_text()


def digest_column(folder: Path) -> list[str]:
    return [line.split(",")[1] for line in digests(folder).splitlines()[1:]]


def weights(folder: Path) -> bytes:
    return (folder / "export" / "model.safetensors").read_bytes()


def command(settings: dict[str, Any], folder: Path, address: str | None) -> tuple[list[str], dict[str, str]]:
    """The command line of a run and its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ} | ({"RAY_ADDRESS": address} if address else {})
    return [sys.executable, "-m", "distil_ray.train", "--config", str(folder / "config.yaml")], environment


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the test's own time limit: how long something takes says more of the machine than of the code.

    Asking takes a tenth of a core at most: what is waited for needs it more.
    """
    while True:
        began = time.monotonic()
        if condition():
            return
        time.sleep(max(0.02, 9 * (time.monotonic() - began)))


def has_got_to(folder: Path, step: int) -> bool:
    """Whether a checkpoint of that step or a later one is committed."""
    return any(int(path.parent.name[-9:]) >= step for path in folder.glob("checkpoint_*/complete.json"))


def train_workers(pid: int | None = None) -> list[psutil.Process]:
    """The training workers of the Ray that this process (or another one) has started, and of no other Ray."""
    try:
        return [p for p in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in _title(p)]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""
