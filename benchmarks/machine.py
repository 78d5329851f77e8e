"""What a benchmark ran on."""

import datetime
import os
import platform
from types import ModuleType
from typing import Any


def environment(*packages: ModuleType) -> dict[str, Any]:
    """Date, processor, cores, load and versions, for the record of a benchmark."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "num_cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in packages},
    }


def cpu_model() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
