"""Tables of labeled rows: from files, from a folder laid out like a data set of the Hub, or from the Hub."""

import glob
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.outages import AT_START

TO_UTF8 = "convert the file, such as by `iconv -f latin1 -t utf-8`"


class TableSource(NamedTuple):
    """Where rows are stored.

    Attributes:
        hub: a folder laid out like a data set of the Hub, or its id there; splits are names. None: a split is a file
            or a glob.
        name: of the data set's configuration.
        option: how the user gave it, for messages.
    """

    hub: str | None = None
    name: str | None = None
    option: str = ""


def read_table(source: TableSource, split: str) -> pa.Table:
    """Read a split.

    Raises:
        InputError: it does not exist, or cannot be read.
        OutageError: the Hub does not answer.
    """
    if source.hub is None:
        return _read_files(sorted(glob.glob(split)), f"{source.option}: found no file {split}")
    folder = Path(source.hub)
    if not folder.is_dir():
        return _read_hub(source, split)
    pattern = "/".join(filter(None, (source.name, f"{split}-*.parquet")))
    files = sorted(map(str, folder.glob(pattern)))
    return _read_files(files, f"{source.option}: {folder} has no {pattern}; expected the layout of the Hub's data set")


def _read_files(files: list[str], complaint: str) -> pa.Table:
    if not files:
        raise InputError(complaint)
    tables = [_read_file(file) for file in files]
    try:  # whole numbers in one file and decimal ones in another are numbers
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"{files[0]} and {len(files) - 1} more: a column does not have the same type in all of them: "
            f"{reason_of(error)}; store it alike in all"
        ) from error


def _read_file(file: str) -> pa.Table:
    suffixes = [suffix for suffix in Path(file).suffixes if suffix in _READERS]
    if not suffixes:
        raise InputError(f"{file}: expected a name that ends in {', '.join(_READERS)} (or .csv.gz and the like)")
    try:
        table = _READERS[suffixes[-1]](file)
        str(table.column_names)  # which pyarrow decodes only now
        return table
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: a column's name is not UTF-8; {TO_UTF8}") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot be read: {reason_of(error)}") from error


def _read_csv(delimiter: str) -> Callable[[str], pa.Table]:
    options = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)

    def read(file: str) -> pa.Table:
        table = pyarrow.csv.read_csv(file, parse_options=options)
        if others := [column.name for column in table.schema if pa.types.is_binary(column.type)]:
            raise InputError(
                f"{file}: not UTF-8, in column {', '.join(others)}; convert it: "
                f"iconv -f ENCODING -t UTF-8 {Path(file).name} > NEW_FILE (WINDOWS-1252, GBK, …)"
            )
        return table

    return read


# Compressed files are recognized by pyarrow, by the end of their names.
_READERS: dict[str, Callable[[str], pa.Table]] = {
    ".parquet": pq.read_table,
    ".csv": _read_csv(","),
    ".tsv": _read_csv("\t"),
    ".jsonl": pyarrow.json.read_json,
    ".json": pyarrow.json.read_json,
}


def _read_hub(source: TableSource, split: str) -> pa.Table:
    from datasets import load_dataset

    try:
        return AT_START.wait_out(
            f"the Hub ({source.hub})", lambda: load_dataset(source.hub, source.name, split=split).data.table
        )
    except OutageError as error:
        raise OutageError(f"{source.option}: {error}; type the command again later") from error
    except Exception as error:  # of many types; with each there is nothing to read
        what = f"its {source.name}" if source.name else "it"
        raise InputError(
            f"{source.option}: {source.hub} is not a folder, and {what} cannot be loaded from the Hub: "
            f"{reason_of(error)}; expected a folder laid out like the data set, or a network connection"
        ) from error
