"""An Arrow file (IPC, as `save_to_disk` writes it) -> the places of its record batches; a place -> its batches.

pyarrow reads such a file from its beginning or by the footer that a stream does not have, and never says at which bytes
its batches begin. So the headers of the messages, which are flatbuffers, are looked at here.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from distil_ray.data.files import ReachableFile

FILE_MAGIC = b"ARROW1\0\0"
STREAM_MAGIC = b"\xff\xff\xff\xff"  # in front of each message

_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # Message.fbs: MessageHeader
_HEADER_TYPE, _BODY_LENGTH = 1, 3  # Message.fbs: numbers of the fields of Message


class Message(NamedTuple):
    """What a message is, and its bytes in the file."""

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
    """Yield the record batches within the bytes [start, stop), each with its first byte; one is in memory at a time."""
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
