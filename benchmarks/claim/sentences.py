"""Writes the sentences of tasks' training rows, without their labels, as text to distil embedding models on.

    python benchmarks/claim/sentences.py GLUE OUTPUT [--tasks cola mrpc rte sst2 stsb]

GLUE is a folder laid out like the Hub's data set nyu-mll/glue. Each sentence is written once, in an order that depends
on the sentences alone, and none that is in a validation row of these tasks. OUTPUT becomes a folder of many small
Parquet files with a column `text`, as text is held out for evaluation in whole files or row groups.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

NUM_FILES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("glue", type=Path, metavar="GLUE")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="new or empty folder")
    parser.add_argument("--tasks", nargs="+", default=["cola", "mrpc", "rte", "sst2", "stsb"])
    arguments = parser.parse_args()
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"{arguments.output} is not empty; name a new folder")

    folders = [arguments.glue / task for task in arguments.tasks]
    seen_in_validation = {text for folder in folders for text in sentences(folder, "validation")}
    texts = sorted({text for folder in folders for text in sentences(folder, "train")} - seen_in_validation)
    random.Random(0).shuffle(texts)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_FILES):
        table = pa.table({"text": texts[number::NUM_FILES]})
        pq.write_table(table, arguments.output / f"sentences-{number:05d}-of-{NUM_FILES:05d}.parquet")
    print(f"{len(texts):,} sentences in {NUM_FILES} files: {arguments.output}")


def sentences(folder: Path, split: str) -> Iterator[str]:
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise SystemExit(f"no {split}-*.parquet in {folder}; expected a folder laid out like the Hub's nyu-mll/glue")
    for table in map(pq.read_table, paths):
        for name in table.column_names:
            if pa.types.is_string(table.schema.field(name).type):
                yield from (text.strip() for text in table[name].to_pylist())


if __name__ == "__main__":
    main()
