"""A unit's bytes -> documents, in bounded memory whatever the file holds.

A line belongs to the byte range in which it starts. A text document that straddles two ranges is cut there, at the line
boundary, so every line is read exactly once. A text document is also cut when it reaches `MAX_DOCUMENT_BYTES`, and a
longer JSON line is skipped. None stands for a document that is skipped: null, blank, or not UTF-8.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distil_ray.data.files import STREAM_BYTES, File, ReachableFile
from distil_ray.data.footers import read_footer

Line = tuple[bytes, bool]  # the bytes without the newline; False if they are a piece and the line goes on

MAX_DOCUMENT_BYTES = 64 * 2**20

_TAIL_BYTES = 256 * 2**10  # read at once beyond a range's end, for its last line
_TAIL_SHARE = 16  # and as much of the range's size at first, together with the range
_DECOMPRESSED_BYTES = 2**20  # at once
_MAX_ROWS_PER_BATCH, _BYTES_PER_BATCH = 64, 2**20  # of a Parquet file


def documents_of(file: File, stream: ReachableFile, start: int, stop: int) -> Iterator[str | None]:
    if file.format == "parquet":
        return _parquet_documents(file, stream, start)
    if file.compression is not None:
        decompressed = stream.decompressed(file.compression)
        lines = _split_lines(iter(lambda: decompressed.read(_DECOMPRESSED_BYTES), b""), sys.maxsize)
    else:
        lines = _range_lines(stream, start, stop)
    return _text_documents(lines) if file.format == "text" else _json_documents(lines, file.column)


def _parquet_documents(file: File, stream: ReachableFile, row_group: int) -> Iterator[str | None]:
    # buffer_size makes Arrow stream the column's pages instead of loading the whole chunk. It reads nothing beyond it.
    footer = read_footer(stream, file.footer_bytes)
    parquet = pq.ParquetFile(
        pa.PythonFile(stream, mode="r"),
        metadata=footer,
        pre_buffer=False,
        buffer_size=STREAM_BYTES,
        page_checksum_verification=True,
    )
    num_rows, num_bytes = footer.row_group(row_group).num_rows, footer.row_group(row_group).total_byte_size
    batch_rows = min(max(num_rows * _BYTES_PER_BATCH // max(num_bytes, 1), 1), _MAX_ROWS_PER_BATCH)
    groups, columns = [row_group], [file.column]
    for batch in parquet.iter_batches(batch_rows, row_groups=groups, columns=columns, use_threads=False):
        values = batch.column(0)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        # As bytes, because Arrow does not check that a string column is UTF-8.
        for value in values.cast(pa.large_binary()).to_pylist():
            yield None if value is None else _decode(value)


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
    yield from _split_lines(itertools.chain([chunk, beyond], tail), num_bytes=len(chunk))


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
            text = (json_object(line) or {}).get(column)
            yield text if isinstance(text, str) and _is_usable(text) else None


def json_object(line: bytes) -> dict[str, Any] | None:
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
