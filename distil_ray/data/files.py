"""Data files wherever they lie: their formats by suffix, their file systems, and their bytes.

Every file system goes through fsspec: local paths, `s3://`, `gs://` and `hf://` alike.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from distil_ray.errors import InputError, reason_of

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
    """A data file. `name` is its path below its source, the same wherever the source lies."""

    name: str
    path: str  # a URL or an absolute local path
    format: Format
    compression: Compression | None
    column: str
    size_bytes: int
    num_rows: int | None = None  # Parquet only


def file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URL or local path, and the path inside it."""
    if "://" not in path:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    protocol = path.split("://", 1)[0]
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'distil_ray[{extra}]'" if extra else str(error)
        raise InputError(f"{path}: {protocol}:// needs a package that is not installed: {remedy}") from error
    return fs, inner


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
    """Turn whatever keeps us from a file's bytes into an InputError that names the path and the cause."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # OSError, and each backend's own: botocore, google.auth, aiohttp, httpx
        raise InputError(f"{path}: cannot be reached: {type(error).__name__}: {reason_of(error)}") from error


class ReachableFile:
    """A file opened for reading, whose every failure to deliver bytes is an InputError.

    Arrow hands exceptions of a Python file on unchanged, so whatever else it raises is the content's fault: a
    refused permission or a lost connection is never mistaken for a damaged file.
    """

    def __init__(self, path: str, readahead_bytes: int) -> None:
        self._path = path
        with reaching(path):
            fs, inner = file_system(path)
            self._file = fs.open(inner, "rb", block_size=readahead_bytes, cache_type="readahead")
            self.size = int(self._file.seek(0, os.SEEK_END))
            self._file.seek(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, size: int = -1) -> bytes:
        with reaching(self._path):
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()

    def decompressed(self, compression: Compression) -> pa.CompressedInputStream:
        return pa.CompressedInputStream(pa.PythonFile(self, mode="r"), compression)


def first_of(items: list[str], limit: int, what: str) -> list[str]:
    """Return the first `limit` items, and in place of the others how many they are."""
    return items if len(items) <= limit else [*items[:limit], f"and {len(items) - limit} more {what}"]
