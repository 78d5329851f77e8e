"""Reading what W&B has written offline: a log of LevelDB's form, whose records are protocol buffers."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _FILE_HEADER, _HEADER = 32_768, 7, 7
_FULL, _LAST = 1, 4


def wandb_records(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the content of each record."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), _FILE_HEADER, b""
    assert content.startswith(b":W&B")
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:  # too little for another header: filled up
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += _HEADER
        parts += content[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            name = record.WhichOneof("record_type")
            yield name, getattr(record, name)
