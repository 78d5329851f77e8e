"""Data files wherever they lie: their formats, file systems, bytes, Parquet footers and Arrow batches.

Every file system goes through fsspec: local paths, `s3://`, `gs://` and `hf://` alike.
"""

import io
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

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


def _open(file: File) -> Opened:
    hub_path = HubPath.parse(file.path)
    if hub_path is not None and (file.size_bytes or file.version):  # what a listing gave
        return HubFile(hub_path, file.size_bytes, file.version)
    fs, inner = file_system(file.path)
    if isinstance(fs, LocalFileSystem):
        return _LocalFile(inner)
    key = id(fs), inner, file.version
    with _opened_lock:
        kept = _opened.pop(key, None)
    opened = kept or _StoredFile(fs, inner)
    with _opened_lock:
        _opened[key] = opened
        if len(_opened) > _NUM_OPENED:
            _opened.popitem(last=False)
    return opened


def forget(path: str) -> None:
    """Reopen a file of an object store the next time."""
    inner = path.partition("://")[2]
    with _opened_lock:
        for key in [key for key in _opened if inner and key[1].lstrip("/") == inner.lstrip("/")]:
            del _opened[key]


class ReachableFile(io.RawIOBase):
    """A file opened for reading in ranges of exactly what is asked for, whose every failure to deliver is no damage.

    Outages are waited out. Arrow passes the exceptions of a Python file on unchanged, so whatever else it raises is the
    content's fault: a refused permission or a lost connection is never mistaken for a damaged file.

    Raises (like its methods):
        InputError: the file cannot be reached, or is another one than was listed.
        OutageError: its store did not answer in time.
    """

    def __init__(self, file: File, patience: Patience) -> None:
        super().__init__()
        self.path, self._patience, self._position = file.path, patience, 0
        with reaching(self.path):
            self._opened = patience.wait_out(self.path, lambda: _open(file))
        self.size, self.version = self._opened.size, self._opened.version
        if file.size_bytes and self.size != file.size_bytes:
            raise InputError(f"{self.path}: changed while in use: {file.size_bytes} bytes when listed, {self.size} now")
        if file.version and self.version != file.version:
            raise InputError(f"{self.path}: changed while in use: {file.version} when listed, {self.version} now")

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


_KEPT_BYTES = 32 * 2**20  # as they lie in files; parsed, they take six times as much

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


FILE_MAGIC = b"ARROW1\0\0"
STREAM_MAGIC = b"\xff\xff\xff\xff"  # in front of each message

_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # Message.fbs: MessageHeader
_HEADER_TYPE, _BODY_LENGTH = 1, 3  # Message.fbs: numbers of the fields of Message


class Message(NamedTuple):
    """What a message is, and where in the file it lies."""

    kind: int
    start: int
    stop: int


class BatchPlaces(NamedTuple):
    """The schema of a file, and the bytes at which its record batches begin, with the end of the last one."""

    schema: pa.Schema
    edges: list[int]


def find_batches(stream: ReachableFile) -> BatchPlaces:
    """Look at the headers of all messages.

    Raises:
        pa.ArrowInvalid: this is not a whole Arrow stream or file, or its dictionaries change on the way.
    """
    messages = list(_messages(stream, _first_byte(stream), stream.size))
    batches = [message for message in messages if message.kind == _BATCH]
    if not messages or messages[0].kind != _SCHEMA:
        raise pa.ArrowInvalid("it does not begin with a schema")
    if batches and any(message.kind == _DICTIONARY and message.start > batches[0].start for message in messages):
        raise pa.ArrowInvalid("its dictionaries change on the way; write its columns as plain strings")
    schema = pa.ipc.read_schema(pa.py_buffer(_read(stream, messages[0].start, messages[0].stop)))
    edges = [*(message.start for message in batches), batches[-1].stop] if batches else []
    return BatchPlaces(schema, edges)


def read_batches(stream: ReachableFile, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the record batches that lie in [start, stop), each with its first byte; one is in memory at a time."""
    first = _first_byte(stream)
    head_stop = next((message.start for message in _messages(stream, first, stop) if message.kind == _BATCH), start)
    head = _read(stream, first, head_stop)
    for message in _messages(stream, start, stop):
        with pa.ipc.open_stream(pa.py_buffer(head + _read(stream, message.start, message.stop))) as reader:
            yield message.start, reader.read_next_batch()


def _first_byte(stream: ReachableFile) -> int:
    return len(FILE_MAGIC) if _read(stream, 0, len(FILE_MAGIC)) == FILE_MAGIC else 0


def _messages(stream: ReachableFile, start: int, stop: int) -> Iterator[Message]:
    """Yield the messages that begin in [start, stop), up to the mark of the end if there is one."""
    while start < stop:
        prefix = _read(stream, start, start + 8)
        if not prefix.startswith(STREAM_MAGIC):
            raise pa.ArrowInvalid(f"no Arrow message at byte {start}")
        (metadata_length,) = struct.unpack_from("<i", prefix, 4)
        if metadata_length == 0:  # the mark of the end
            return
        if not 0 < metadata_length <= stream.size - start - 8:
            raise pa.ArrowInvalid(f"the message at byte {start} is cut off")
        metadata = _read(stream, start + 8, start + 8 + metadata_length)
        body_length = _field(metadata, _BODY_LENGTH, "<q")
        message = Message(_field(metadata, _HEADER_TYPE, "<B"), start, start + 8 + metadata_length + body_length)
        if body_length < 0 or message.stop > stream.size:
            raise pa.ArrowInvalid(f"the message at byte {start} is cut off")
        yield message
        start = message.stop


def _field(table: bytes, number: int, form: str) -> int:
    """Return a number of the flatbuffer's root table; 0 if it is not given."""
    try:
        (root,) = struct.unpack_from("<I", table, 0)
        (to_fields,) = struct.unpack_from("<i", table, root)
        fields = root - to_fields
        (fields_length,) = struct.unpack_from("<H", table, fields)
        entry = 4 + 2 * number
        (place,) = struct.unpack_from("<H", table, fields + entry) if entry < fields_length else (0,)
        return int(struct.unpack_from(form, table, root + place)[0]) if place else 0
    except struct.error as error:
        raise pa.ArrowInvalid(f"a message's header is damaged ({error})") from error


def _read(stream: ReachableFile, start: int, stop: int) -> bytes:
    stream.seek(start)
    data = stream.read(stop - start)
    if len(data) != stop - start:
        raise pa.ArrowInvalid(f"it ends at byte {start + len(data)}, in the middle of a message")
    return data
