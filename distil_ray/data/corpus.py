"""Sources -> units, the smallest pieces of text that can be read on their own; a unit -> documents.

What a unit and a document are, by the file's suffix (`.gz` and `.zst` on top of the text formats) or the source's key
`format`:

================================  =================================  =====================================
suffix                            unit                               document
================================  =================================  =====================================
.parquet                          row group                          a row's value in the source's column
.arrow                            record batches, one or more        as above
.jsonl .ndjson .json              line-aligned byte range            a line's value under the column's name
.txt .text                        line-aligned byte range            lines up to a blank line
either of the last two, .gz/.zst  the whole file                     as these
================================  =================================  =====================================
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distil_ray.config import Source
from distil_ray.data.documents import documents_of
from distil_ray.data.files import BadFileError, File, ReachableFile
from distil_ray.data.probing import Probed, try_probe
from distil_ray.data.sources import SkippedFile, find_files
from distil_ray.data.tally import Skip, Tally
from distil_ray.errors import InputError, first_of, reason_of
from distil_ray.outages import AT_START, Patience

_MIN_UNIT_BYTES, _MAX_UNIT_BYTES = 16 * 2**10, 2**20
_RANGES_PER_CORPUS = 128
_COMPRESSION_RATIO = 3  # of English text, roughly: it sizes the groups and never decides what is read
_NUM_PROBE_THREADS = 16
_MAX_ERRORS_SHOWN, _MAX_NAMES_SHOWN = 10, 5
_IDENTIFYING = ("name", "format", "compression", "column", "size_bytes", "num_rows")  # a file, wherever it is stored


@dataclass(frozen=True, eq=False)
class Corpus:
    """All files and units of all sources, in one order: sources as given, files by name, units by position.

    `unit_start` and `unit_stop` are row groups of a Parquet file, else bytes. `unit_bytes` is the size of the
    text: of the column's chunk before compression, or of the byte range (of Arrow with all columns); of a
    compressed file it is an estimate, three times the file's size.
    """

    files: tuple[File, ...]
    unit_file: npt.NDArray[np.int32]
    unit_start: npt.NDArray[np.int64]
    unit_stop: npt.NDArray[np.int64]
    unit_bytes: npt.NDArray[np.int64]
    skipped_files: tuple[SkippedFile, ...] = ()

    @property
    def num_units(self) -> int:
        return len(self.unit_file)

    @property
    def num_bytes(self) -> int:
        return int(self.unit_bytes.sum())

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the text and its units, as JSON: the same wherever the sources are stored.

        It depends on names, sizes, row counts and order, not on the files' bytes.
        """
        files = [{key: getattr(file, key) for key in _IDENTIFYING} for file in self.files]
        digest = hashlib.sha256(json.dumps(files).encode())
        for array in (self.unit_file, self.unit_start, self.unit_stop, self.unit_bytes):
            digest.update(array.astype("<i8").tobytes())
        return {"digest": digest.hexdigest(), "num_units": self.num_units, "files": files}


def list_corpus(
    sources: Sequence[Source], *, on_bad_file: Literal["error", "skip"] = "error", patience: Patience = AT_START
) -> Corpus:
    """Find the files of `sources`, look at the beginning or the footer of each, and cut them into units.

    Args:
        on_bad_file: what becomes of an empty or damaged file: an error, or an entry in `skipped_files`. A
            file that cannot be reached and a missing column are errors either way.
        patience: how long a store or a Hub that does not answer is waited for.

    Raises:
        InputError: with every problem found, the first 10 in words.
        OutageError: a store or the Hub did not answer in time.
    """
    files: list[File] = []
    skipped: list[SkippedFile] = []
    errors: list[str] = []
    for source in sources:
        try:
            found, left_out = find_files(source, patience)
        except InputError as error:
            errors.append(str(error))
            continue
        files += found
        skipped += left_out
    num_matches = Counter((file.path, "" if file.format == "text" else file.column) for file in files)
    duplicates = [match for match, count in num_matches.items() if count > 1]
    errors += [
        f"{path}: {f'its column {column!r} is ' * bool(column)}matched by two sources; name it once"
        for path, column in duplicates
    ]

    probed: list[Probed] = []
    for file, outcome in zip(files, _probe_all(files, patience), strict=True):
        if isinstance(outcome, Probed):
            probed.append(outcome)
        elif isinstance(outcome, BadFileError) and on_bad_file == "skip":
            skipped.append(SkippedFile(file.path, str(outcome)))
        elif isinstance(outcome, BadFileError):
            errors.append(f"{outcome} (data.on_bad_file: skip leaves such a file out)")
        else:
            errors.append(str(outcome))
    if errors:
        raise InputError(_enumerate_errors(errors))
    return _cut_into_units(probed, tuple(skipped))


def _probe_all(files: list[File], patience: Patience) -> list[Probed | InputError]:
    """Look at all files, several at once; an outage ends it without waiting for the others."""
    pool = ThreadPoolExecutor(_NUM_PROBE_THREADS)
    try:
        return list(pool.map(lambda file: try_probe(file, patience), files))
    finally:
        pool.shutdown(cancel_futures=True)


def read_unit(
    corpus: Corpus, unit: int, tally: Tally | None = None, patience: Patience = AT_START
) -> Iterator[str | None]:
    """Yield the unit's documents in order; None stands for a document that was skipped.

    Skipped are null, empty and blank texts, text that is not UTF-8, and JSON lines that are not an object
    with a text under the column's name.

    Args:
        tally: counts the documents, and those that are skipped by reason.

    Raises:
        BadFileError: the file is damaged; the message names the file and the row group.
        InputError: the file cannot be reached, or is another one than when it was listed.
        OutageError: its store did not answer for as long as ``patience`` has.
    """
    file = corpus.files[corpus.unit_file[unit]]
    start, stop = int(corpus.unit_start[unit]), int(corpus.unit_stop[unit])
    with ReachableFile(file, patience) as stream:
        try:
            for document in documents_of(file, stream, start, stop):
                if tally is not None:
                    tally.count(document, file.path)
                yield None if isinstance(document, Skip) else document
        except (OSError, pa.ArrowException) as error:
            place = f"row group {start}: " if file.format == "parquet" else ""
            raise BadFileError(f"{file.path}: {place}damaged ({reason_of(error)})") from error


def read_texts(
    corpus: Corpus,
    units: Iterable[int],
    tally: Tally | None = None,
    *,
    skip_bad_units: bool = False,
    max_characters: int | None = None,
    patience: Patience = AT_START,
) -> Iterator[str]:
    """Yield the documents of some units that can be used, one after the other.

    Args:
        units: their indices, in reading order.
        tally: counts the documents, those that are skipped by reason, and the units that are left out.
        skip_bad_units: leave out a unit whose content is damaged, from the damage on, instead of raising.
        max_characters: stop after the document with which so many are read, to look at a text; None reads it all.

    Raises:
        BadFileError: a unit is damaged, and ``skip_bad_units`` is off.
        InputError, OutageError: as `read_unit`.
    """
    tally = Tally() if tally is None else tally
    num_characters = 0
    for unit in units:
        try:
            for document in read_unit(corpus, int(unit), tally, patience):
                if document is not None:
                    yield document
                    num_characters += len(document)
                if max_characters is not None and num_characters >= max_characters:
                    return
        except BadFileError as error:
            if not skip_bad_units:
                raise
            tally.unit_errors.append(str(error))


def explain_difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words how the fingerprint `new` differs from `old`; an empty list if it does not."""
    if old["digest"] == new["digest"]:
        return []
    old_files, new_files = _numbered_by_name(old["files"]), _numbered_by_name(new["files"])
    lines = [f"{name}: is gone" for name, _ in old_files.keys() - new_files.keys()]
    lines += [f"{name}: is new" for name, _ in new_files.keys() - old_files.keys()]
    for key in old_files.keys() & new_files.keys():
        before, after = old_files[key], new_files[key]
        changed = [what for what in before if before[what] != after[what]]
        if changed:
            changes = "; ".join(f"{what} was {before[what]}, is {after[what]}" for what in changed)
            lines.append(f"{key[0]}: {changes}")
    if not lines and list(old_files) != list(new_files):
        return ["the same files in another order"]
    if not lines:
        return [f"the same files cut into other units: {old['num_units']} then, {new['num_units']} now"]
    return first_of(sorted(lines), _MAX_NAMES_SHOWN, "file(s) that differ")


# --- Cutting into units


def _cut_into_units(probed: list[Probed], skipped: tuple[SkippedFile, ...]) -> Corpus:
    total = sum(sum(one.row_group_bytes) or one.file.size_bytes * _text_ratio(one.file) for one in probed)
    unit_size = min(max(total // _RANGES_PER_CORPUS, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    units = [_units_of_file(one, unit_size) for one in probed]
    if not units:
        reasons = first_of([file.reason for file in skipped], _MAX_NAMES_SHOWN, "file(s)")
        raise InputError(f"nothing to read; skipped: {'; '.join(reasons) or 'nothing: name at least one source'}")
    start, stop, size = np.concatenate(units).T
    unit_file = np.repeat(np.arange(len(units), dtype=np.int32), [len(rows) for rows in units])
    files = tuple(one.file for one in probed)
    return Corpus(files, unit_file, start.copy(), stop.copy(), size.copy(), skipped_files=skipped)


def _text_ratio(file: File) -> int:
    """Return how many bytes of text a byte of the file stands for."""
    return _COMPRESSION_RATIO if file.compression else 1


def _units_of_file(probed: Probed, unit_size: int) -> npt.NDArray[np.int64]:
    """Return one row (start, stop, bytes) per unit."""
    file = probed.file
    if file.format == "parquet":
        sizes = np.array(probed.row_group_bytes, dtype=np.int64)
        groups = np.flatnonzero(sizes)
        return np.stack([groups, groups + 1, sizes[groups]], axis=1)
    if file.format == "arrow":
        batches = np.array(probed.batch_edges, dtype=np.int64)
        wanted = [*range(batches[0], batches[-1], unit_size), batches[-1]]
        edges = batches[np.unique(np.searchsorted(batches, wanted))]
    else:
        num_ranges = 1 if file.compression else -(-file.size_bytes // unit_size)
        edges = np.arange(num_ranges + 1, dtype=np.int64) * file.size_bytes // num_ranges
    return np.stack([edges[:-1], edges[1:], np.diff(edges) * _text_ratio(file)], axis=1)


# --- Messages


def _enumerate_errors(errors: list[str]) -> str:
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"  - {line}" for line in first_of(errors, _MAX_ERRORS_SHOWN, "problem(s)"))
    return f"{len(errors)} problems with the sources:\n{lines}"


def _numbered_by_name(files: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Key each file by its name and a count: two sources may hold files of the same name."""
    seen: Counter[str] = Counter()
    numbered = {}
    for file in files:
        numbered[file["name"], seen[file["name"]]] = file
        seen[file["name"]] += 1
    return numbered
