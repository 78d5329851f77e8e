"""Sources -> units, the smallest pieces of text that can be read on their own; a unit -> documents.

What a unit and a document are, by the file's suffix (`.gz` and `.zst` on top of the text formats):

================================  =================================  =====================================
suffix                            unit                               document
================================  =================================  =====================================
.parquet                          row group                          a row's value in the source's column
.jsonl .ndjson .json              line-aligned byte range            a line's value under the column's name
.txt .text                        line-aligned byte range            lines up to a blank line
either of the last two, .gz/.zst  the whole file                     as above
================================  =================================  =====================================

A line belongs to the byte range in which it starts. A text document that straddles two ranges is cut there,
at the line boundary, so every line is read exactly once. Memory stays bounded whatever the file holds: a text
document is also cut when it reaches `MAX_DOCUMENT_BYTES`, and a longer JSON line is skipped.

Every file system goes through fsspec: local paths, `s3://`, `gs://` and `hf://` alike.
"""

import difflib
import hashlib
import itertools
import json
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from distil_ray.data.docstrings import docstring_folder
from distil_ray.errors import InputError

Format = Literal["parquet", "jsonl", "text"]
Compression = Literal["gzip", "zstd"]
Line = tuple[bytes, bool]  # the bytes without the newline; False if they are a piece and the line goes on

MAX_DOCUMENT_BYTES = 64 * 2**20

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_SUPPORTED = f"{', '.join(_FORMATS)}; text and JSON lines also with {' or '.join(_COMPRESSIONS)}"
_GLOB = re.compile(r"[*?[]")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_MAGIC = {
    b"\x1f\x8b": ("gzip", ".gz"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst"),
    b"PAR1": ("Parquet", ".parquet"),
}

_MIN_UNIT_BYTES, _MAX_UNIT_BYTES, _RANGES_PER_CORPUS = 16 * 2**10, 2**20, 128
_COMPRESSION_RATIO = 3  # of English text, roughly: it sizes the groups and never decides what is read
_PROBE_BYTES = 64 * 2**10
_TAIL_BYTES = 256 * 2**10  # read at once beyond a range's end, for its last line
_STREAM_BYTES = 4 * 2**20  # read at once from a Parquet column or a compressed file
_ROWS_PER_BATCH = 64  # of a Parquet file
_NUM_PROBE_THREADS = 16
_MAX_ERRORS_SHOWN, _MAX_NAMES_SHOWN, _MAX_COLUMNS_SHOWN = 10, 5, 20


class BadFileError(InputError):
    """A file whose bytes arrived but are not what they should be (not one that cannot be reached)."""


@dataclass(frozen=True)
class Source:
    """Where text comes from: a path, a Hub data set by name, or the documentation strings at hand.

    Args:
        path: a file, a glob or a folder; local, `s3://`, `gs://` or `hf://`.
        hub: a data set on the Hugging Face Hub, or a local folder laid out like one.
        docstrings: ``installed``, see `docstrings`.
        name: the Hub data set's configuration.
        revision: the Hub data set's branch, tag or commit.
        split: the Hub data set's split, or that of the documentation strings.
        column: the Parquet column or JSON key that holds the text; not used for text files.

    Raises:
        InputError: unless exactly one of `path`, `hub` and `docstrings` is given.
    """

    path: str | None = None
    hub: str | None = None
    docstrings: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str = "text"

    def __post_init__(self) -> None:
        if [bool(self.path), bool(self.hub), bool(self.docstrings)].count(True) != 1:
            raise InputError(
                f"a source needs one of path, hub and docstrings: got path={self.path!r}, hub={self.hub!r}, "
                f"docstrings={self.docstrings!r}"
            )


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


@dataclass(frozen=True)
class SkippedFile:
    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Corpus:
    """All files and units of all sources, in one order: sources as given, files by name, units by position.

    `unit_start` and `unit_stop` are row groups of a Parquet file, else bytes. `unit_bytes` is the size of the
    text: of the column's chunk before compression, or of the byte range; of a compressed file it is an
    estimate, three times the file's size.
    """

    files: tuple[File, ...]
    unit_file: npt.NDArray[np.int32]
    unit_start: npt.NDArray[np.int64]
    unit_stop: npt.NDArray[np.int64]
    unit_bytes: npt.NDArray[np.int64]
    skipped_files: tuple[SkippedFile, ...] = ()

    @property
    def num_units(self) -> int:
        return len(self.unit_file)

    @property
    def num_bytes(self) -> int:
        return int(self.unit_bytes.sum())

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the text and its units, as JSON: the same wherever the sources lie.

        It rests on names, sizes, row counts and order, not on the files' bytes.
        """
        files = [{key: value for key, value in asdict(file).items() if key != "path"} for file in self.files]
        digest = hashlib.sha256(json.dumps(files).encode())
        for array in (self.unit_file, self.unit_start, self.unit_stop, self.unit_bytes):
            digest.update(array.astype("<i8").tobytes())
        return {"digest": digest.hexdigest(), "num_units": self.num_units, "files": files}


def list_corpus(sources: Sequence[Source], *, on_bad_file: Literal["error", "skip"] = "error") -> Corpus:
    """Find the files of `sources`, look at the beginning or the footer of each, and cut them into units.

    Args:
        on_bad_file: what becomes of an empty or damaged file: an error, or an entry in `skipped_files`. A
            file that cannot be reached and a missing column are errors either way.

    Raises:
        InputError: with every problem found, the first 10 in words.
    """
    candidates: list[_Candidate] = []
    errors: list[str] = []
    for source in sources:
        try:
            candidates += _find_files(source)
        except InputError as error:
            errors.append(str(error))
    num_matches = Counter(candidate.path for candidate in candidates)
    duplicates = [path for path, count in num_matches.items() if count > 1]
    errors += [f"{path}: matched by two sources; name it once" for path in duplicates]

    probed: list[_Probed] = []
    skipped: list[SkippedFile] = []
    with ThreadPoolExecutor(_NUM_PROBE_THREADS) as pool:
        for candidate, outcome in zip(candidates, pool.map(_try_probe, candidates), strict=True):
            if isinstance(outcome, _Probed):
                probed.append(outcome)
            elif isinstance(outcome, BadFileError) and on_bad_file == "skip":
                skipped.append(SkippedFile(candidate.path, str(outcome)))
            elif isinstance(outcome, BadFileError):
                errors.append(f"{outcome} (data.on_bad_file: skip leaves such a file out)")
            else:
                errors.append(str(outcome))
    if errors:
        raise InputError(_enumerate_errors(errors))
    return _cut_into_units(probed, tuple(skipped))


def read_unit(corpus: Corpus, unit: int) -> Iterator[str | None]:
    """Yield the unit's documents in order; None stands for a document that was skipped.

    Skipped are null, empty and blank texts, text that is not UTF-8, and JSON lines that are not an object
    with a text under the column's name.

    Raises:
        BadFileError: the file is damaged; the message names the file and the row group.
        InputError: the file cannot be reached, or has another size than when it was listed.
    """
    file = corpus.files[corpus.unit_file[unit]]
    start, stop = int(corpus.unit_start[unit]), int(corpus.unit_stop[unit])
    streamed = file.format == "parquet" or file.compression is not None
    with _ReachableFile(file.path, readahead_bytes=_STREAM_BYTES if streamed else _TAIL_BYTES) as stream:
        if stream.size != file.size_bytes:
            raise InputError(
                f"{file.path}: changed while in use: {file.size_bytes} bytes when listed, {stream.size} now"
            )
        try:
            yield from _documents(file, stream, start, stop)
        except (OSError, pa.ArrowException) as error:
            place = f"row group {start}: " if file.format == "parquet" else ""
            raise BadFileError(f"{file.path}: {place}damaged ({_one_line(error)})") from error


def explain_difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words how the fingerprint `new` differs from `old`; an empty list if it does not."""
    if old["digest"] == new["digest"]:
        return []
    old_files, new_files = _numbered_by_name(old["files"]), _numbered_by_name(new["files"])
    lines = [f"{name}: is gone" for name, _ in old_files.keys() - new_files.keys()]
    lines += [f"{name}: is new" for name, _ in new_files.keys() - old_files.keys()]
    for key in old_files.keys() & new_files.keys():
        before, after = old_files[key], new_files[key]
        changed = [what for what in before if before[what] != after[what]]
        if changed:
            changes = "; ".join(f"{what} was {before[what]}, is {after[what]}" for what in changed)
            lines.append(f"{key[0]}: {changes}")
    if not lines and list(old_files) != list(new_files):
        return ["the same files in another order"]
    if not lines:
        return [f"the same files cut into other units: {old['num_units']} then, {new['num_units']} now"]
    return _first(sorted(lines), _MAX_NAMES_SHOWN, "file(s) that differ")


# --- Finding files


@dataclass(frozen=True)
class _Candidate:
    name: str
    path: str
    column: str


def _find_files(source: Source) -> list[_Candidate]:
    """Return the source's files sorted by name, all of supported suffixes."""
    if source.docstrings:
        paths = _find_at_path(str(docstring_folder(source.split)))
    else:
        paths = _find_on_hub(source) if source.hub else _find_at_path(source.path or "")
    unsupported = [path for _, path in sorted(paths) if _format_of(path) is None]
    if unsupported:
        shown = ", ".join(_first(unsupported, _MAX_NAMES_SHOWN, "file(s)"))
        raise InputError(f"unsupported file(s): {shown}. Supported: {_SUPPORTED}. Name only those, by a glob")
    return [_Candidate(name, path, source.column) for name, path in sorted(paths)]


def _find_at_path(path: str) -> list[tuple[str, str]]:
    """Return (name, path) of the file, of the glob's matches, or of all files below the folder."""
    with _reaching(path):
        fs, inner = _file_system(path)
        fs.invalidate_cache()  # a listing from earlier in this process may be out of date
        try:
            root, found = _match(fs, inner)
        except FileNotFoundError as error:
            raise InputError(f"no such file or folder: {path} ({_one_line(error)})") from error
        if not found:
            raise InputError(f"no data files match or lie below {path}")
        is_local = isinstance(fs, LocalFileSystem)
        return [(file[len(root) + 1 :], file if is_local else fs.unstrip_protocol(file)) for file in found]


def _match(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, list[str]]:
    """Return the folder at the root of `path`, and the files that it names below it."""
    try:
        if fs.info(path)["type"] == "file":
            return path.rpartition("/")[0], [path]
        return path.rstrip("/"), list(_walk(fs, path, max_depth=None))
    except FileNotFoundError:
        if not _GLOB.search(path):
            raise
    root = _GLOB.split(path, maxsplit=1)[0].rpartition("/")[0]
    max_depth = None if "**" in path else path[len(root) :].count("/")
    pattern = re.compile(glob_translate(path))
    return root, [file for file in _walk(fs, root or "/", max_depth) if pattern.match(file)]


def _walk(fs: fsspec.AbstractFileSystem, folder: str, max_depth: int | None) -> Iterator[str]:
    """Yield the paths of all files below `folder`; names that begin with `_` or `.` are left out."""
    # Not fs.walk, fs.find or fs.glob: they leave out folders that they may not list, without a word.
    for entry in fs.ls(folder, detail=True):
        path = entry["name"].rstrip("/")
        is_itself = path == folder.rstrip("/")  # object stores list a folder's marker among its files
        if is_itself or path.rpartition("/")[2].startswith(("_", ".")):
            continue
        if entry["type"] != "directory":
            yield path
        elif max_depth is None:
            yield from _walk(fs, path, None)
        elif max_depth > 1:
            yield from _walk(fs, path, max_depth - 1)


def _find_on_hub(source: Source) -> list[tuple[str, str]]:
    """Return (name, path) of the split's data files, without downloading them."""
    from datasets import load_dataset_builder  # takes half a second, and only Hub sources need it

    try:
        builder = load_dataset_builder(source.hub, name=source.name, revision=source.revision)
    except Exception as error:  # ValueError, ConnectionError, HTTP and YAML errors: whatever it meets
        asked = f"{source.hub!r} (name {source.name!r}, revision {source.revision!r})"
        raise InputError(f"Hub data set {asked} cannot be resolved: {_one_line(error)}") from error
    files_of_split = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if source.split not in files_of_split:
        raise InputError(
            f"Hub data set {source.hub!r}: no split {source.split!r} in configuration "
            f"{builder.config.name!r}; its splits: {', '.join(files_of_split) or 'none'}; "
            f"all configurations: {', '.join(builder.builder_configs) or 'none'}"
        )
    root = str(builder.base_path)
    root = (root if "://" in root else os.path.abspath(root)).rstrip("/") + "/"
    return [(file.removeprefix(root), file) for file in map(str, files_of_split[source.split])]


def _file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
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


def _format_of(path: str) -> tuple[Format, Compression | None] | None:
    stem, suffix = os.path.splitext(path.lower())
    compression = _COMPRESSIONS.get(suffix)
    if compression is not None:
        suffix = os.path.splitext(stem)[1]
    file_format = _FORMATS.get(suffix)
    if file_format is None or (file_format == "parquet" and compression is not None):
        return None
    return file_format, compression


# --- Reaching bytes


@contextmanager
def _reaching(path: str) -> Iterator[None]:
    """Turn whatever keeps us from a file's bytes into an InputError that names the path and the cause."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # OSError, and each backend's own: botocore, google.auth, aiohttp, httpx
        raise InputError(f"{path}: cannot be reached: {type(error).__name__}: {_one_line(error)}") from error


class _ReachableFile:
    """A file opened for reading, whose every failure to deliver bytes is an InputError.

    Arrow hands exceptions of a Python file on unchanged, so whatever else it raises is the content's fault: a
    refused permission or a lost connection is never mistaken for a damaged file.
    """

    def __init__(self, path: str, readahead_bytes: int) -> None:
        self._path = path
        with _reaching(path):
            fs, inner = _file_system(path)
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
        with _reaching(self._path):
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()

    def decompressed(self, compression: Compression) -> pa.CompressedInputStream:
        return pa.CompressedInputStream(pa.PythonFile(self, mode="r"), compression)


# --- Probing a file


@dataclass(frozen=True)
class _Probed:
    file: File
    row_group_bytes: list[int] = field(default_factory=list)  # Parquet: of the column; 0 = no rows


def _try_probe(candidate: _Candidate) -> _Probed | InputError:
    try:
        return _probe(candidate)
    except InputError as error:
        return error


def _probe(candidate: _Candidate) -> _Probed:
    recognised = _format_of(candidate.path)
    assert recognised is not None
    file_format, compression = recognised
    with _ReachableFile(candidate.path, readahead_bytes=_PROBE_BYTES) as stream:
        if stream.size == 0:
            raise BadFileError(f"{candidate.path}: is empty (0 bytes)")
        file = File(candidate.name, candidate.path, file_format, compression, candidate.column, size_bytes=stream.size)
        if file_format == "parquet":
            return _probe_parquet(file, stream)
        _probe_lines(file, stream)
        return _Probed(file)


def _probe_parquet(file: File, stream: _ReachableFile) -> _Probed:
    """Read the footer; check the column."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(_parquet_footer(stream)))
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise BadFileError(f"{file.path}: not a Parquet file, or damaged ({_one_line(error)})") from error
    if metadata.num_rows == 0:
        raise BadFileError(f"{file.path}: holds no rows")
    types = {column.name: column.type for column in schema}
    if file.column not in types:
        raise InputError(_missing_column(file, types))
    value_type = types[file.column]
    if pa.types.is_dictionary(value_type):
        value_type = value_type.value_type
    if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type)):
        raise InputError(f"{file.path}: column {file.column!r} is {types[file.column]}, expected string")

    leaf = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(file.column)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_group_bytes = [g.column(leaf).total_uncompressed_size if g.num_rows else 0 for g in groups]
    return _Probed(replace(file, num_rows=metadata.num_rows), row_group_bytes)


def _parquet_footer(stream: _ReachableFile) -> bytes:
    """Return the file's end, from the footer's beginning or before it (any bytes if it has no footer)."""
    stream.seek(max(stream.size - _PROBE_BYTES, 0))
    tail = stream.read(_PROBE_BYTES)
    if not tail.endswith(b"PAR1") or len(tail) < 8:
        return tail
    footer_bytes = 8 + struct.unpack("<I", tail[-8:-4])[0]
    if len(tail) < footer_bytes <= stream.size:
        stream.seek(stream.size - footer_bytes)
        tail = stream.read(footer_bytes)
    return tail


def _probe_lines(file: File, stream: _ReachableFile) -> None:
    """Check that the first 64 KiB are text or JSON lines, and decompress if the name says so."""
    try:
        text = stream.decompressed(file.compression) if file.compression else stream
        head = text.read(_PROBE_BYTES)
    except OSError as error:
        raise BadFileError(f"{file.path}: not {file.compression}, or damaged ({_one_line(error)})") from error
    for magic, (kind, suffix) in _MAGIC.items():
        if head.startswith(magic):
            name = os.path.basename(file.path)
            right_name = (os.path.splitext(name)[0] if kind == "Parquet" else name) + suffix
            raise BadFileError(f"{file.path}: its content is {kind}, not text; rename it to {right_name}")
    if file.format == "jsonl":
        is_whole = len(head) < _PROBE_BYTES
        lines = head.split(b"\n") if is_whole else head.split(b"\n")[:-1]
        _probe_json(file, head, [record for line in lines if (record := _json_object(line)) is not None])


def _probe_json(file: File, head: bytes, records: list[dict[str, Any]]) -> None:
    if re.match(rb"\s*\[\s*\{", head):
        raise BadFileError(f"{file.path}: holds a JSON array; expected JSON lines, one object a line")
    types: dict[str, str] = {}
    for record in records:
        for key, value in record.items():
            if value is not None and types.get(key) != "str":
                types[key] = type(value).__name__
            types.setdefault(key, "null")
    if records and file.column not in types:
        raise InputError(_missing_column(file, types))
    if types.get(file.column, "str") not in ("str", "null"):
        raise InputError(f"{file.path}: {file.column!r} holds {types[file.column]}, expected a string")


def _missing_column(file: File, types: dict[str, Any]) -> str:
    nearest = difflib.get_close_matches(file.column, types, n=1)
    columns = _first([f"{name} ({kind})" for name, kind in types.items()], _MAX_COLUMNS_SHOWN, "column(s)")
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"{file.path}: no column {file.column!r}{hint}; its columns: {', '.join(columns)}"


# --- Cutting into units


def _cut_into_units(probed: list[_Probed], skipped: tuple[SkippedFile, ...]) -> Corpus:
    total = sum(sum(one.row_group_bytes) or _text_bytes(one.file) for one in probed)
    unit_size = min(max(total // _RANGES_PER_CORPUS, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    units = [_units_of_file(one, unit_size) for one in probed]
    if not units:
        reasons = _first([file.reason for file in skipped], _MAX_NAMES_SHOWN, "file(s)")
        raise InputError(f"nothing to read; skipped: {'; '.join(reasons) or 'nothing: name at least one source'}")
    start, stop, size = np.concatenate(units).T
    unit_file = np.repeat(np.arange(len(units), dtype=np.int32), [len(rows) for rows in units])
    files = tuple(one.file for one in probed)
    return Corpus(files, unit_file, start.copy(), stop.copy(), size.copy(), skipped_files=skipped)


def _text_bytes(file: File) -> int:
    return file.size_bytes * (_COMPRESSION_RATIO if file.compression else 1)


def _units_of_file(probed: _Probed, unit_size: int) -> npt.NDArray[np.int64]:
    """Return one row (start, stop, bytes) a unit."""
    file = probed.file
    if file.format == "parquet":
        sizes = np.array(probed.row_group_bytes, dtype=np.int64)
        groups = np.flatnonzero(sizes)
        return np.stack([groups, groups + 1, sizes[groups]], axis=1)
    if file.compression is not None:
        return np.array([[0, file.size_bytes, _text_bytes(file)]], dtype=np.int64)
    num_ranges = -(-file.size_bytes // unit_size)
    edges = np.arange(num_ranges + 1, dtype=np.int64) * file.size_bytes // num_ranges
    return np.stack([edges[:-1], edges[1:], np.diff(edges)], axis=1)


# --- Reading documents


def _documents(file: File, stream: _ReachableFile, start: int, stop: int) -> Iterator[str | None]:
    if file.format == "parquet":
        return _parquet_documents(stream, start, file.column)
    if file.compression is not None:
        decompressed = stream.decompressed(file.compression)
        lines = _split_lines(iter(lambda: decompressed.read(_MAX_UNIT_BYTES), b""), sys.maxsize)
    else:
        lines = _range_lines(stream, start, stop)
    return _text_documents(lines) if file.format == "text" else _json_documents(lines, file.column)


def _parquet_documents(stream: _ReachableFile, row_group: int, column: str) -> Iterator[str | None]:
    # buffer_size makes Arrow stream the column's pages instead of loading the whole chunk.
    parquet = pq.ParquetFile(
        pa.PythonFile(stream, mode="r"),
        pre_buffer=False,
        buffer_size=_STREAM_BYTES,
        page_checksum_verification=True,
    )
    for batch in parquet.iter_batches(_ROWS_PER_BATCH, row_groups=[row_group], columns=[column], use_threads=False):
        values = batch.column(0)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        # As bytes, because Arrow does not check that a string column is UTF-8.
        for value in values.cast(pa.large_binary()).to_pylist():
            yield None if value is None else _decode(value)


def _range_lines(stream: _ReachableFile, start: int, stop: int) -> Iterator[Line]:
    """Yield the lines that start in [start, stop); reads no more than that range if there are none."""
    begin = max(start - 1, 0)  # the byte before tells whether a line starts at `start`
    stream.seek(begin)
    chunk = stream.read(stop - begin)
    if start > 0:
        newline = chunk.find(b"\n", 0, stop - start)
        if newline < 0:
            return
        chunk = chunk[newline + 1 :]
    tail = iter(lambda: stream.read(_TAIL_BYTES), b"")
    yield from _split_lines(itertools.chain([chunk], tail), num_bytes=len(chunk))


def _split_lines(chunks: Iterable[bytes], num_bytes: int) -> Iterator[Line]:
    """Yield the lines that start within the first `num_bytes`, those over MAX_DOCUMENT_BYTES in pieces."""
    offset = 0
    unfinished = bytearray()
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield b"".join((unfinished, piece)), True
            unfinished = bytearray()
            offset += len(piece) + 1
            if offset >= num_bytes:
                return
        offset += len(rest)
        unfinished += rest
        if len(unfinished) > MAX_DOCUMENT_BYTES:
            cut = _character_boundary(unfinished, MAX_DOCUMENT_BYTES)
            yield bytes(unfinished[:cut]), False
            del unfinished[:cut]
    if unfinished:
        yield bytes(unfinished), True


def _character_boundary(text: bytearray, position: int) -> int:
    """Return the last position up to `position` at which a UTF-8 character starts."""
    # A character has at most three continuation bytes, which look like 0b10xxxxxx.
    return next((p for p in range(position, position - 4, -1) if text[p] & 0xC0 != 0x80), position)


def _text_documents(lines: Iterable[Line]) -> Iterator[str | None]:
    document: list[bytes] = []
    num_bytes = 0
    for line, is_ended in lines:
        is_blank = not line or line.isspace()
        if not is_blank:
            document.append(line.removesuffix(b"\r"))
            num_bytes += len(line)
        if document and (is_blank or not is_ended or num_bytes >= MAX_DOCUMENT_BYTES):
            yield _decode(b"\n".join(document))
            document, num_bytes = [], 0
    if document:
        yield _decode(b"\n".join(document))


def _json_documents(lines: Iterable[Line], column: str) -> Iterator[str | None]:
    is_too_long = False
    for line, is_ended in lines:
        if not is_ended:
            is_too_long = True
        elif is_too_long:
            yield None
            is_too_long = False
        elif line and not line.isspace():
            text = (_json_object(line) or {}).get(column)
            yield text if isinstance(text, str) and _is_usable(text) else None


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or brackets nested without end
        return None
    return record if isinstance(record, dict) else None


def _decode(raw: bytes) -> str | None:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text if _is_usable(text) else None


def _is_usable(text: str) -> bool:
    """Whether there is anything to read, and no lone surrogate: JSON can spell one, no tokenizer takes it."""
    if not text or text.isspace():
        return False
    return text.isascii() or re.search("[\ud800-\udfff]", text) is None


# --- Messages


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _first(items: list[str], limit: int, what: str) -> list[str]:
    """Return the first `limit` items, and in place of the others how many they are."""
    return items if len(items) <= limit else [*items[:limit], f"and {len(items) - limit} more {what}"]


def _enumerate_errors(errors: list[str]) -> str:
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"  - {line}" for line in _first(errors, _MAX_ERRORS_SHOWN, "problem(s)"))
    return f"{len(errors)} problems with the sources:\n{lines}"


def _numbered_by_name(files: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Key each file by its name and a count: two sources may hold files of the same name."""
    seen: Counter[str] = Counter()
    numbered = {}
    for file in files:
        numbered[file["name"], seen[file["name"]]] = file
        seen[file["name"]] += 1
    return numbered
