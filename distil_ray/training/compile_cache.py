"""What `torch.compile` has made, in the run's folder: a restart, on other nodes perhaps, need not compile again."""

from contextlib import suppress

import torch

from distil_ray.errors import InputError, OutageError
from distil_ray.runs.storage import COMPILED_FILE, RunFolder


class CompileCache:
    """The file of one run. What is in it counts only for the same code, PyTorch and hardware; PyTorch sees to that."""

    def __init__(self, folder: RunFolder, *, is_active: bool, is_main: bool) -> None:
        """``is_active``: whether anything is compiled; ``is_main``: whether this worker writes the file."""
        self._folder = folder
        self._is_active = is_active
        self._is_due = is_active and is_main

    def load(self) -> None:
        """Take what an earlier start has compiled. Without it, or if it does not fit, everything is compiled again."""
        with suppress(Exception):  # of any kind, as of a damaged file
            if self._is_active and self._folder.exists(COMPILED_FILE):
                torch.compiler.load_cache_artifacts(self._folder.read_bytes(COMPILED_FILE))

    def save(self) -> None:
        """Keep what has been compiled; to be called after a step, does so after the first one."""
        if not self._is_due:
            return
        self._is_due = False
        artifacts = torch.compiler.save_cache_artifacts()
        if artifacts is not None:
            with suppress(InputError, OutageError):
                self._folder.write_bytes(COMPILED_FILE, artifacts[0])
