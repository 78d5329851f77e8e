"""A unit of a file -> its documents: each a text, or the reason why there is none."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distil_ray.data.arrow import read_batches
from distil_ray.data.files import STREAM_BYTES, File, ReachableFile, read_footer
from distil_ray.data.tally import Reason, Skip

_TEXT_KINDS = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)


def text_of_line(line: bytes, key: str) -> str | Reason:
    """Return the text of a JSON line, which has it under ``key``."""
    record = parse_json(line)
    if isinstance(record, Reason):
        return record
    if not isinstance(record, dict):
        return Reason.OTHER_TYPE
    return _text_of(record[key]) if key in record else Reason.NO_KEY


def parse_json(raw: bytes) -> Any:
    """Parse bytes that should be JSON; a `Reason` stands for those that are not."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    except (ValueError, RecursionError):  # not JSON, or brackets nested without end
        return Reason.NOT_JSON


def _decode_json(raw: bytes) -> str | Reason:
    value = parse_json(raw)
    return value if isinstance(value, Reason) else _text_of(value)


def _text_of(value: Any) -> str | Reason:
    """A value of JSON as text, or why it is none."""
    if value is None:
        return Reason.NULL
    return _usable(value) if isinstance(value, str) else Reason.OTHER_TYPE


def text_of_bytes(raw: bytes) -> str | Reason:
    """The text of bytes that should be UTF-8."""
    try:
        return _usable(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Reason.NOT_UTF8


def _usable(text: str) -> str | Reason:
    """The text, unless there is nothing to read or a lone surrogate: JSON can spell one, no tokenizer takes it."""
    if not text or text.isspace():
        return Reason.BLANK
    try:
        text.encode()  # several times as fast as a search
    except UnicodeEncodeError:
        return Reason.SURROGATE
    return text


def is_json_column(schema: pq.ParquetSchema, column: str) -> bool:
    """Whether a Parquet column holds text in JSON's spelling: quoted, with escapes."""
    columns = (schema.column(index) for index in range(len(schema)))
    return any(leaf.path == column and leaf.logical_type.type == "JSON" for leaf in columns)


def is_text_type(value_type: pa.DataType) -> bool:
    """Whether a column of this type may hold text: strings, or bytes without a mark that says what they are."""
    if isinstance(value_type, pa.BaseExtensionType):
        return is_json_type(value_type) and is_text_type(value_type.storage_type)
    if pa.types.is_dictionary(value_type):
        return is_text_type(value_type.value_type)
    return any(is_kind(value_type) for is_kind in _TEXT_KINDS)


def is_json_type(value_type: pa.DataType) -> bool:
    """Whether this is Arrow's type for text in JSON's spelling."""
    return bool(getattr(value_type, "extension_name", None) == "arrow.json")


def column_texts(values: pa.Array, *, is_json: bool) -> Iterator[str | Reason]:
    """Yield each value of a column of a type of `is_text_type` as text, or why it is none."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    decode = _decode_json if is_json else text_of_bytes
    raw = values.cast(pa.large_binary())  # because Arrow does not check that a string column is UTF-8
    raw.validate(full=True)  # nor, in an IPC file, that its offsets are within the data
    for value in raw.to_pylist():
        yield Reason.NULL if value is None else decode(value)


class Line(NamedTuple):
    """A line of a file, or a piece of a long one."""

    content: bytes  # without the newline
    is_ended: bool  # False for a piece that is not the line's last
    offset: int  # of its first byte in the (decompressed) file


MAX_DOCUMENT_BYTES = 64 * 2**20

_TAIL_BYTES = 256 * 2**10  # read at once beyond a range's end, for its last line
_TAIL_SHARE = 16  # and as much of the range's size at first, together with the range
_DECOMPRESSED_BYTES = 2**20  # at once
_MAX_ROWS_PER_BATCH, _BYTES_PER_BATCH = 64, 2**20  # of a Parquet file


def documents_of(file: File, stream: ReachableFile, start: int, stop: int) -> Iterator[str | Skip]:
    if file.format == "parquet":
        return _parquet_documents(file, stream, start)
    if file.format == "arrow":
        return _arrow_documents(stream, start, stop, file.column)
    if file.compression is not None:
        decompressed = stream.decompressed(file.compression)
        lines = _split_lines(iter(lambda: decompressed.read(_DECOMPRESSED_BYTES), b""), 0, sys.maxsize)
    else:
        lines = _range_lines(stream, start, stop)
    return _text_documents(lines) if file.format == "text" else _json_documents(lines, file.column)


def _parquet_documents(file: File, stream: ReachableFile, row_group: int) -> Iterator[str | Skip]:
    # buffer_size makes Arrow stream the column's pages instead of loading the whole chunk. It reads nothing beyond it.
    footer = read_footer(stream, file.footer_bytes)
    parquet = pq.ParquetFile(
        pa.PythonFile(stream, mode="r"),
        metadata=footer,
        pre_buffer=False,
        buffer_size=STREAM_BYTES,
        page_checksum_verification=True,
    )
    is_json = is_json_column(parquet.metadata.schema, file.column)
    rows = itertools.count()
    num_rows, num_bytes = footer.row_group(row_group).num_rows, footer.row_group(row_group).total_byte_size
    batch_rows = min(max(num_rows * _BYTES_PER_BATCH // max(num_bytes, 1), 1), _MAX_ROWS_PER_BATCH)
    groups, columns = [row_group], [file.column]
    for batch in parquet.iter_batches(batch_rows, row_groups=groups, columns=columns, use_threads=False):
        for text, row in zip(column_texts(batch.column(0), is_json=is_json), rows, strict=False):
            yield Skip(text, f"row {row} of row group {row_group}") if isinstance(text, Reason) else text


def _arrow_documents(stream: ReachableFile, start: int, stop: int, column: str) -> Iterator[str | Skip]:
    for offset, batch in read_batches(stream, start, stop):
        values = batch.column(column)
        for first in range(0, len(values), _MAX_ROWS_PER_BATCH):
            rows = values.slice(first, _MAX_ROWS_PER_BATCH)
            for row, text in enumerate(column_texts(rows, is_json=is_json_type(values.type)), first):
                if isinstance(text, Reason):
                    yield Skip(text, f"row {row} of the record batch at byte {offset}")
                else:
                    yield text


def _range_lines(stream: ReachableFile, start: int, stop: int) -> Iterator[Line]:
    """Yield the lines that start in [start, stop); reads little more than that range if there are none."""
    begin = max(start - 1, 0)  # the byte before tells whether a line starts at `start`
    stream.seek(begin)
    chunk = stream.read(stop - begin + min((stop - begin) // _TAIL_SHARE, _TAIL_BYTES))
    chunk, beyond = chunk[: stop - begin], chunk[stop - begin :]
    if start > 0:
        newline = chunk.find(b"\n", 0, stop - start)
        if newline < 0:
            return
        chunk = chunk[newline + 1 :]
    tail = iter(lambda: stream.read(_TAIL_BYTES), b"")
    yield from _split_lines(itertools.chain([chunk, beyond], tail), stop - len(chunk), num_bytes=len(chunk))


def _split_lines(chunks: Iterable[bytes], begin: int, num_bytes: int) -> Iterator[Line]:
    """Yield the lines that start within the first `num_bytes`, those over MAX_DOCUMENT_BYTES in pieces.

    `begin` is where in the file the first chunk begins.
    """
    offset = 0
    unfinished = bytearray()
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield Line(b"".join((unfinished, piece)), True, begin + offset - len(unfinished))
            unfinished = bytearray()
            offset += len(piece) + 1
            if offset >= num_bytes:
                return
        offset += len(rest)
        unfinished += rest
        if len(unfinished) > MAX_DOCUMENT_BYTES:
            cut = _character_boundary(unfinished, MAX_DOCUMENT_BYTES)
            yield Line(bytes(unfinished[:cut]), False, begin + offset - len(unfinished))
            del unfinished[:cut]
    if unfinished:
        yield Line(bytes(unfinished), True, begin + offset - len(unfinished))


def _character_boundary(text: bytearray, position: int) -> int:
    """Return the last position up to `position` at which a UTF-8 character starts."""
    # A character has at most three continuation bytes, which look like 0b10xxxxxx.
    return next((p for p in range(position, position - 4, -1) if text[p] & 0xC0 != 0x80), position)


def _text_documents(lines: Iterable[Line]) -> Iterator[str | Skip]:
    document: list[bytes] = []
    num_bytes = begin = 0
    for line in lines:
        is_blank = not line.content or line.content.isspace()
        if not is_blank:
            if not document:
                begin = line.offset
            document.append(line.content.removesuffix(b"\r"))
            num_bytes += len(line.content)
        if document and (is_blank or not line.is_ended or num_bytes >= MAX_DOCUMENT_BYTES):
            yield _at_byte(text_of_bytes(b"\n".join(document)), begin)
            document, num_bytes = [], 0
    if document:
        yield _at_byte(text_of_bytes(b"\n".join(document)), begin)


def _json_documents(lines: Iterable[Line], key: str) -> Iterator[str | Skip]:
    begin: int | None = None  # of a line that is too long
    for line in lines:
        if not line.is_ended:
            begin = line.offset if begin is None else begin
        elif begin is not None:
            yield Skip(Reason.TOO_LONG, f"byte {begin}")
            begin = None
        elif line.content and not line.content.isspace():
            yield _at_byte(text_of_line(line.content, key), line.offset)
    if begin is not None:
        yield Skip(Reason.TOO_LONG, f"byte {begin}")


def _at_byte(text: str | Reason, offset: int) -> str | Skip:
    return Skip(text, f"byte {offset}") if isinstance(text, Reason) else text
