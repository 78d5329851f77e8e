"""Footers of Parquet files, each read and parsed once a process, however many row groups are read with it."""

import struct
import threading
from collections import OrderedDict

import pyarrow as pa
import pyarrow.parquet as pq

from distil_ray.data.files import ReachableFile

_GUESSED_BYTES = 64 * 2**10
_KEPT_BYTES = 32 * 2**20  # as they lie in files; parsed, they take six times as much
_MAGIC = b"PAR1"

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
    if footer is None:
        footer = pq.read_metadata(pa.BufferReader(_read_tail(stream, footer_bytes)))
    with _lock:
        _kept[key] = footer
        while len(_kept) > 1 and sum(one.serialized_size for one in _kept.values()) > _KEPT_BYTES:
            _kept.popitem(last=False)
    return footer


def _read_tail(stream: ReachableFile, footer_bytes: int) -> bytes:
    """Return the file's end, from the footer's beginning or before it (any bytes if it has no footer)."""
    tail_bytes = footer_bytes or _GUESSED_BYTES
    stream.seek(max(stream.size - tail_bytes, 0))
    tail = stream.read(tail_bytes)
    if not tail.endswith(_MAGIC) or len(tail) < 8:
        return tail
    needed = 8 + int(struct.unpack("<I", tail[-8:-4])[0])
    if len(tail) < needed <= stream.size:
        stream.seek(stream.size - needed)
        tail = stream.read(needed - len(tail)) + tail
    return tail
