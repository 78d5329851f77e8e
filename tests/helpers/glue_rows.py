"""A small folder laid out like the Hub's GLUE: made-up tasks that a small model can learn."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [f"w{i}" for i in range(20)]


def write_split(folder: Path, task: str, split: str, **columns: list) -> None:
    (folder / task).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / task / f"{split}-00000-of-00001.parquet")


def write_glue(folder: Path, num_rows: int = 96) -> Path:
    """SST-2: whether a word from the first half is there; STS-B: the share of such words, from 0 to 5."""
    for split, seed in (("train", 0), ("validation", 1)):
        generator = np.random.default_rng(seed)
        drawn = generator.integers(0, 20, size=(num_rows, 4))
        drawn[::2] %= 10
        drawn[1::2] = 10 + drawn[1::2] % 10
        texts = [" ".join(WORDS[i] for i in row) for row in drawn]
        labels = [int(row[0] < 10) for row in drawn]
        write_split(folder, "sst2", split, sentence=texts, label=labels, idx=list(range(num_rows)))
        write_split(folder, "stsb", split, sentence1=texts, sentence2=texts, label=[5.0 * label for label in labels])
    return folder
