"""A unit's bytes -> documents, in bounded memory whatever the file holds.

A line belongs to the byte range in which it starts. A text document that straddles two ranges is cut there, at the line
boundary, so every line is read exactly once. A text document is also cut when it reaches `MAX_DOCUMENT_BYTES`, and a
longer JSON line is skipped. A `Skip` stands for a document that cannot be used.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distil_ray.data.arrow import read_batches
from distil_ray.data.files import STREAM_BYTES, File, ReachableFile
from distil_ray.data.footers import read_footer
from distil_ray.data.tally import Reason, Skip
from distil_ray.data.values import column_texts, is_json_column, is_json_type, text_of_bytes, text_of_line


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
