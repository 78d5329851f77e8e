"""Distil masked language models on a Ray cluster, the DistilBERT way."""

import os

from distil_ray.api import Trained, Tuned, evaluate, train, tune
from distil_ray.errors import InputError, RunError, Stopped

__all__ = ["InputError", "RunError", "Stopped", "Trained", "Tuned", "__version__", "evaluate", "train", "tune"]

__version__ = "0.2.0"

# Read when Ray is imported. On a node of few cores Ray counts our tasks that take no slot as too many processes.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
