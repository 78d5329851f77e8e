"""Tables of labeled rows: from files, from a folder laid out like a data set of the Hub, or from the Hub."""

import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from distil_ray.data.hub import HubPath, advice_on, fetch
from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.outages import AT_START

TAG = re.compile(r"O|[BIESLU]-.+")
"""A tag of IOB2, IOBES (or BILOU) or IO: outside, or the place in an entity and the entity's type."""
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


def read_table(source: TableSource, split: str, *, of_words: bool = False) -> pa.Table:
    """Read a split.

    Args:
        of_words: whether rows are lists of words and of their tags. Text files then have CoNLL's columns, and are read
            as ``tokens`` and ``ner_tags``, as data sets of the Hub call them.

    Raises:
        InputError: it does not exist, or cannot be read.
        OutageError: the Hub does not answer.
    """
    if source.hub is None:
        return _read_files(sorted(glob.glob(split)), f"{source.option}: found no file {split}", of_words)
    folder = Path(source.hub)
    if not folder.is_dir():
        return _read_hub(source, split)
    pattern = "/".join(filter(None, (source.name, f"{split}-*.parquet")))
    files = sorted(map(str, folder.glob(pattern)))
    return _read_files(files, f"{source.option}: {folder} has no {pattern}; expected the layout of the Hub's data set")


def _read_files(files: list[str], complaint: str, of_words: bool = False) -> pa.Table:
    if not files:
        raise InputError(complaint)
    tables = [_read_conll(file) if of_words and not _is_nested(file) else _read_file(file) for file in files]
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


_WORDS = pa.schema({"tokens": pa.list_(pa.string()), "ner_tags": pa.list_(pa.string())})


def _is_nested(file: str) -> bool:
    """Whether its rows can hold lists."""
    return any(suffix in (".parquet", ".jsonl", ".json") for suffix in Path(file).suffixes)


def _read_conll(file: str) -> pa.Table:
    """Sentences of words, a line each: the word first and its tag last, separated by tabs or blanks.

    Lines of -DOCSTART-, and those that begin with "# " and do not end in a tag (CoNLL-U's comments), are left out.
    """
    try:
        with pa.input_stream(file) as content:  # uncompressed, if its name says how
            lines = content.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8; {TO_UTF8}") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot be read: {reason_of(error)}") from error
    sentences: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(lines, start=1):
        columns = line.strip().split("\t") if "\t" in line.strip() else line.split()
        if not columns:
            sentences.append([])
        elif columns[0] == "-DOCSTART-" or (line.startswith("# ") and not TAG.fullmatch(line.split()[-1])):
            continue
        elif len(columns) == 1:
            raise InputError(f"{file}: line {number}, {line.strip()!r:.80}, has no tag; expected a word and its tag")
        else:
            sentences[-1].append((columns[0], columns[-1]))
    rows = [dict(zip(_WORDS.names, zip(*sentence, strict=True), strict=True)) for sentence in sentences if sentence]
    return pa.Table.from_pylist(rows, schema=_WORDS)


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
    from huggingface_hub import constants

    def attempt() -> pa.Table:
        return load_dataset(source.hub, source.name, split=split).data.table

    try:
        if constants.HF_HUB_OFFLINE:  # the cache has it, or waiting does not help
            return attempt()
        # `datasets` would not say why it gets nothing.
        fetch(HubPath("dataset", str(source.hub), None, "README.md"), AT_START)
        return AT_START.wait_out(f"the Hub ({source.hub})", attempt)
    except OutageError as error:
        raise OutageError(f"{source.option}: {error}; type the command again later") from error
    except Exception as error:  # of many types; with each there is nothing to read
        offline = " HF_HUB_OFFLINE is set: the cache alone was looked into"
        advice = offline if constants.HF_HUB_OFFLINE else advice_on(error)
        what = f"its {source.name}" if source.name else "it"
        raise InputError(
            f"{source.option}: {source.hub} is not a folder, and {what} cannot be loaded from the Hub: "
            f"{reason_of(error)}; expected a folder laid out like the data set, or a network connection.{advice}"
        ) from error
