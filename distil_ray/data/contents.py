"""Data files -> what tells their bytes apart: a checksum, or the version that their store gives them."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from distil_ray.data.files import File

_NUM_THREADS = 4  # hashing releases Python's lock
_SHA256, _GIT_BLOB = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        name: of the file, below its source.
        kind: of ``value``; values of different kinds cannot be compared.
        value: differs if the bytes do.
        stamp: of a local file: path, size and time of change when it was hashed.
    """

    name: str
    kind: str
    value: str
    stamp: str = ""


def contents_of(files: Sequence[File], known: Sequence[Content] = ()) -> list[Content]:
    """Return what each file holds; a local one that has not been touched since ``known`` is not read again.

    Raises:
        OSError: a file cannot be read.
    """
    hashed = {one.stamp: one for one in known if one.stamp}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(lambda file: _content_of(file, hashed), files))


def _content_of(file: File, hashed: Mapping[str, Content]) -> Content:
    if "://" in file.path:
        protocol = file.path.partition("://")[0]
        is_hub = protocol == "hf"
        if is_hub and _SHA256.fullmatch(file.version):
            return Content(file.name, "sha256", file.version)
        kind = "git" if is_hub and _GIT_BLOB.fullmatch(file.version) else f"etag of {protocol}"
        return Content(file.name, kind if file.version else "", file.version)
    status = os.stat(file.path)
    stamp = f"{file.path} {status.st_size} {status.st_mtime_ns}"
    if stamp in hashed:
        return hashed[stamp]._replace(name=file.name)
    with open(file.path, "rb") as content:
        return Content(file.name, "sha256", hashlib.file_digest(content, "sha256").hexdigest(), stamp)


def changed_contents(old: Sequence[Content], new: Sequence[Content]) -> list[str]:
    """Return the names of files whose bytes are known to differ. Both lists are of the same files in the same order."""
    return [
        was.name
        for was, now in zip(old, new, strict=False)
        if was.name == now.name and was.kind and was.kind == now.kind and was.value != now.value
    ]
