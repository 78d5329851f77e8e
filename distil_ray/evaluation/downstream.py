"""Models × tasks × seeds, each a Ray task of its own -> scores, kept in files so that a comparison can go on."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from tqdm import tqdm

from distil_ray.distillation.models import load_classifier, load_tokenizer
from distil_ray.errors import InputError, RunError
from distil_ray.evaluation.finetuning import finetune
from distil_ray.evaluation.glue import Rows, Task, read_split
from distil_ray.evaluation.protocol import Finetuning, Protocol

Splits = dict[str, Rows]  # "train" and the validation splits


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a model (by the name of its row and its path) on a task with a seed."""

    model: str
    path: str
    task: str
    seed: int


class Results:
    """The scores of a comparison below a folder: one JSON file a cell, with what it depends on.

    A file counts only for the protocol and the model that made it.
    """

    def __init__(self, folder: Path, protocol: Finetuning) -> None:
        self._folder = folder / "results"
        self._protocol = protocol.model_dump(mode="json")
        self._digests: dict[str, str] = {}

    def get(self, cell: Cell) -> dict[str, float] | None:
        """The scores of a cell, if there are any.

        Raises:
            InputError: they were made by another protocol or model.
        """
        file = self._file(cell)
        if not file.exists():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["made_with"] != self._made_with(cell):
            raise InputError(
                f"{file} was made with another protocol or another model of that name; give another --output, or "
                f"remove {self._folder} to begin again"
            )
        scores: dict[str, float] = found["scores"]
        return scores

    def score(self, cell: Cell) -> float:
        """The score of a cell that is done."""
        scores = self.get(cell)
        assert scores is not None, f"{cell} is not done"
        return scores["score"]

    def put(self, cell: Cell, scores: Mapping[str, float], seconds: float) -> None:
        """Note the scores of a cell; a file is whole or not there."""
        file = self._file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"scores": dict(scores), "seconds": round(seconds, 1), "made_with": self._made_with(cell)}
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(file)

    def _file(self, cell: Cell) -> Path:
        return self._folder / cell.model / cell.task / f"seed-{cell.seed}.json"

    def _made_with(self, cell: Cell) -> dict[str, Any]:
        if cell.path not in self._digests:
            self._digests[cell.path] = _digest(cell.path)
        return {"protocol": self._protocol, "model": self._digests[cell.path]}


def _digest(path: str) -> str:
    """SHA-256 of a local model's weights; of one on the Hub, its id."""
    weights = sorted(Path(path).glob("*.safetensors"))
    if not weights:
        return path
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def read_tasks(source: str, tasks: Iterable[Task], max_train_rows: int | None) -> dict[str, Splits]:
    """Read all tasks' rows, before anything is trained.

    Raises:
        InputError: see `read_split`.
    """
    data = {}
    for task in tasks:
        train = read_split(source, task, "train")
        data[task.name] = {"train": Rows(train.texts[:max_train_rows], train.labels[:max_train_rows])}
        data[task.name] |= {split: read_split(source, task, split) for split in task.validation}
    return data


def fine_tune_all(
    cells: Sequence[Cell],
    tasks: Mapping[str, Task],
    data: Mapping[str, Splits],
    protocol: Protocol,
    results: Results,
    tell: Callable[[str], None],
) -> None:
    """Fine-tune cells, at least one, as many at a time as the cluster holds.

    Raises:
        RunError: cells that failed, with why; the others are done and kept.
    """
    function: Any = _fine_tune
    remote: Any = ray.remote(function).options(
        num_cpus=protocol.resources.cpus,
        num_gpus=protocol.resources.gpus,
        max_retries=protocol.resources.max_retries,
        name="fine_tune",
    )
    splits = {name: ray.put(rows) for name, rows in data.items()}
    waiting = {
        remote.remote(cell, tasks[cell.task], splits[cell.task], protocol.finetuning, protocol.resources.cpus): cell
        for cell in cells
    }
    failures = []
    began, num_done = time.monotonic(), 0
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(done)
        num_done += 1
        try:
            scores, seconds = ray.get(done)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            failures.append(f"{cell.model} on {cell.task}, seed {cell.seed}: {str(cause).strip().splitlines()[-1]}")
            continue
        results.put(cell, scores, seconds)
        left = (time.monotonic() - began) / num_done * len(waiting)
        ending = f"  {num_done} of {len(cells)}, {tqdm.format_interval(left)} left" if waiting else ""
        tell(f"{cell.task:5} {cell.model}, seed {cell.seed}: {scores['score']:.1f}{ending}")
    if failures:
        raise RunError(f"{len(failures)} of {len(cells)} fine-tunings failed:\n  " + "\n  ".join(failures))


def _fine_tune(
    cell: Cell, task: Task, splits: Splits, protocol: Finetuning, num_threads: int
) -> tuple[dict[str, float], float]:
    """The scores of a cell, and how many seconds they took. Runs on a node of the cluster."""
    torch.set_num_threads(num_threads)
    began = time.monotonic()
    scores = finetune(
        load_classifier(cell.path, task.num_labels, cell.seed),
        load_tokenizer(cell.path),
        task,
        splits["train"],
        {name: rows for name, rows in splits.items() if name != "train"},
        protocol,
        seed=cell.seed,
        device=torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"),
    )
    return scores, time.monotonic() - began
