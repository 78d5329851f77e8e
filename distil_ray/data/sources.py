"""Sources -> data files: a path, a glob, a folder, a Hub data set, or the documentation strings at hand."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from distil_ray.data.docstrings import docstring_folder
from distil_ray.data.files import SUPPORTED, Format, file_system, first_of, format_of, reaching
from distil_ray.errors import InputError, reason_of

_GLOB = re.compile(r"[*?[]")
_MAX_NAMES_SHOWN = 5

# What lies beside data files and holds no text to learn from. The last ones are of `datasets`' `save_to_disk`.
_DOCUMENTATION = re.compile(
    r"(readme|licen[sc]e|copying|notice|citation|changelog)(\.(md|rst|cff|bib))?$", re.IGNORECASE
)
_DESCRIPTIONS = ("dataset_info.json", "state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Source:
    """Where text comes from: a path, a Hub data set by name, or the documentation strings at hand.

    Args:
        path: a file, a glob or a folder; local, `s3://`, `gs://` or `hf://`.
        hub: a data set on the Hugging Face Hub, or a local folder laid out like one.
        docstrings: ``installed``, see `docstrings`.
        name: the Hub data set's configuration.
        revision: the Hub data set's branch, tag or commit.
        split: the Hub data set's split, or that of the documentation strings.
        column: the column (Parquet, Arrow) or JSON key that holds the text; not used for text files.
        format: what the files are, whatever their suffixes say; `.gz` and `.zst` on top still count.

    Raises:
        InputError: unless exactly one of `path`, `hub` and `docstrings` is given.
    """

    path: str | None = None
    hub: str | None = None
    docstrings: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str = "text"
    format: Format | None = None

    def __post_init__(self) -> None:
        if [bool(self.path), bool(self.hub), bool(self.docstrings)].count(True) != 1:
            raise InputError(
                f"a source needs one of path, hub and docstrings: got path={self.path!r}, hub={self.hub!r}, "
                f"docstrings={self.docstrings!r}"
            )


@dataclass(frozen=True)
class Candidate:
    name: str
    path: str
    column: str
    format: Format | None = None
    left_out: str = ""  # why it is not read, if so


def find_files(source: Source) -> list[Candidate]:
    """Return the source's files sorted by name, all of supported formats but for those that are left out."""
    if source.docstrings:
        paths = _find_at_path(str(docstring_folder(source.split)))
    else:
        paths = _find_on_hub(source) if source.hub else _find_at_path(source.path or "")
    reasons = _left_out([path for _, path in paths], source.format)
    unsupported = [path for _, path in sorted(paths) if path not in reasons and format_of(path, source.format) is None]
    if unsupported:
        shown = ", ".join(first_of(unsupported, _MAX_NAMES_SHOWN, "file(s)"))
        raise InputError(
            f"unsupported file(s): {shown}. Supported: {SUPPORTED}. Name only those, by a glob, or say what they are "
            "by the source's key format: text, jsonl, parquet or arrow (the last two not compressed)"
        )
    return [Candidate(name, path, source.column, source.format, reasons.get(path, "")) for name, path in sorted(paths)]


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


def _find_at_path(path: str) -> list[tuple[str, str]]:
    """Return (name, path) of the file, of the glob's matches, or of all files below the folder."""
    with reaching(path):
        fs, inner = file_system(path)
        fs.invalidate_cache()  # a listing from earlier in this process may be out of date
        try:
            root, found = _match(fs, inner)
        except FileNotFoundError as error:
            raise InputError(f"no such file or folder: {path} ({reason_of(error)})") from error
        if not found:
            raise InputError(f"no data files match or lie below {path}")
        is_local = isinstance(fs, LocalFileSystem)
        return [(file[len(root) + 1 :], file if is_local else fs.unstrip_protocol(file)) for file in found]


def _match(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, list[str]]:
    """Return the folder at the root of `path`, and the files that it names below it."""
    try:
        if fs.info(path)["type"] == "file":
            return path.rpartition("/")[0], [path]
        return path.rstrip("/"), list(_walk(fs, path, max_depth=None))
    except FileNotFoundError:
        if not _GLOB.search(path):
            raise
    root = _GLOB.split(path, maxsplit=1)[0].rpartition("/")[0]
    max_depth = None if "**" in path else path[len(root) :].count("/")
    pattern = re.compile(glob_translate(path))
    return root, [file for file in _walk(fs, root or "/", max_depth) if pattern.match(file)]


def _walk(fs: fsspec.AbstractFileSystem, folder: str, max_depth: int | None) -> Iterator[str]:
    """Yield the paths of all files below `folder`; names that begin with `_` or `.` are left out."""
    # Not fs.walk, fs.find or fs.glob: they leave out folders that they may not list, without a word.
    for entry in fs.ls(folder, detail=True):
        path = entry["name"].rstrip("/")
        is_itself = path == folder.rstrip("/")  # object stores list a folder's marker among its files
        if is_itself or path.rpartition("/")[2].startswith(("_", ".")):
            continue
        if entry["type"] != "directory":
            yield path
        elif max_depth is None:
            yield from _walk(fs, path, None)
        elif max_depth > 1:
            yield from _walk(fs, path, max_depth - 1)


def _find_on_hub(source: Source) -> list[tuple[str, str]]:
    """Return (name, path) of the split's data files, without downloading them."""
    from datasets import load_dataset_builder  # takes half a second, and only Hub sources need it

    try:
        builder = load_dataset_builder(source.hub, name=source.name, revision=source.revision)
    except Exception as error:  # ValueError, ConnectionError, HTTP and YAML errors: whatever it meets
        asked = f"{source.hub!r} (name {source.name!r}, revision {source.revision!r})"
        raise InputError(f"Hub data set {asked} cannot be resolved: {reason_of(error)}") from error
    files_of_split = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if source.split not in files_of_split:
        raise InputError(
            f"Hub data set {source.hub!r}: no split {source.split!r} in configuration "
            f"{builder.config.name!r}; its splits: {', '.join(files_of_split) or 'none'}; "
            f"all configurations: {', '.join(builder.builder_configs) or 'none'}"
        )
    root = str(builder.base_path)
    root = (root if "://" in root else os.path.abspath(root)).rstrip("/") + "/"
    return [(file.removeprefix(root), file) for file in map(str, files_of_split[source.split])]
