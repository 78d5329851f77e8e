"""One Ray, one small world of text and two runs for all tests that need them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from xdist.scheduler import LoadScopeScheduling

# Tests run in two processes, and a thread of OpenMP that waits for another one, which has no core, keeps its own busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read when the libraries are imported. Tests that have a Hub of their own turn the first one off.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less per run; test_node_loss.py has it
os.environ.setdefault("RAY_USE_UVLOOP", "0")  # it comes with Trackio, and most who use this have neither

# The files with tests that use `ray_cluster`, but for those that run beside them in the other process, with another
# Ray, so that both have as much to do; and those with clusters of their own, which take a node for lost sooner than a
# busy machine can bear.
SHARING_RAY = {
    *("test_ablation", "test_api", "test_cluster", "test_deployment", "test_doctor", "test_drain", "test_dry_run"),
    *("test_events", "test_jobs", "test_lost_parts", "test_node_loss", "test_nodes", "test_placement"),
    *("test_ray_internals", "test_side_by_side", "test_tracked_run", "test_train"),
}


class Scheduler(LoadScopeScheduling):
    """Gives each process whole files of tests, and all files that share a Ray to the same process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if Path(file).stem in SHARING_RAY else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes are not spelled out: gzip puts the time into them, and the processes of tests must agree on the names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A local Ray with slots for four workers and the data tasks; its address."""
    import ray

    from distil_ray.runs.cluster import SYSTEM_CONFIG

    context = ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=True,
        logging_level="error",
        log_to_driver=False,
        _system_config=SYSTEM_CONFIG,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def words() -> list[str]:
    """3,000 words of two to nine letters."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return sorted({"".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(3000)})


def write_text(path: Path, words: list[str], *, num_documents: int, seed: int, rows_per_group: int = 20) -> None:
    """Write a Parquet file of documents whose words are drawn by Zipf's law and depend on the word before."""
    generator = np.random.default_rng(seed)
    ranks = np.minimum(generator.zipf(1.3, size=(num_documents, 60)), len(words) // 2) - 1
    follows = np.cumsum(ranks, axis=1) % len(words)
    documents = [" ".join(words[i] for i in document) for document in follows]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": documents}), path, row_group_size=rows_per_group)


def write_damaged(path: Path, words: list[str], *, num_documents: int, rows_per_group: int) -> Path:
    """Write a Parquet file, one of whose row groups has no readable page."""
    write_text(path, words, num_documents=num_documents, seed=3, rows_per_group=rows_per_group)
    chunk = pq.ParquetFile(path).metadata.row_group(4).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    return path


@pytest.fixture(scope="session")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two Parquet files with 30 row groups in all."""
    folder = tmp_path_factory.mktemp("corpus")
    write_text(folder / "a.parquet", words, num_documents=400, seed=1)
    write_text(folder / "b.parquet", words, num_documents=200, seed=2)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer of 300 pieces, made by the vocabulary command."""
    from distil_ray.commands.vocabulary import main

    folder = tmp_path_factory.mktemp("tokenizer") / "wordpiece"
    assert main(["--source", str(corpus), "--size", "300", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def settings(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A tiny run without a teacher, as a mapping for `parse_config`; tests change what they look at."""
    return tiny_settings(corpus, tokenizer_folder, tmp_path / "runs")


def tiny_settings(corpus: Path, tokenizer_folder: Path, storage_path: Path) -> dict[str, Any]:
    """Twelve steps of 16 rows of 32 tokens."""
    return {
        "run": {"name": "run", "storage_path": str(storage_path)},
        "student": {
            "tokenizer": str(tokenizer_folder),
            "config": {
                "model_type": "bert",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 32,
            },
        },
        "data": {"sources": str(corpus), "max_seq_length": 32, "eval_fraction": 0.1},
        "distill": {"alpha_ce": 0.0, "alpha_cos": 0.0},
        "optim": {"global_batch_size": 16, "num_steps": 12, "learning_rate": 1e-3},
        "eval": {"every_steps": 6, "num_rows": 32},
        "metrics": {"every_steps": 1},
        "checkpoint": {"every_steps": 4},
        "runtime": {"num_workers": 2, "micro_batch_size": 4, "precision": "fp32", "data_cpus": 1},
    }


@pytest.fixture(scope="session")
def reference(
    corpus: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """An uninterrupted run of 100 steps with two workers, dropout on, without Ray: its settings and its folder."""
    from plain_runs import PlainRun  # imports torch, which most tests do without
    from runs import changed

    settings = tiny_settings(corpus, tokenizer_folder, tmp_path_factory.mktemp("reference"))
    settings = changed(settings, optim__num_steps=100, eval__every_steps=50, runtime__data_cpus=2)
    run = PlainRun(changed(settings, run__name="reference"))
    assert run.start().kind == "finished"
    return settings, run.path


@pytest.fixture(scope="session")
def distilled(reference: tuple[dict[str, Any], Path]) -> tuple[dict[str, Any], Path]:
    """A run over one epoch that distils the reference, without Ray: its settings and its folder."""
    from plain_runs import PlainRun
    from runs import changed

    settings, teacher = reference
    settings = changed(settings, teacher__path=str(teacher / "export"), optim__num_epochs=1, eval__every_steps=100)
    del settings["student"], settings["distill"], settings["optim"]["num_steps"]
    settings["runtime"] |= {"num_workers": 1, "data_cpus": 1}
    run = PlainRun(changed(settings, run__name="distilled"))
    assert run.start().kind == "finished"
    return settings, run.path
