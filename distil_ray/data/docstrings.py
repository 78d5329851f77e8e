"""The documentation strings of the installed packages -> Parquet files: English text that every machine has.

They are read out of the source files with `ast`; nothing is imported. A module belongs to the held-out split by a hash
of its name alone, so that it does on every machine and in every version, and a text that occurs in a held-out module is
left out of the training split. What was collected is kept in the user's cache folder for as long as the installed
packages stay the same.
"""

import ast
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from distil_ray.data.hashing import stream_key
from distil_ray.errors import InputError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

_LAYOUT = 1  # part of the cache's key: increment it with each change of what is collected
_HELDOUT_SHARE = 0.03  # of the modules
_MIN_WORDS = 8  # shorter ones are labels rather than text
_ROW_GROUP_BYTES = 128 * 2**10
_MAX_FILE_BYTES = 4 * 2**20
_LEFT_OUT = {"test", "tests", "testing", "_vendor", "vendored", "__pycache__"}
_SCHEMA = pa.schema({"text": pa.string(), "module": pa.string(), "name": pa.string()})


class Docstring(NamedTuple):
    """One documentation string and where it stands: ``module`` and the ``name`` inside it, dotted."""

    text: str
    module: str
    name: str


def docstring_folder(split: str) -> Path:
    """Return the folder of Parquet files, one per package, with the column ``text``; collect them if need be.

    Raises:
        InputError: there is no such split, or the cache folder cannot be written to.
    """
    if split not in SPLITS:
        raise InputError(f"docstrings: no split {split!r}; expected {' or '.join(SPLITS)}")
    folder = _cache_folder() / _key()
    if not folder.exists():
        print(f"collecting the documentation strings of the installed packages, once, into {folder}", flush=True)
        try:
            _collect_into(folder, _source_folders())
        except OSError as error:
            raise InputError(
                f"docstrings: cannot write to {folder}: {error}; set XDG_CACHE_HOME to a folder that can be written to"
            ) from error
    return folder / split


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "distil_ray" / "docstrings"


def _key() -> str:
    """Digest of what is installed: Python, and each package in its version."""
    distributions = importlib.metadata.distributions(path=[str(folder) for folder in _source_folders()])
    packages = sorted({f"{d.name}=={d.version}" for d in distributions if d.name != "distil-ray"})
    facts = [_LAYOUT, platform.python_version(), *packages]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _source_folders() -> list[Path]:
    """Python's own library and the folders of installed packages."""
    paths = sysconfig.get_paths()
    return [Path(path) for path in dict.fromkeys(paths[name] for name in ("stdlib", "purelib", "platlib"))]


def _collect_into(folder: Path, roots: Iterable[Path]) -> None:
    """Write both splits below ``folder``, which appears when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for split, docstrings in split_docstrings(_collect(roots)).items():
            (unfinished / split).mkdir()
            for package, texts in _by_package(docstrings).items():
                _write(unfinished / split / f"docs-{package}.parquet", texts)  # a name with "_" first is not read
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _collect(roots: Iterable[Path]) -> Iterator[Docstring]:
    """Yield all documentation strings below ``roots`` in the order of the modules' names."""
    files = sorted({module: file for root in roots for module, file in _modules(root)}.items())
    for module, file in files:
        yield from read_docstrings(module, file)


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the path of each module below ``root``, tests and vendored copies left out."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and name.isidentifier()]
        package = Path(place).relative_to(root).parts
        for name in names:
            stem = name.removesuffix(".py")
            if stem != name and stem.isidentifier() and not stem.startswith("test_"):
                yield ".".join([*package, *([] if stem == "__init__" and package else [stem])]), Path(place, name)


def read_docstrings(module: str, file: Path) -> list[Docstring]:
    """Return the documentation strings of one source file in the order of its lines; none of one that is not Python."""
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            return []
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # templates, Python 2, another encoding than it says
    docstrings = []
    for node, name in _documented(tree, ""):
        text = (ast.get_docstring(node) or "").strip()
        if _is_prose(text):
            docstrings.append(Docstring(text, module, name))
    return docstrings


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: _Documented, name: str) -> Iterator[tuple[_Documented, str]]:
    """Yield the module, and all classes and functions in it that stand outside of functions."""
    yield node, name
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Documented):
                yield from _documented(child, f"{name}.{child.name}".lstrip("."))


def _is_prose(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return len(text.split()) >= _MIN_WORDS


def split_docstrings(docstrings: Iterable[Docstring]) -> dict[Split, list[Docstring]]:
    """Divide by module, keep each text once, and none that is held out for training."""
    parts: dict[Split, dict[str, Docstring]] = {split: {} for split in SPLITS}
    for docstring in docstrings:
        part = parts["heldout" if is_heldout(docstring.module) else "train"]
        part.setdefault(" ".join(docstring.text.split()), docstring)
    for text in parts["heldout"]:
        parts["train"].pop(text, None)
    return {split: list(part.values()) for split, part in parts.items()}


def is_heldout(module: str) -> bool:
    """Whether the module's texts are held out: decided by its name alone."""
    return int(stream_key("docstrings", module)) < _HELDOUT_SHARE * 2**64


def _by_package(docstrings: Iterable[Docstring]) -> dict[str, list[Docstring]]:
    packages: dict[str, list[Docstring]] = {}
    for docstring in docstrings:
        packages.setdefault(docstring.module.partition(".")[0], []).append(docstring)
    return packages


def _write(path: Path, docstrings: list[Docstring]) -> None:
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        group: list[Docstring] = []
        num_bytes = 0
        for docstring in docstrings:
            group.append(docstring)
            num_bytes += len(docstring.text)
            if num_bytes >= _ROW_GROUP_BYTES:
                writer.write_table(_table(group))
                group, num_bytes = [], 0
        if group:
            writer.write_table(_table(group))


def _table(docstrings: list[Docstring]) -> pa.Table:
    columns = zip(*docstrings, strict=True)
    return pa.table(dict(zip(_SCHEMA.names, map(list, columns), strict=True)), schema=_SCHEMA)
