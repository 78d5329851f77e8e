"""Data files wherever they lie: their formats by suffix, their file systems, and their bytes.

Every file system goes through fsspec: local paths, `s3://`, `gs://` and `hf://` alike.
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from distil_ray.data.hub import HubFile, HubPath, advice_on
from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.outages import Patience

Format = Literal["parquet", "arrow", "jsonl", "text"]
Compression = Literal["gzip", "zstd"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
SUPPORTED = f"{', '.join(_FORMATS)}; text and JSON lines also with {' or '.join(_COMPRESSIONS)}"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
STREAM_BYTES = 4 * 2**20
"""Read at once from a Parquet column or a compressed file."""


class BadFileError(InputError):
    """A file whose bytes arrived but are not what they should be (not one that cannot be reached)."""


@dataclass(frozen=True)
class File:
    """A data file, and all that is needed to open it: nothing of it is asked for again.

    `name` is its path below its source, the same wherever the source lies.
    """

    name: str
    path: str  # a URL or an absolute local path
    format: Format
    compression: Compression | None
    column: str
    size_bytes: int
    num_rows: int | None = None  # Parquet only
    version: str = ""  # in its store: an ETag or the like; empty of local files
    footer_bytes: int = 0  # Parquet only


def file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL or local path, and the path inside it."""
    if "://" not in path:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    protocol = path.split("://", 1)[0]
    is_s3 = protocol in ("s3", "s3a")
    try:
        fs, inner = fsspec.core.url_to_fs(path, **(_few_attempts(protocol) if is_s3 else {}))
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'distil_ray[{extra}]'" if extra else str(error)
        raise InputError(f"{path}: {protocol}:// needs a package that is not installed: {remedy}") from error
    if is_s3:
        fs.retries = 1
    return fs, inner


def _few_attempts(protocol: str) -> dict[str, Any]:
    """Options by which botocore tries a request twice more: with those of s3fs it would be minutes without a word."""
    config = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 3}} | config}


def format_of(path: str, given: Format | None = None) -> tuple[Format, Compression | None] | None:
    """Return what a file is, by its suffixes or as `given`, and how it is compressed; None if that is not supported."""
    stem, suffix = os.path.splitext(path.lower())
    compression = _COMPRESSIONS.get(suffix)
    if compression is not None:
        suffix = os.path.splitext(stem)[1]
    file_format = given or _FORMATS.get(suffix)
    if file_format is None or (file_format in ("parquet", "arrow") and compression is not None):
        return None
    return file_format, compression


@contextmanager
def reaching(path: str) -> Iterator[None]:
    """Turn whatever keeps us from a file's bytes, but for an outage, into an InputError that names path and cause."""
    try:
        yield
    except (InputError, OutageError):
        raise
    except Exception as error:  # OSError, and each backend's own: botocore, google.auth, aiohttp, httpx
        advice = advice_on(error) if path.startswith("hf://") else ""
        raise InputError(f"{path}: cannot be reached: {type(error).__name__}: {reason_of(error)}{advice}") from error


class Opened(Protocol):
    """A file that can be read in ranges. ``version`` differs if its bytes do."""

    size: int
    version: str

    def read_range(self, start: int, stop: int) -> bytes: ...


class Listed(Protocol):
    """What a listing says of a file. What it does not know is None or empty."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int | None: ...
    @property
    def version(self) -> str: ...


class _LocalFile:
    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        status = os.fstat(self._descriptor)
        self.size, self.version = status.st_size, f"{status.st_ino}-{status.st_mtime_ns}"

    def read_range(self, start: int, stop: int) -> bytes:
        content = os.pread(self._descriptor, stop - start, start)
        if len(content) < stop - start:
            raise InputError(f"{self._path}: changed while in use: it has become shorter than {stop} bytes")
        return content

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class _StoredFile:
    """A file of an object store. What fsspec opens asks the store what it is, once, and reads no other version."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self._fs = fs  # kept, so that no other one takes its place in `_opened`
        self._file = fs.open(path, "rb", cache_type="none")
        self._lock = threading.Lock()
        details = getattr(self._file, "details", None)
        self.version = version_of(details) if isinstance(details, dict) else ""
        self.size = int(self._file.seek(0, os.SEEK_END))

    def read_range(self, start: int, stop: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return bytes(self._file.read(stop - start))


def version_of(entry: Mapping[str, Any]) -> str:
    """The ETag of an S3 listing, which some stores quote, or the generation of one of Google's."""
    return str(entry.get("ETag") or entry.get("generation") or "").strip('"')


_NUM_OPENED = 256
_opened: OrderedDict[tuple[int, str, str], _StoredFile] = OrderedDict()
_opened_lock = threading.Lock()


def _open(listed: Listed) -> Opened:
    hub_path = HubPath.parse(listed.path)
    if hub_path is not None and listed.size_bytes is not None:
        return HubFile(hub_path, listed.size_bytes, listed.version)
    fs, inner = file_system(listed.path)
    if isinstance(fs, LocalFileSystem):
        return _LocalFile(inner)
    key = id(fs), inner, listed.version
    with _opened_lock:
        kept = _opened.pop(key, None)
    file = kept or _StoredFile(fs, inner)
    with _opened_lock:
        _opened[key] = file
        if len(_opened) > _NUM_OPENED:
            _opened.popitem(last=False)
    return file


def forget(path: str) -> None:
    """Open a file of an object store anew the next time."""
    inner = path.partition("://")[2]
    with _opened_lock:
        for key in [key for key in _opened if inner and key[1].lstrip("/") == inner.lstrip("/")]:
            del _opened[key]


class ReachableFile(io.RawIOBase):
    """A file opened for reading in ranges of exactly what is asked for, whose every failure to deliver is no damage.

    Outages are waited out. Arrow hands exceptions of a Python file on unchanged, so whatever else it raises is the
    content's fault: a refused permission or a lost connection is never mistaken for a damaged file.

    Raises (like its methods):
        InputError: the file cannot be reached, or is another one than was listed.
        OutageError: its store did not answer in time.
    """

    def __init__(self, listed: Listed, patience: Patience) -> None:
        super().__init__()
        self.path, self._patience, self._position = listed.path, patience, 0
        with reaching(self.path):
            self._opened = patience.wait_out(self.path, lambda: _open(listed))
        self.size, self.version = self._opened.size, self._opened.version
        if listed.size_bytes is not None and self.size != listed.size_bytes:
            raise InputError(
                f"{self.path}: changed while in use: {listed.size_bytes} bytes when listed, {self.size} now"
            )
        if listed.version and self.version != listed.version:
            raise InputError(
                f"{self.path}: changed while in use: was {listed.version} when listed, is {self.version} now"
            )

    def close(self) -> None:
        super().close()
        self.__dict__.pop("_opened", None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        stop = self.size if size < 0 else min(self._position + size, self.size)
        if stop <= self._position:
            return b""
        with reaching(self.path):
            content = self._patience.wait_out(self.path, lambda: self._read_range(self._position, stop))
        self._position = stop
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _read_range(self, start: int, stop: int) -> bytes:
        content = self._opened.read_range(start, stop)
        if len(content) < stop - start:
            raise ConnectionError(f"{len(content)} bytes came of the {stop - start} from {start} on")
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def decompressed(self, compression: Compression, buffer_bytes: int = STREAM_BYTES) -> pa.CompressedInputStream:
        """Read from the beginning, so many bytes at once."""
        return pa.CompressedInputStream(pa.PythonFile(io.BufferedReader(self, buffer_bytes), mode="r"), compression)


def first_of(items: list[str], limit: int, what: str) -> list[str]:
    """Return the first `limit` items, and in place of the others how many they are."""
    return items if len(items) <= limit else [*items[:limit], f"and {len(items) - limit} more {what}"]
