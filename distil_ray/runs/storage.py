"""A run's folder ``<storage_path>/<name>/``, on a local disk or any file system that fsspec reaches.

On a remote file system every operation waits out passing outages. What ends that waiting is an `OutageError`; what does
not pass, such as wrong credentials or a full disk, is an `InputError` at once.
"""

import copy
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.outages import AT_START, Patience

Result = TypeVar("Result")

# What is in the folder of a run, beside its checkpoints (`training/checkpoint.py`).
CONFIG_FILE = "config.yaml"  # all settings, as `--config` reads them
IDENTITY_FILE = "identity.json"  # what was learned from what: it decides whether a run may be resumed
METRICS_FILE = "metrics.jsonl"  # a record per line
DIGESTS_FILE = "digests.csv"  # what each step was trained on
RESTARTS_FILE = "restarts.jsonl"  # when the run was resumed, from where
TENSORBOARD_FOLDER = "tensorboard"
TRACKERS_FOLDER = "trackers"  # per tracker, the id of the run there and the last step it has
NONFINITE_FILE = "nonfinite.json"  # the rows on which a run diverged
COMPILED_FILE = "compiled.bin"  # what torch.compile has made
FINISHED_FILE = "finished.json"  # the last figures; written last
EXPORT_FOLDER = "export"  # the student, as `from_pretrained` loads it

TEMPORARY = ".tmp"
"""The suffix of files that are being written, or were when a process was killed."""
_OBJECT_STORES = {"s3", "gs"}
_CHECKED_BYTES = 1 << 20  # the least room that a run needs: a disk with less is full
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Answers to a caller's question rather than faults of the storage.
_ANSWERS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class RunFolder:
    """Files below one folder, named by relative paths. Opened again in every process that needs it."""

    def __init__(self, storage_path: str, name: str, *, patience: Patience = AT_START) -> None:
        """``patience``: how long operations on a remote file system wait out outages."""
        try:
            self.filesystem, root = fsspec.core.url_to_fs(storage_path, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(f"run.storage_path: cannot open {storage_path!r}: {error}") from error
        protocol = self.filesystem.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.patience = patience
        self._before_writing: Callable[[], None] | None = None
        self.storage_path = root.rstrip("/")
        self.path = f"{self.storage_path}/{name}"

    @classmethod
    def at(cls, path: str) -> Self:
        """The folder at a path or URL, ``<storage_path>/<name>``."""
        storage_path, _, name = path.rstrip("/").rpartition("/")
        return cls(storage_path or ".", name)

    def guarded(self, before_writing: Callable[[], None]) -> Self:
        """The same folder, where ``before_writing`` is called before each change and may raise to refuse it."""
        guarded = copy.copy(self)
        guarded._before_writing = before_writing
        return guarded

    def patient(self, patience: Patience) -> Self:
        """The same folder, with another patience."""
        patient = copy.copy(self)
        patient.patience = patience
        return patient

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's file system."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def arrow_filesystem(self) -> FileSystem:
        """The same file system as Ray wants it, for small files."""
        if self.is_local:
            return PyFileSystem(FSSpecHandler(self.filesystem))
        return PyFileSystem(_PatientHandler(self.filesystem, self.patience))

    def join(self, name: str) -> str:
        """Full path of a file in the folder."""
        return f"{self.path}/{name}"

    def check_writable(self) -> None:
        """Create the folder and write 1 MiB to it once.

        Raises:
            InputError: that does not work, as on a full disk.
            OutageError: a remote storage did not answer.
        """
        name = f".writable-{uuid4().hex}"  # of its own: two commands may look at the same time
        self._ask_before_writing()
        try:
            self._attempt(lambda: self._write(name, bytes(_CHECKED_BYTES)))
            self.remove(name)
        except OutageError:
            raise
        except Exception as error:  # fsspec implementations raise errors of their own
            self.remove_if_empty()
            if getattr(error, "errno", None) in _NO_ROOM:
                remedy = "free some space there, or give another path"
            else:
                remedy = "give a path that this machine and every worker may write to"
            raise InputError(f"run.storage_path: cannot write to {self.path}: {reason_of(error)}; {remedy}") from error

    def exists(self, name: str) -> bool:
        """Whether the file or folder is there.

        Raises:
            InputError: that cannot be found out. (fsspec's own `exists` would answer no.)
        """
        try:
            self._read(lambda: self.filesystem.info(self.join(name)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self) -> list[str]:
        """Names of all files and folders directly in the folder, sorted."""
        return sorted(self._entries(self.path))

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of all files directly in the folder ``name``, by file name; empty if it is no folder."""
        entries = self._entries(self.join(name))
        return {file: entry["size"] for file, entry in entries.items() if entry["type"] == "file"}

    def _entries(self, path: str) -> dict[str, dict[str, Any]]:
        """What fsspec says of each entry of a folder, by name."""
        self.filesystem.invalidate_cache()
        try:
            entries = self._read(lambda: self.filesystem.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        names = ((PurePosixPath(entry["name"]), entry) for entry in entries)
        # An object store may hold an empty object that stands for the folder itself.
        return {name.name: entry for name, entry in names if str(name) != path}

    def read_bytes(self, name: str) -> bytes:
        """Whole content of a file.

        Raises:
            FileNotFoundError: there is none.
            InputError: it cannot be read.
        """
        content: bytes = self._read(lambda: self.filesystem.cat_file(self.join(name)))
        return content

    def read_json(self, name: str, *keys: str) -> Any:
        """Parsed content of a JSON file.

        Raises:
            FileNotFoundError: there is none.
            InputError: it is damaged, or is no object that holds these ``keys``.
        """
        content = self.read_bytes(name)
        try:
            value = json.loads(content)
            complaint = ", ".join(key for key in keys if key not in value)
            complaint = complaint and f"it does not hold {complaint}"
        except (ValueError, TypeError) as error:
            complaint = f"it has {len(content):,} bytes, which are not the JSON expected ({error})"
        if complaint:
            raise InputError(f"{self.join(name)} is damaged: {complaint}; restore it, or remove it")
        return value

    def read_json_lines(self, name: str) -> tuple[list[dict[str, Any]], list[str]]:
        """The objects in the lines of a file, and a complaint for each line that is damaged and passed over.

        No file is one without lines. A last line that a crash has cut off is passed over without a complaint.
        """
        try:
            content = self.read_bytes(name)
        except FileNotFoundError:
            return [], []
        values, complaints = [], []
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                value = json.loads(line)
            except ValueError:  # UnicodeDecodeError is one, too
                value = None
            if isinstance(value, dict):
                values.append(value)
            else:
                complaints.append(f"{self.join(name)}: line {number:,} is damaged and is passed over")
        return values, complaints

    def write_text(self, name: str, text: str) -> None:
        """Write a small file; a reader sees the old or the new content, never a part."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Like `write_text`."""
        self._change(lambda: self._write(name, content))

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file unless there is one; return whether this call (or one like it before) has written it.

        Of several callers at most one succeeds on a local disk, on S3 and on GCS; elsewhere two may at the same moment,
        and the content then tells which one was the last.
        """

        def attempt() -> bool:
            path = self.join(name)
            self._make_parents(path)
            try:
                if self.is_local:
                    _create_file(Path(path), content)
                else:
                    self.filesystem.pipe_file(path, content, mode="create")
            except FileExistsError:  # by this very call, perhaps, whose first answer was lost
                return bool(self.filesystem.cat_file(path) == content)
            except OSError as error:  # S3's answer to one of two that write at the same moment
                if "ConditionalRequestConflict" in str(error):
                    return False
                raise
            return True

        return self._change(attempt)

    def age(self, name: str) -> float | None:
        """Seconds since a file was written by the storage's own clock, None if it has none.

        Raises:
            FileNotFoundError: there is no such file.
        """
        probe = f".clock-{uuid4().hex}"

        def attempt() -> float | None:
            self._write(probe, b"")
            try:
                now, then = (self.filesystem.modified(self.join(one)) for one in (probe, name))
            except NotImplementedError:
                return None
            return float((now - then).total_seconds())

        try:
            return self._change(attempt)
        finally:
            self.remove(probe)

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder if it is there."""

        def attempt() -> None:
            with suppress(FileNotFoundError, NotADirectoryError):  # another process may remove it at the same time
                self.filesystem.info(self.join(name))
                self.filesystem.rm(self.join(name), recursive=True)

        self._change(attempt)

    def remove_if_empty(self) -> None:
        """Remove the folder itself if it is empty; object stores have no such folders."""
        if self.is_local:
            with suppress(OSError):
                Path(self.path).rmdir()

    @contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """Give a local folder to write to, whose files are at ``name``, and on disk, when the block ends.

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
            _make_folder(local)
            yield local
            for path in local.rglob("*"):
                flush_to_disk(path)
            flush_to_disk(local)
        except BaseException:
            shutil.rmtree(local, ignore_errors=True)
            raise

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """Give a local folder to read that holds the files at ``name``; a copy if they are stored elsewhere."""
        if self.is_local:
            yield Path(self.join(name))
            return
        with tempfile.TemporaryDirectory(prefix="distil_ray_") as temporary:
            for path in self._read(lambda: self.filesystem.find(self.join(name))):
                target = Path(temporary) / PurePosixPath(path).relative_to(self.join(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                self._read(partial(self.filesystem.get_file, path, str(target)))
            yield Path(temporary)

    def upload(self, local: Path, name: str) -> None:
        """Copy all files below a local folder to ``name``."""

        def copy_file(file: Path) -> None:
            target = self.join(f"{name}/{file.relative_to(local).as_posix()}")
            self._make_parents(target)
            self.filesystem.put_file(str(file), target)

        for file in sorted(path for path in local.rglob("*") if path.is_file()):
            self._change(partial(copy_file, file))

    def _write(self, name: str, content: bytes) -> None:
        path = self.join(name)
        self._make_parents(path)
        if self.is_local:
            replace_file(Path(path), content)
        else:
            self.filesystem.pipe_file(path, content)

    def _make_parents(self, path: str) -> None:
        """Object stores have no folders, and asked for one they would create a bucket that is missing."""
        if self.is_local:
            _make_folder(Path(path).parent)
        elif _OBJECT_STORES.isdisjoint(self._protocols):
            self.filesystem.makedirs(os.path.dirname(path), exist_ok=True)

    def _read(self, attempt: Callable[[], Result]) -> Result:
        return self._named("read", lambda: self._attempt(attempt))

    def _change(self, attempt: Callable[[], Result]) -> Result:
        self._ask_before_writing()
        return self._named("write to", lambda: self._attempt(attempt))

    def _ask_before_writing(self) -> None:
        if self._before_writing is not None:
            self._before_writing()

    def _attempt(self, attempt: Callable[[], Result]) -> Result:
        return attempt() if self.is_local else self.patience.wait_out(self.path, attempt)

    def _named(self, verb: str, attempt: Callable[[], Result]) -> Result:
        """Turn an error of the storage into an `InputError`, except for answers such as a missing file."""
        try:
            return attempt()
        except (*_ANSWERS, OutageError):
            raise
        except Exception as error:  # fsspec implementations raise errors of their own
            raise InputError(f"run.storage_path: cannot {verb} {self.path}: {reason_of(error)}") from error


def _patiently(name: str) -> Callable[..., Any]:
    """The method of `FSSpecHandler` of that name, which waits out outages."""

    def method(self: "_PatientHandler", *arguments: Any) -> Any:
        return self.wait_out(lambda: getattr(FSSpecHandler, name)(self, *arguments))

    return method


class _PatientHandler(FSSpecHandler):  # type: ignore[misc]  # which has no types
    """What Ray reads and writes of its own, as whole files."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, patience: Patience) -> None:
        super().__init__(filesystem)
        self._patience = patience

    def wait_out(self, attempt: Callable[[], Result]) -> Result:
        return self._patience.wait_out("run.storage_path", attempt)

    get_file_info = _patiently("get_file_info")
    get_file_info_selector = _patiently("get_file_info_selector")
    create_dir = _patiently("create_dir")
    delete_dir = _patiently("delete_dir")
    delete_dir_contents = _patiently("delete_dir_contents")
    delete_file = _patiently("delete_file")
    copy_file = _patiently("copy_file")
    move = _patiently("move")

    def open_input_stream(self, path: str) -> PythonFile:
        return PythonFile(io.BytesIO(self.wait_out(lambda: self.fs.cat_file(path))), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        return PythonFile(_Upload(lambda content: self.wait_out(lambda: self.fs.pipe_file(path, content))), mode="w")


class _Upload(io.BytesIO):
    """A file that is passed on as a whole when it is closed."""

    def __init__(self, pass_on: Callable[[bytes], object]) -> None:
        super().__init__()
        self._pass_on = pass_on

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._pass_on(content)


def replace_file(path: Path, content: bytes) -> None:
    """Write a local file; a reader, even after a power cut, sees the old or the new content."""
    with _written(path, content) as temporary:
        temporary.replace(path)
    flush_to_disk(path.parent)


def _create_file(path: Path, content: bytes) -> None:
    """Like `replace_file`, but only where there is no file.

    Raises:
        FileExistsError: there is one.
    """
    with _written(path, content) as temporary:
        try:
            os.link(temporary, path)  # unlike an exclusive open, it never shows a reader an empty file
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with path.open("xb") as file:
                file.write(content)
            flush_to_disk(path)
    flush_to_disk(path.parent)


@contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """Write a temporary file beside ``path`` to disk; afterwards it is gone.

    No other process has its name, so one that wakes up in the middle of a write cannot remove its successor's file.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}{TEMPORARY}")
    try:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:  # another command, which ended just now, has removed the folder that it had emptied
            _make_folder(path.parent)
            temporary.write_bytes(content)
        flush_to_disk(temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, so that they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with suppress(PermissionError):  # another user's folder, in which ours may be made but which may not be read
            flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Make sure that the content of a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do so for folders
            raise
    finally:
        os.close(descriptor)
