"""The beginning or the footer of a data file -> what it is, or what is wrong with it, before anything else is read."""

import codecs
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import pyarrow as pa

from distil_ray.data.arrow import FILE_MAGIC, STREAM_MAGIC, find_batches
from distil_ray.data.documents import is_text_type, parse_json
from distil_ray.data.files import BadFileError, File, ReachableFile, read_footer
from distil_ray.data.tally import Reason
from distil_ray.errors import InputError, did_you_mean, first_of, reason_of
from distil_ray.outages import Patience

_PROBE_BYTES = 64 * 2**10
_MAX_LINE_BYTES = 4 * 2**20
"""A longer first line of JSON is not checked."""
_MAX_COLUMNS_SHOWN = 20
_MAX_SHOWN_BYTES = 80
_MAX_BAD_FRACTION, _MIN_BAD_BYTES = 0.5, 10
"""A larger share of lines that are not UTF-8 in a file's beginning means that it is in another encoding,
if there are so many that do not fit in: a short file may have a stray one."""
_MAX_NUL_FRACTION = 0.1

# How contents begin, what they are, and the suffix under which they are read.
_MAGIC = (
    (rb"\x1f\x8b", "gzip", ".gz"),
    (rb"\x28\xb5\x2f\xfd", "zstd", ".zst"),
    (rb"PAR1", "Parquet", ".parquet"),
    (rb"PARE", "encrypted Parquet", None),
    (re.escape(FILE_MAGIC) + rb"|" + re.escape(STREAM_MAGIC), "Arrow", ".arrow"),
    (rb"BZh[1-9]1AY&SY", "bzip2", None),
    (rb"\xfd7zXZ\x00", "xz", None),
    (rb"PK\x03\x04", "a zip archive", None),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", None),
    (rb"\x04\x22\x4d\x18", "lz4", None),
    (rb".{257}ustar", "a tar archive", None),
    (rb"Obj\x01", "Avro", None),
    (rb"%PDF-", "PDF", None),
)
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_UTF8_MARK = b"\xef\xbb\xbf"
_HTML = re.compile(rb"\s*<(!doctype\s+html|html)\b", re.IGNORECASE)
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES = 1024  # by its specification


@dataclass(frozen=True)
class Probed:
    file: File
    row_group_bytes: list[int] = field(default_factory=list)  # Parquet: of the column; 0 = no rows
    batch_edges: list[int] = field(default_factory=list)  # Arrow: where record batches begin, and the last one ends


def try_probe(file: File, patience: Patience) -> Probed | InputError:
    """Look at a file; return what is wrong with it instead of raising that. A bad one that came from afar is fetched
    once more, as its bytes may have been damaged on their way.

    Raises:
        OutageError: its store did not answer in time.
    """
    try:
        return _probe(file, patience)
    except BadFileError as error:
        if "://" not in file.path:
            return error
    except InputError as error:
        return error
    try:
        return _probe(file, patience)
    except InputError as error:
        return error


def _probe(file: File, patience: Patience) -> Probed:
    with ReachableFile(file, patience, is_probe=True) as stream:
        if stream.size == 0:
            raise BadFileError(f"{file.path}: is empty (0 bytes)")
        file = replace(file, size_bytes=stream.size)
        if stream.size <= _MAX_POINTER_BYTES:
            _refuse_pointer(file, stream)
        if file.format == "parquet":
            return _probe_parquet(file, stream)
        if file.format == "arrow":
            return _probe_arrow(file, stream)
        _probe_lines(file, stream)
        return Probed(file)


def _refuse_pointer(file: File, stream: ReachableFile) -> None:
    # Not a bad file, which could be left out: what it stands for has only not been fetched.
    if stream.read(_MAX_POINTER_BYTES).startswith(_POINTER):
        raise InputError(
            f"{file.path}: is a Git LFS pointer of {file.size_bytes} bytes, not the file it stands for; fetch that: "
            "git lfs pull"
        )
    stream.seek(0)


# --- Parquet and Arrow


def _probe_parquet(file: File, stream: ReachableFile) -> Probed:
    """Read the footer; check the column."""
    try:
        metadata = read_footer(stream)
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        _refuse_content(file, stream, "not a Parquet file, or damaged", error)
    if metadata.num_rows == 0:
        raise BadFileError(f"{file.path}: holds no rows")
    _check_column(file, schema)
    leaf = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(file.column)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_group_bytes = [g.column(leaf).total_uncompressed_size if g.num_rows else 0 for g in groups]
    file = replace(file, num_rows=metadata.num_rows, footer_bytes=metadata.serialized_size + 8)
    return Probed(file, row_group_bytes)


def _probe_arrow(file: File, stream: ReachableFile) -> Probed:
    """Find the record batches; check the column."""
    try:
        schema, edges = find_batches(stream)
    except (OSError, pa.ArrowException) as error:
        _refuse_content(file, stream, "not an Arrow file, or damaged", error)
    if not edges:
        raise BadFileError(f"{file.path}: holds no rows")
    _check_column(file, schema)
    return Probed(file, batch_edges=edges)


def _check_column(file: File, schema: pa.Schema) -> None:
    types = {column.name: column.type for column in schema}
    if file.column not in types:
        raise InputError(_missing_column(file, types))
    if not is_text_type(types[file.column]):
        raise InputError(f"{file.path}: column {file.column!r} is {types[file.column]}, expected string")


def _refuse_content(file: File, stream: ReachableFile, expected: str, error: Exception) -> NoReturn:
    """Say that a file is not what its name says, and what it is instead if its beginning tells."""
    stream.seek(0)
    head = stream.read(_PROBE_BYTES)
    _refuse_page(file, head)
    kind, suffix = _kind_of(head)
    named = {"parquet": ".parquet", "arrow": ".arrow", "gzip": ".gz", "zstd": ".zst"}
    if kind and suffix != named[file.compression or file.format]:
        expected += f": its content is {kind}"
    raise BadFileError(f"{file.path}: {expected} ({reason_of(error)})") from error


def _refuse_page(file: File, head: bytes) -> None:
    # Not a bad file, which could be left out: the server has sent something else in its place.
    if "://" in file.path and _HTML.match(head):
        raise InputError(
            f"{file.path}: what was sent in its place is a web page (it begins {_shown(head)}); an error page of the "
            "server or of a proxy in between? Try again later, or download the file and name it by its path"
        )


def _kind_of(head: bytes) -> tuple[str | None, str | None]:
    """What a content is that is no text, and the suffix under which it is read; None for what is not known."""
    for pattern, kind, suffix in _MAGIC:
        if re.match(pattern, head, re.DOTALL):
            return kind, suffix
    return None, None


# --- Text and JSON lines


def _probe_lines(file: File, stream: ReachableFile) -> None:
    """Check that the first 64 KiB are text or JSON lines, and decompress if the name says so."""
    try:
        text = stream.decompressed(file.compression, _PROBE_BYTES) if file.compression else stream
        head = text.read(_PROBE_BYTES)
        is_whole = len(head) < _PROBE_BYTES
        if file.format == "jsonl" and not is_whole and b"\n" not in head:
            head += text.read(_MAX_LINE_BYTES)
            is_whole = len(head) < _PROBE_BYTES + _MAX_LINE_BYTES
    except OSError as error:
        _refuse_content(file, stream, f"not {file.compression}, or damaged", error)
    _check_is_text(file, head)
    lines = head.removeprefix(_UTF8_MARK).split(b"\n")
    if not is_whole and (len(lines) > 1 or file.format == "jsonl"):
        del lines[-1]  # it is cut off
    _check_encoding(file, lines)
    if file.format == "jsonl":
        _check_json(file, head.removeprefix(_UTF8_MARK), [line for line in lines if line.strip()])


def _check_is_text(file: File, head: bytes) -> None:
    name = os.path.basename(file.path)
    kind, suffix = _kind_of(head)
    if kind:
        remedy = f"expected {_EXPECTED[file.format]}"
        if suffix in (".gz", ".zst"):
            remedy = f"rename it to {name}{suffix}"
        elif suffix:
            remedy = f"rename it to {os.path.splitext(name)[0]}{suffix}"
        raise BadFileError(f"{file.path}: its content is {kind}, not text; {remedy}")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise BadFileError(_not_utf8(file, f"is {encoding}", encoding))
    num_nuls = head.count(0)
    if num_nuls > _MAX_NUL_FRACTION * len(head):
        share = f"{num_nuls / len(head):.0%} of the first {len(head):,} bytes are NUL"
        num_odd = head[1::2].count(0)
        if max(num_odd, num_nuls - num_odd) > 0.9 * num_nuls:
            encoding = "UTF-16LE" if num_odd > num_nuls / 2 else "UTF-16BE"
            raise BadFileError(_not_utf8(file, f"looks like {encoding} ({share})", encoding))
        raise BadFileError(f"{file.path}: holds binary data ({share}); expected {_EXPECTED[file.format]}")


_EXPECTED = {"text": "text in UTF-8", "jsonl": "JSON lines in UTF-8"}


def _not_utf8(file: File, what: str, encoding: str) -> str:
    return f"{file.path}: {what}, expected UTF-8; convert it: {_command(file, f'iconv -f {encoding} -t UTF-8')}"


def _command(file: File, command: str) -> str:
    """A shell's command line that applies a command to the file's text."""
    name = os.path.basename(file.path)
    unpack = {"gzip": "gzip -dc", "zstd": "zstd -dc"}
    given = f"{unpack[file.compression]} {name} | {command}" if file.compression else f"{command} {name}"
    return f"{given} > NEW_FILE"


def _check_encoding(file: File, lines: list[bytes]) -> None:
    """Refuse a file that is in another encoding; a few bad lines are counted when they are read."""
    bad = [number for number, line in enumerate(lines, 1) if not _is_utf8(line)]
    num_lines = sum(map(bool, lines))
    num_bad_bytes = sum(lines[number - 1].decode("utf-8", "replace").count("\ufffd") for number in bad)
    if len(bad) > _MAX_BAD_FRACTION * num_lines and num_bad_bytes >= _MIN_BAD_BYTES:
        what = f"is not UTF-8 ({len(bad)} of its first {num_lines} lines are not, the first of them line {bad[0]})"
        raise BadFileError(_not_utf8(file, what, "ENCODING") + " (GBK, SHIFT_JIS, WINDOWS-1252, …)")


def _is_utf8(line: bytes) -> bool:
    try:
        codecs.utf_8_decode(line, "strict", False)  # False: its last character may be cut off
    except UnicodeDecodeError:
        return False
    return True


def _check_json(file: File, head: bytes, lines: list[bytes]) -> None:
    values = [parse_json(line) for line in lines]
    records = [value for value in values if isinstance(value, dict)]
    begin = head.lstrip()
    if re.match(rb"\[\s*\{", begin) or (lines and not records and begin.startswith(b"[")):
        _refuse_json(file, "a JSON array", "jq -c '.[]'")
    if lines and not records:
        if begin.startswith(b"{") and not lines[0].rstrip().endswith(b"}"):
            _refuse_json(file, "JSON objects that go over several lines", "jq -c .")
        _refuse_page(file, head)
        types = sorted({type(value).__name__ for value in values if not isinstance(value, Reason)})
        what = f"{' and '.join(types)} values" if types else "something else than JSON"
        raise BadFileError(
            f"{file.path}: holds {what}: none of its first {len(lines)} lines is a JSON object, and the first begins "
            f"{_shown(lines[0])}; expected JSON lines, one object per line"
        )
    _check_key(file, records)


def _refuse_json(file: File, what: str, command: str) -> NoReturn:
    raise BadFileError(
        f"{file.path}: holds {what}; expected JSON lines, one object per line; convert it: {_command(file, command)}"
    )


def _check_key(file: File, records: list[dict[str, Any]]) -> None:
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


def _missing_column(file: File, types: Mapping[str, Any]) -> str:
    columns = first_of([f"{name} ({kind})" for name, kind in types.items()], _MAX_COLUMNS_SHOWN, "column(s)")
    hint = did_you_mean(file.column, types)
    return f"{file.path}: no column {file.column!r}{hint}; its columns: {', '.join(columns)}"


def _shown(raw: bytes) -> str:
    text = raw.lstrip()[:_MAX_SHOWN_BYTES].decode("utf-8", "replace")
    return repr(text.splitlines()[0] if text else "")
