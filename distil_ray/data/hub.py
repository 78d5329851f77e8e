"""Repositories of the Hugging Face Hub: pinned to a commit, listed in few calls, read in ranges.

The Hub limits calls of its API, and how often it says where a file's bytes are stored. So the driver lists a repository
once, at a commit. Readers need only that listing: they ask for a file's location once in a while, and read the bytes
from there, which is not limited.
"""

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote, urlsplit

from distil_ray.errors import reason_of
from distil_ray.outages import Patience

_ADDRESS = re.compile(
    r"hf://(?:(datasets|spaces|models)/)?(?!buckets/)([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")
_PAGE = re.compile(r"(https?://[^/]+/(?:datasets/)?[^/]+/[^/]+)/resolve/")
_PATHS_PER_CALL = 500
_TIMEOUT_SECONDS = 30.0
_LOCATION_SECONDS = 300.0  # signed addresses are good for an hour
_EXPIRED = (400, 401, 403, 404, 410)

_locations: dict[str, tuple[str, float]] = {}  # where the bytes of an address are stored, and until when


class HubPath(NamedTuple):
    """A place in a repository. ``inner`` is a path below its root, or a glob; ``revision`` None is the main branch."""

    kind: str  # "dataset", "space" or "model"
    repo_id: str
    revision: str | None
    inner: str

    @classmethod
    def parse(cls, url: str) -> Self | None:
        """Take an ``hf://`` address apart; None if it is none of a repository."""
        match = _ADDRESS.fullmatch(url)
        if match is None:
            return None
        kind, repo_id, revision, inner = match.groups()
        return cls((kind or "models").removesuffix("s"), repo_id, unquote(revision) if revision else None, inner or "")

    def __str__(self) -> str:
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{prefix}{self.repo_id}{at}/{self.inner}".rstrip("/")

    @property
    def repository(self) -> str:
        """What does not answer in an outage, for messages."""
        return f"the Hugging Face Hub ({self.repo_id})"

    def pinned(self, patience: Patience) -> Self:
        """The same place at the commit that the revision points to now; one call, none if it is a commit already."""
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self
        info = _ask(self, patience, "repo_info", timeout=_TIMEOUT_SECONDS)
        return self._replace(revision=str(info.sha))


class HubEntry(NamedTuple):
    """A file as the Hub lists it. ``version`` is the ETag of its bytes."""

    inner: str
    size_bytes: int
    version: str


def list_below(place: HubPath, *, recursive: bool, patience: Patience) -> list[HubEntry]:
    """Return all files below a folder, a call for a thousand entries.

    Raises:
        FileNotFoundError: there is no such folder.
        OutageError: the Hub does not answer.
        Exception: huggingface_hub's.
    """
    from huggingface_hub.errors import EntryNotFoundError

    try:
        entries = _ask(place, patience, "list_repo_tree", path_in_repo=place.inner or None, recursive=recursive)
    except EntryNotFoundError as error:
        raise FileNotFoundError(reason_of(error)) from error
    return [file for file in map(_file_of, entries) if file is not None]


def look_up(place: HubPath, inners: list[str], patience: Patience) -> dict[str, HubEntry | None]:
    """Return the files of these paths, a call for 500 of them; None is a folder, and what is absent is left out."""
    found: dict[str, HubEntry | None] = {}
    for start in range(0, len(inners), _PATHS_PER_CALL):
        entries = _ask(place, patience, "get_paths_info", paths=inners[start : start + _PATHS_PER_CALL])
        found |= {entry.path: _file_of(entry) for entry in entries}
    return found


def hush() -> None:
    """Leave it to `Patience` to tell of outages: the library would print two lines for each of its own attempts."""
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)


def fetch(place: HubPath, patience: Patience) -> None:
    """Download a small file into the cache of huggingface_hub, if there is such a file."""
    hush()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def attempt() -> None:
        try:
            hf_hub_download(place.repo_id, place.inner, revision=place.revision, repo_type=place.kind)
        except LocalEntryNotFoundError:  # what an outage becomes
            raise
        except EntryNotFoundError:
            pass

    patience.wait_out(place.repository, attempt)


def _file_of(entry: Any) -> HubEntry | None:
    if not hasattr(entry, "size"):  # a folder
        return None
    return HubEntry(entry.path, int(entry.size), entry.lfs.sha256 if entry.lfs else str(entry.blob_id))


def _ask(place: HubPath, patience: Patience, method: str, **arguments: Any) -> Any:
    """Call a method of `HfApi` for a repository, with patience."""
    hush()
    from huggingface_hub import HfApi

    def attempt() -> Any:
        try:
            answer = getattr(HfApi(), method)(place.repo_id, revision=place.revision, repo_type=place.kind, **arguments)
            return list(answer) if isinstance(answer, Iterator) else answer  # an iterator asks only when it is read
        except json.JSONDecodeError as error:  # something else has answered, such as a proxy's page
            raise ConnectionError(f"what answered is not the API ({error})") from error

    return patience.wait_out(place.repository, attempt)


class HubFile:
    """A file at a commit, read in ranges."""

    def __init__(self, place: HubPath, size: int, version: str) -> None:
        from huggingface_hub import hf_hub_url

        hush()
        self.size, self.version, self._commit = size, version, place.revision
        self._url = hf_hub_url(place.repo_id, place.inner, repo_type=place.kind, revision=place.revision)

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)``, which must be within the file.

        Raises:
            ConnectionError: what came is not of this file, or not all of it.
            Exception: huggingface_hub's and its HTTP client's.
        """
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        location, is_kept = self._location()
        response = self._get(location, start, stop)
        if is_kept and response.status_code in _EXPIRED:
            _locations.pop(self._url, None)
            location, _ = self._location()
            response = self._get(location, start, stop)
        hf_raise_for_status(response)
        content = bytes(response.content)
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code == 200 and len(content) == self.size:  # the server does not support ranges
            return content[start:stop]
        if total != str(self.size) or len(content) != stop - start:
            raise ConnectionError(
                f"asked for bytes {start} to {stop} of {self.size}, {urlsplit(location).netloc} answered with "
                f"{len(content)} bytes of {total or 'something else'}"
            )
        return content

    def _get(self, location: str, start: int, stop: int) -> Any:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if urlsplit(location).netloc == urlsplit(self._url).netloc:  # a token is for the Hub alone
            headers |= build_hf_headers()
        return get_session().request("GET", location, headers=headers, timeout=_TIMEOUT_SECONDS)

    def _location(self) -> tuple[str, bool]:
        """Where the bytes are now, and whether that is known from before."""
        from huggingface_hub import get_hf_file_metadata, get_token

        location, expiry = _locations.get(self._url, ("", 0.0))
        if time.monotonic() < expiry:
            return location, True
        found = get_hf_file_metadata(self._url, token=get_token(), timeout=_TIMEOUT_SECONDS)
        # A commit does not change: another size is the answer of something between here and the Hub, and so is one
        # that names neither the commit nor the ETag.
        is_this_file = found.commit_hash == self._commit or found.etag == self.version
        if found.size not in (None, self.size) or not is_this_file:
            raise ConnectionError(
                f"{urlsplit(self._url).netloc} answered with {found.size} bytes (ETag {found.etag}), "
                f"expected {self.size} bytes ({self.version})"
            )
        _locations[self._url] = found.location, time.monotonic() + _LOCATION_SECONDS
        return str(found.location), False


def advice_on(error: BaseException) -> str:
    """What to do about a Hub that denies access, to be added to what it says; often empty."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return (
            " Text is read from the Hub itself, not from its cache: give the folder of a copy, or unset HF_HUB_OFFLINE"
        )
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) not in (401, 403, 404):
        cause = error.__cause__ or error.__context__
        return advice_on(cause) if cause is not None else ""
    page = _PAGE.match(str(response.url)) if isinstance(error, GatedRepoError) and response is not None else None
    gated = f" It is gated: ask for access at {page[1]}." if page else ""
    host = socket.gethostname()
    if get_token() is None:
        return (
            f"{gated} This node ({host}) has no Hugging Face token. If the repository is private or gated, hand "
            'HF_TOKEN on to all nodes: ray job submit --runtime-env-json \'{"env_vars": {"HF_TOKEN": "hf_..."}}\''
        )
    return (
        f"{gated} The Hugging Face token of this node ({host}) gives no access, or there is no such repository or file"
    )
