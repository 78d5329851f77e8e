"""Sources -> the data files that they name: a path, a glob, a folder, a Hub data set, or documentation strings."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from distil_ray.config import Source
from distil_ray.data.docstrings import docstring_folder
from distil_ray.data.files import SUPPORTED, File, Format, file_system, format_of, reaching, version_of
from distil_ray.data.hub import HubEntry, HubPath, advice_on, fetch, list_below, look_up
from distil_ray.errors import InputError, OutageError, did_you_mean, first_of, reason_of
from distil_ray.outages import AT_START, Patience

_GLOB = re.compile(r"[*?[]")
_MAX_NAMES_SHOWN, _MAX_CONFIGURATIONS_SHOWN = 5, 10

# Files beside the data that hold no text to learn from; _DESCRIPTIONS are of `save_to_disk` of `datasets`.
_DOCUMENTATION = re.compile(
    r"(readme|licen[sc]e|copying|notice|citation|changelog)(\.(md|rst|cff|bib))?$", re.IGNORECASE
)
_DESCRIPTIONS = ("dataset_info.json", "state.json", "dataset_dict.json")


def commits_of(sources: Sequence[Source], paths: Iterable[str]) -> dict[str, str]:
    """Return the commits that ``paths`` are at, by repository of the Hub as the sources name it."""
    places = filter(None, map(HubPath.parse, paths))
    commits = {(place.kind, place.repo_id): place.revision for place in places if place.revision}
    named = filter(None, map(_repository_of, sources))
    return {str(one): commits[one.kind, one.repo_id] for one in named if (one.kind, one.repo_id) in commits}


def at_commit(source: Source, commits: Mapping[str, str]) -> Source:
    """Return the source at the commit that `commits_of` found for its repository, or as it is."""
    place = _repository_of(source)
    commit = None if place is None else commits.get(str(place))
    if place is None or commit is None:
        return source
    if source.hub:
        return source.model_copy(update={"revision": commit})
    given = HubPath.parse(source.path or "")
    assert given is not None
    return source.model_copy(update={"path": str(given._replace(revision=commit))})


def _repository_of(source: Source) -> HubPath | None:
    """The repository that a source names, at the revision that it names; None if it is none of the Hub."""
    if source.hub:
        return None if os.path.isdir(source.hub) else HubPath("dataset", source.hub, source.revision, "")
    place = HubPath.parse(source.path or "")
    return place and place._replace(inner="")


class _Listed(NamedTuple):
    name: str
    path: str
    size_bytes: int = 0
    version: str = ""


class SkippedFile(NamedTuple):
    path: str
    reason: str


def find_files(source: Source, patience: Patience = AT_START) -> tuple[list[File], list[SkippedFile]]:
    """Return the source's data files sorted by name, those of the Hub at a commit, and the files beside them.

    Raises:
        InputError: there is no such source, or it has files of other formats.
        OutageError: a store or the Hub did not answer in time.
    """
    if source.docstrings:
        listed = _find_at_path(str(docstring_folder(source.split)), patience)
    else:
        listed = _find_on_hub(source, patience) if source.hub else _find_at_path(source.path or "", patience)
    reasons = _left_out([file.path for file in listed], source.format)
    files, unsupported = [], []
    for file in sorted(listed):
        recognized = format_of(file.path, source.format)
        if file.path in reasons:
            continue
        if recognized is None:
            unsupported.append(file.path)
            continue
        files.append(
            File(file.name, file.path, *recognized, source.column, size_bytes=file.size_bytes, version=file.version)
        )
    if unsupported:
        shown = ", ".join(first_of(unsupported, _MAX_NAMES_SHOWN, "file(s)"))
        raise InputError(
            f"unsupported file(s): {shown}. Supported: {SUPPORTED}. Name only those, by a glob, or say what they are "
            "by the source's key format: text, jsonl, parquet or arrow (the last two not compressed)"
        )
    return files, [SkippedFile(path, reason) for path, reason in sorted(reasons.items())]


def _left_out(paths: list[str], given: Format | None) -> dict[str, str]:
    """Return why files are left out that only describe the others; none are if there are no others."""
    names = {path: path.rpartition("/")[2] for path in paths}
    reasons = {
        path: "documentation beside the data files" for path, name in names.items() if _DOCUMENTATION.match(name)
    }
    if given in (None, "arrow") and any(name.endswith(".arrow") for name in names.values()):
        described = "describes the Arrow files"
        reasons |= {path: described for path, name in names.items() if name in _DESCRIPTIONS}
    return reasons if len(reasons) < len(paths) else {}


# --- Paths


def _find_at_path(path: str, patience: Patience) -> list[_Listed]:
    """Return the file, the glob's matches, or all files below the folder."""
    with reaching(path):
        try:
            place = HubPath.parse(path)
            if place is not None:
                found = _find_in_repository(place.pinned(patience), patience)
            else:
                found = patience.wait_out(path, lambda: _find_in_store(path))
        except FileNotFoundError as error:
            advice = advice_on(error) if path.startswith("hf://") else ""
            raise InputError(f"no such file or folder: {path} ({reason_of(error)}{advice})") from error
        if not found:
            raise InputError(f"no data files match or are below {path}")
        return found


def _find_in_store(path: str) -> list[_Listed]:
    fs, inner = file_system(path)
    fs.invalidate_cache()  # a listing from earlier in this process may be out of date
    root, entries = _match(fs, inner)
    if isinstance(fs, LocalFileSystem):
        return [_Listed(entry["name"][len(root) + 1 :], entry["name"]) for entry in entries]
    return [
        _Listed(entry["name"][len(root) + 1 :], fs.unstrip_protocol(entry["name"]), entry["size"], version_of(entry))
        for entry in entries
    ]


def _match(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the folder at the root of `path`, and the files that it names below it, as listed."""
    try:
        entry = fs.info(path)
        if entry["type"] == "file":
            return path.rpartition("/")[0], [entry | {"name": path}]
        return path.rstrip("/"), list(_walk(fs, path, max_depth=None))
    except FileNotFoundError:
        if not _GLOB.search(path):
            raise
    root, max_depth = _root_of(path)
    pattern = re.compile(glob_translate(path))
    return root, [entry for entry in _walk(fs, root or "/", max_depth) if pattern.match(entry["name"])]


def _root_of(glob: str) -> tuple[str, int | None]:
    """Return the folder that holds the glob's matches, and how deep they are below it; None is any depth."""
    root = _GLOB.split(glob, maxsplit=1)[0].rpartition("/")[0]
    return root, None if "**" in glob else glob[len(root) :].count("/")


def _walk(fs: fsspec.AbstractFileSystem, folder: str, max_depth: int | None) -> Iterator[dict[str, Any]]:
    """Yield the entries of all files below `folder`; names that begin with `_` or `.` are left out."""
    # Not fs.walk, fs.find or fs.glob: they leave out folders that they may not list, without a word.
    for entry in fs.ls(folder, detail=True):
        path = entry["name"].rstrip("/")
        is_itself = path == folder.rstrip("/")  # object stores list a folder's marker among its files
        if is_itself or path.rpartition("/")[2].startswith(("_", ".")):
            continue
        if entry["type"] != "directory":
            yield entry | {"name": path}
        elif max_depth is None:
            yield from _walk(fs, path, None)
        elif max_depth > 1:
            yield from _walk(fs, path, max_depth - 1)


def _find_in_repository(place: HubPath, patience: Patience) -> list[_Listed]:
    """Like `_find_in_store`, with one listing of all folders at once."""
    inner = place.inner.rstrip("/")
    named: dict[str, HubEntry | None] = look_up(place, [inner], patience) if inner else {inner: None}
    file = named.get(inner)
    if file is not None:
        root, entries = inner.rpartition("/")[0], [file]
    elif inner in named:
        root, entries = inner, list_below(place._replace(inner=inner), recursive=True, patience=patience)
    elif _GLOB.search(inner):
        root, max_depth = _root_of(inner)
        pattern = re.compile(glob_translate(inner))
        listed = list_below(place._replace(inner=root), recursive=max_depth != 1, patience=patience)
        entries = [entry for entry in listed if pattern.match(entry.inner)]
    else:
        raise FileNotFoundError(f"{place.repository} has none at {place.revision}")
    start = len(root) + 1 if root else 0
    return [
        _Listed(entry.inner[start:], str(place._replace(inner=entry.inner)), entry.size_bytes, entry.version)
        for entry in entries
        if entry is file or not any(part.startswith(("_", ".")) for part in entry.inner[start:].split("/"))
    ]


# --- Data sets of the Hub


def _find_on_hub(source: Source, patience: Patience) -> list[_Listed]:
    """Return the split's data files, without downloading them."""
    from datasets import load_dataset_builder  # takes half a second, and only Hub sources need it

    name = str(source.hub)
    asked = f"Hub data set {name!r} (name {source.name!r}, revision {source.revision!r})"
    try:
        place, revision = None, source.revision
        if not os.path.isdir(name):
            place = HubPath("dataset", name, revision, "README.md").pinned(patience)
            revision = place.revision
            # Where the card does not arrive, the library takes it for absent, and then all files for data.
            fetch(place, patience)

        def attempt() -> Any:
            builder = load_dataset_builder(name, name=source.name, revision=revision)
            if place is not None and not builder.config.data_files:  # it has fallen back on what was prepared earlier
                raise ConnectionError("no list of its files came")
            return builder

        builder = patience.wait_out(f"the Hugging Face Hub ({name})", attempt)
    except OutageError as error:
        raise OutageError(f"{asked} cannot be reached: {reason_of(error)}") from error
    except Exception as error:  # such as ValueError, HTTP and YAML errors
        known = _configurations(name, revision) if isinstance(error, ValueError) else []
        if known and source.name not in known:
            raise InputError(f"Hub data set {name!r}: {_not_among('configuration', source.name, known)}") from error
        what = "reached" if isinstance(error, ConnectionError) else "resolved"  # the former in offline mode
        cause = f"{type(error).__name__}: {reason_of(error)}{advice_on(error)}"
        raise InputError(f"{asked} cannot be {what}: {cause}") from error
    data_files = builder.config.data_files or {}
    files_of_split = {str(split): list(map(str, files)) for split, files in data_files.items()}
    if source.split not in files_of_split:
        raise InputError(
            f"Hub data set {name!r}, configuration {builder.config.name!r}: "
            f"{_not_among('split', source.split, list(files_of_split))}; "
            f"all configurations: {_some_of(list(builder.builder_configs))}"
        )
    root = str(builder.base_path)
    root = (root if "://" in root else os.path.abspath(root)).rstrip("/") + "/"
    paths = files_of_split[source.split]
    listed = _look_up_all(paths, patience)
    return [listed.get(path, _Listed("", path))._replace(name=path.removeprefix(root)) for path in paths]


def _look_up_all(paths: list[str], patience: Patience) -> dict[str, _Listed]:
    """Return what the Hub says of those of the files that are there, by path."""
    inners: defaultdict[HubPath, list[str]] = defaultdict(list)
    for path in paths:
        place = HubPath.parse(path)
        if place is not None:
            inners[place._replace(inner="")].append(place.inner)
    found = {}
    for repository, some in inners.items():
        repository = repository.pinned(patience)
        for inner, entry in look_up(repository, some, patience).items():
            if entry is not None:
                path = str(repository._replace(inner=inner))
                found[path] = _Listed("", path, entry.size_bytes, entry.version)
    return found


def _configurations(name: str, revision: str | None) -> list[str]:
    from datasets import get_dataset_config_names

    try:
        return list(get_dataset_config_names(name, revision=revision))
    except Exception:  # the error that led here is reported in any case
        return []


def _not_among(kind: str, given: str | None, known: list[str]) -> str:
    """Say that a name is wrong or missing, with the most similar ones first."""
    missing = (
        f"no {kind} {given!r}{did_you_mean(given, known, limit=3)}"
        if given
        else f"it has several {kind}s and none is named"
    )
    return f"{missing}; its {kind}s: {_some_of(known)}"


def _some_of(names: list[str]) -> str:
    return ", ".join(first_of(names, _MAX_CONFIGURATIONS_SHOWN, "of them")) or "none"
