"""A data file, wherever it is stored -> its format, its bytes in ranges, its Parquet footer.

Every store goes through fsspec (local paths, `s3://`, `gs://`), except the Hugging Face Hub, which `hub` reads.
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
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
    """A data file, and all that is needed to open it: nothing is asked for twice.

    `name` is its path below its source, the same wherever the source is stored.
    """

    name: str
    path: str  # a URL or an absolute local path
    format: Format
    compression: Compression | None
    column: str
    size_bytes: int = 0  # 0 before it is known
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
    """Turn any failure to get a file's bytes, except an outage, into an InputError that names path and cause."""
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


def _open(file: File, is_probe: bool) -> Opened:
    hub_path = HubPath.parse(file.path)
    if hub_path is not None and (file.size_bytes or file.version):  # what a listing gave
        return HubFile(hub_path, file.size_bytes, file.version)
    fs, inner = file_system(file.path)
    if isinstance(fs, LocalFileSystem):
        return _LocalFile(inner)
    if is_probe and not file.version:  # it may have changed since this process saw it last
        return _StoredFile(fs, inner)
    return _open_version(fs, inner, file.version, file.size_bytes)


@lru_cache(maxsize=256)
def _open_version(fs: fsspec.AbstractFileSystem, path: str, version: str, size_bytes: int) -> _StoredFile:
    """Ask the store once what a file is that was listed with this version and size. A failure is not kept."""
    opened = _StoredFile(fs, path)
    if version and opened.version != version:
        url = fs.unstrip_protocol(path)
        raise InputError(f"{url}: changed while in use: {version} when listed, {opened.version} now")
    return opened


class ReachableFile(io.RawIOBase):
    """A file opened for reading, in ranges of exactly what is asked for. Outages are waited out.

    Arrow raises the exceptions of a Python file unchanged, so all others that it raises are about the content: a
    refused permission or a lost connection is never mistaken for a damaged file.

    Raises (like its methods):
        InputError: the file cannot be reached, or is another one than was listed.
        OutageError: its store did not answer in time.
    """

    def __init__(self, file: File, patience: Patience, *, is_probe: bool = False) -> None:
        """``is_probe``: what the file is has to be found out, however often it was opened before."""
        super().__init__()
        self.path, self._patience, self._position = file.path, patience, 0
        with reaching(self.path):
            self._opened = patience.wait_out(self.path, lambda: _open(file, is_probe))
        self.size, self.version = self._opened.size, self._opened.version
        if file.size_bytes and self.size != file.size_bytes:
            raise InputError(f"{self.path}: changed while in use: {file.size_bytes} bytes when listed, {self.size} now")

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


_KEPT_BYTES = 32 * 2**20  # of footers as they are stored; parsed, they take six times as much

_kept: OrderedDict[tuple[str, int, str], pq.FileMetaData] = OrderedDict()
_lock = threading.Lock()


def read_footer(stream: ReachableFile, footer_bytes: int = 0) -> pq.FileMetaData:
    """Return the footer of the file as it is now; the one last used longest ago makes room.

    Args:
        footer_bytes: its length, if it is known: then nothing more is read, nor anything if it has been read before.
            0 looks at the file in any case.

    Raises:
        OSError, pa.ArrowException: it has none, or a damaged one.
    """
    key = stream.path, stream.size, stream.version
    with _lock:
        footer = _kept.pop(key, None) if footer_bytes else None
    if footer is None and footer_bytes:
        stream.seek(stream.size - footer_bytes)
        footer = pq.read_metadata(pa.BufferReader(stream.read(footer_bytes)))
    elif footer is None:
        footer = pq.read_metadata(pa.PythonFile(stream, mode="r"))  # reads the last 64 KiB, and more if need be
    with _lock:
        _kept[key] = footer
        while len(_kept) > 1 and sum(one.serialized_size for one in _kept.values()) > _KEPT_BYTES:
            _kept.popitem(last=False)
    return footer
