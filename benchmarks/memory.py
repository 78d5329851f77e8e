"""Does any process of a run grow with the corpus?

Trains a minute student for one epoch on a corpus and on one ten times as large, and compares, process kind by process
kind, the peak of the memory that belongs to the process alone (USS; the object store is shared and bounded by Ray).

    python benchmarks/memory.py --source 'text/*.parquet' --tokenizer runs/vocabulary --megabytes 4
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from distil_ray.config import Source
from distil_ray.data.corpus import list_corpus, read_texts

_MODEL = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="Parquet files to take text from")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id")
    parser.add_argument("--megabytes", type=float, default=4.0, help="size of the smaller corpus")
    arguments = parser.parse_args()
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for factor in (1, 10):
            text = Path(folder) / f"text{factor}"
            _write_corpus(arguments.source, text, int(arguments.megabytes * factor * 1e6))
            peaks[factor] = _measure(text, arguments.tokenizer, Path(folder) / f"runs{factor}")
    kinds = sorted(peaks[1].keys() & peaks[10].keys())
    growth = {kind: peaks[10][kind] - peaks[1][kind] for kind in kinds}
    print(f"{'peak memory of its own, MB':40} {'1 x':>8} {'10 x':>8} {'growth':>8}")
    for kind in kinds:
        print(f"{kind:40} {peaks[1][kind]:8.0f} {peaks[10][kind]:8.0f} {growth[kind]:8.0f}")
    result = {
        "date": str(date.today()),
        "python": platform.python_version(),
        "megabytes": arguments.megabytes,
        "peak_mb": peaks,
        "growth_mb": growth,
        "largest_growth_mb": max(growth.values()),
    }
    print(json.dumps(result))


def _write_corpus(source: str, folder: Path, num_bytes: int) -> None:
    """Write about ``num_bytes`` of text, in row groups of about 250 kB."""
    folder.mkdir()
    corpus = list_corpus([Source(path=source)])
    schema = pa.schema({"text": pa.string()})
    written, batch = 0, []
    with pq.ParquetWriter(folder / "a.parquet", schema) as writer:
        for document in _documents(corpus):
            batch.append(document)
            if sum(map(len, batch)) > 250_000:
                writer.write_table(pa.table({"text": batch}, schema=schema))
                written += sum(map(len, batch))
                batch = []
                if written >= num_bytes:
                    return
    raise SystemExit(f"{source} holds only {written / 1e6:.0f} MB of text")


def _documents(corpus) -> Iterator[str]:
    return read_texts(corpus, np.random.default_rng(0).permutation(corpus.num_units))


def _measure(text: Path, tokenizer: str, storage: Path) -> dict[str, float]:
    """Train for one epoch and return the peak USS in MB of each kind of process."""
    settings = {
        "run": {"name": "memory", "storage_path": str(storage)},
        "student": {"config": _MODEL, "tokenizer": tokenizer},
        "data": {"sources": str(text), "max_seq_length": 128, "eval_fraction": 0.05},
        "distill": {"alpha_ce": 0.0, "alpha_cos": 0.0},
        "optim": {"global_batch_size": 128, "num_epochs": 1},
        "eval": {"every_steps": 10_000, "num_rows": 64},
        "checkpoint": {"every_steps": 10_000},
        "runtime": {"num_workers": 1, "micro_batch_size": 64},
    }
    storage.mkdir()
    config = storage / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    arguments = [sys.executable, "-m", "distil_ray.train", "--config", str(config)]
    driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    peaks: dict[str, float] = defaultdict(float)
    while driver.poll() is None:
        for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
            try:
                kind = _kind(process, driver.pid)
                peaks[kind] = max(peaks[kind], process.memory_full_info().uss / 1e6)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        time.sleep(0.5)
    if driver.returncode != 0:
        raise SystemExit(driver.returncode)
    return dict(peaks)


def _kind(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    command = process.cmdline()
    title = command[0] if command else process.name()
    if title.startswith("ray::"):
        name = title.split()[0].removeprefix("ray::").partition(".")[0]
        return "data tasks" if "->" in name or "Map" in name or name.startswith("Read") else name
    return process.name()


if __name__ == "__main__":
    main()
