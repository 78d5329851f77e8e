"""The beginning or the footer of a data file -> what it is, or what is wrong with it, before anything else is read."""

import difflib
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from distil_ray.data.documents import json_object
from distil_ray.data.files import BadFileError, File, ReachableFile, first_of, format_of
from distil_ray.data.footers import read_footer
from distil_ray.data.sources import Candidate
from distil_ray.errors import InputError, reason_of
from distil_ray.outages import Patience

_MAGIC = {
    b"\x1f\x8b": ("gzip", ".gz"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst"),
    b"PAR1": ("Parquet", ".parquet"),
}
_PROBE_BYTES = 64 * 2**10
_MAX_COLUMNS_SHOWN = 20


@dataclass(frozen=True)
class Probed:
    file: File
    row_group_bytes: list[int] = field(default_factory=list)  # Parquet: of the column; 0 = no rows


def try_probe(candidate: Candidate, patience: Patience) -> Probed | InputError:
    try:
        return _probe(candidate, patience)
    except InputError as error:
        return error


def _probe(candidate: Candidate, patience: Patience) -> Probed:
    recognised = format_of(candidate.path)
    assert recognised is not None
    file_format, compression = recognised
    with ReachableFile(candidate, patience) as stream:
        if stream.size == 0:
            raise BadFileError(f"{candidate.path}: is empty (0 bytes)")
        file = File(
            candidate.name,
            candidate.path,
            file_format,
            compression,
            candidate.column,
            size_bytes=stream.size,
            version=candidate.version,
        )
        if file_format == "parquet":
            return _probe_parquet(file, stream)
        _probe_lines(file, stream)
        return Probed(file)


def _probe_parquet(file: File, stream: ReachableFile) -> Probed:
    """Read the footer; check the column."""
    try:
        metadata = read_footer(stream)
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise BadFileError(f"{file.path}: not a Parquet file, or damaged ({reason_of(error)})") from error
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
    file = replace(file, num_rows=metadata.num_rows, footer_bytes=metadata.serialized_size + 8)
    return Probed(file, row_group_bytes)


def _probe_lines(file: File, stream: ReachableFile) -> None:
    """Check that the first 64 KiB are text or JSON lines, and decompress if the name says so."""
    try:
        text = stream.decompressed(file.compression, _PROBE_BYTES) if file.compression else stream
        head = text.read(_PROBE_BYTES)
    except OSError as error:
        raise BadFileError(f"{file.path}: not {file.compression}, or damaged ({reason_of(error)})") from error
    for magic, (kind, suffix) in _MAGIC.items():
        if head.startswith(magic):
            name = os.path.basename(file.path)
            right_name = (os.path.splitext(name)[0] if kind == "Parquet" else name) + suffix
            raise BadFileError(f"{file.path}: its content is {kind}, not text; rename it to {right_name}")
    if file.format == "jsonl":
        is_whole = len(head) < _PROBE_BYTES
        lines = head.split(b"\n") if is_whole else head.split(b"\n")[:-1]
        _probe_json(file, head, [record for line in lines if (record := json_object(line)) is not None])


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
    columns = first_of([f"{name} ({kind})" for name, kind in types.items()], _MAX_COLUMNS_SHOWN, "column(s)")
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"{file.path}: no column {file.column!r}{hint}; its columns: {', '.join(columns)}"
