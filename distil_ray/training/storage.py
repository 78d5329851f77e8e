"""A run's folder ``<storage_path>/<name>/``, on a local disk or any file system that fsspec reaches."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from distil_ray.errors import InputError


class RunFolder:
    """Files below one folder, named by relative paths. Opened anew in every process that needs it."""

    def __init__(self, storage_path: str, name: str) -> None:
        try:
            self.filesystem, root = fsspec.core.url_to_fs(storage_path, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(f"run.storage_path: cannot open {storage_path!r}: {error}") from error
        self.storage_path = root.rstrip("/")
        self.path = f"{self.storage_path}/{name}"

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's file system."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def arrow_filesystem(self) -> FileSystem:
        """The same file system as Ray wants it."""
        return PyFileSystem(FSSpecHandler(self.filesystem))

    def join(self, name: str) -> str:
        """Full path of a file in the folder."""
        return f"{self.path}/{name}"

    def check_writable(self) -> None:
        """Create the folder and write to it once.

        Raises:
            InputError: that does not work.
        """
        try:
            self.write_text(".writable", "")
            self.remove(".writable")
        except Exception as error:  # fsspec implementations raise errors of their own
            raise InputError(
                f"run.storage_path: cannot write to {self.path}: {error}; "
                "give a path that this machine and every worker may write to"
            ) from error

    def exists(self, name: str) -> bool:
        """Whether the file or folder is there."""
        return bool(self.filesystem.exists(self.join(name)))

    def names(self) -> list[str]:
        """Names of all files and folders directly in the folder, sorted."""
        if not self.filesystem.exists(self.path):
            return []
        self.filesystem.invalidate_cache()
        return sorted(Path(entry).name for entry in self.filesystem.ls(self.path, detail=False))

    def read_bytes(self, name: str) -> bytes:
        """Whole content of a file."""
        content: bytes = self.filesystem.cat_file(self.join(name))
        return content

    def read_json(self, name: str) -> Any:
        """Parsed content of a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_text(self, name: str, text: str) -> None:
        """Write a small file; a reader sees the old or the new content, never a part."""
        self.filesystem.makedirs(os.path.dirname(self.join(name)), exist_ok=True)
        if not self.is_local:
            self.filesystem.pipe_file(self.join(name), text.encode())
            return
        temporary = f"{self.join(name)}.tmp"
        Path(temporary).write_text(text)
        os.replace(temporary, self.join(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder if it is there."""
        if self.exists(name):
            self.filesystem.rm(self.join(name), recursive=True)

    @contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """Give a local folder to write to, whose files are at ``name`` when the block ends."""
        self.remove(name)
        if self.is_local:
            Path(self.join(name)).mkdir(parents=True)
            yield Path(self.join(name))
            return
        temporary = Path(tempfile.mkdtemp(prefix="distil_ray_"))
        try:
            yield temporary
            self.upload(temporary, name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def upload(self, local: Path, name: str) -> None:
        """Copy all files below a local folder to ``name``."""
        for file in sorted(path for path in local.rglob("*") if path.is_file()):
            target = self.join(f"{name}/{file.relative_to(local).as_posix()}")
            self.filesystem.makedirs(os.path.dirname(target), exist_ok=True)
            self.filesystem.put_file(str(file), target)
