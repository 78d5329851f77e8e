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

_OBJECT_STORES = {"s3", "gs"}


class RunFolder:
    """Files below one folder, named by relative paths. Opened anew in every process that needs it."""

    def __init__(self, storage_path: str, name: str) -> None:
        try:
            self.filesystem, root = fsspec.core.url_to_fs(storage_path, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(f"run.storage_path: cannot open {storage_path!r}: {error}") from error
        protocol = self.filesystem.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.storage_path = root.rstrip("/")
        self.path = f"{self.storage_path}/{name}"

    @classmethod
    def at(cls, path: str) -> "RunFolder":
        """The folder at a path or URL, ``<storage_path>/<name>``."""
        storage_path, _, name = path.rstrip("/").rpartition("/")
        return cls(storage_path or ".", name)

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
        """Whether the file or folder is there.

        Raises:
            InputError: that cannot be found out. (fsspec's own `exists` would answer no.)
        """
        try:
            self.filesystem.info(self.join(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except Exception as error:  # fsspec implementations raise errors of their own
            raise InputError(f"run.storage_path: cannot read {self.path}: {error}") from error
        return True

    def names(self) -> list[str]:
        """Names of all files and folders directly in the folder, sorted."""
        self.filesystem.invalidate_cache()
        try:
            return sorted(Path(entry).name for entry in self.filesystem.ls(self.path, detail=False))
        except FileNotFoundError:
            return []

    def read_bytes(self, name: str) -> bytes:
        """Whole content of a file."""
        content: bytes = self.filesystem.cat_file(self.join(name))
        return content

    def read_json(self, name: str) -> Any:
        """Parsed content of a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_text(self, name: str, text: str) -> None:
        """Write a small file; a reader sees the old or the new content, never a part."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Like `write_text`."""
        self._make_parents(self.join(name))
        if self.is_local:
            replace_file(Path(self.join(name)), content)
        else:
            self.filesystem.pipe_file(self.join(name), content)

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder if it is there."""
        if self.exists(name):
            self.filesystem.rm(self.join(name), recursive=True)

    @contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """Give a local folder to write to, whose files are at ``name`` when the block ends.

        If the block raises, what it wrote is gone: on a full disk that leaves room for another attempt.
        """
        self.remove(name)
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="distil_ray_") as temporary:
                yield Path(temporary)
                self.upload(Path(temporary), name)
            return
        local = Path(self.join(name))
        try:
            local.mkdir(parents=True)
            yield local
            for file in _files_below(local):
                _flush_to_disk(file)
        except BaseException:
            shutil.rmtree(local, ignore_errors=True)
            raise

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """Give a local folder to read that holds the files at ``name``; a copy if they lie elsewhere."""
        if self.is_local:
            yield Path(self.join(name))
            return
        with tempfile.TemporaryDirectory(prefix="distil_ray_") as temporary:
            self.filesystem.get(self.join(name) + "/", temporary, recursive=True)
            yield Path(temporary)

    def upload(self, local: Path, name: str) -> None:
        """Copy all files below a local folder to ``name``."""
        for file in _files_below(local):
            target = self.join(f"{name}/{file.relative_to(local).as_posix()}")
            self._make_parents(target)
            self.filesystem.put_file(str(file), target)

    def _make_parents(self, path: str) -> None:
        """Object stores have no folders, and asked for one they would create a bucket that is missing."""
        if _OBJECT_STORES.isdisjoint(self._protocols):
            self.filesystem.makedirs(os.path.dirname(path), exist_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a local file; whoever reads it, even after a power cut, sees the old or the new content."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    _flush_to_disk(temporary)
    temporary.replace(path)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
