"""Models × tasks × seeds, each a Ray task of its own -> scores, kept in files so that a comparison can resume."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from tqdm import tqdm

from distil_ray.distillation.models import load_tokenizer_of
from distil_ray.errors import RunError, reason_of
from distil_ray.evaluation.features import Logits
from distil_ray.evaluation.finetuning import Finetuner, SoftTargets, adapter_of
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.results import Cell, Results
from distil_ray.evaluation.tasks import Splits, Task
from distil_ray.training.cluster import assigned_device


class Tuned(NamedTuple):
    """What a fine-tuning came to: scores, how long it took, and the soft targets of a cell that teaches."""

    scores: dict[str, float]
    seconds: float
    soft_targets: Logits | None


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
        RunError: cells that failed, with why, the others are done and kept; or scores that cannot be written.
    """
    waiting = dict(_start(cells, tasks, data, protocol, results))
    failures = []
    began, num_done = time.monotonic(), 0
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(done)
        num_done += 1
        try:
            tuned: Tuned = ray.get(done)
        except ray.exceptions.RayError as error:
            failures.append(f"{cell.model} on {cell.task}, seed {cell.seed}: {reason_of(error)}")
            continue
        if tuned.soft_targets is not None:
            results.put_soft_targets(cell, tuned.soft_targets)
        results.put(cell, tuned.scores, tuned.seconds)
        left = (time.monotonic() - began) / num_done * len(waiting)
        ending = f"  {num_done} of {len(cells)}, {tqdm.format_interval(left)} left" if waiting else ""
        tell(f"{cell.task:5} {cell.model}, seed {cell.seed}: {tuned.scores['score']:.1f}{ending}")
    if failures:
        raise RunError(f"{len(failures)} of {len(cells)} fine-tunings failed:\n  " + "\n  ".join(failures))


def _start(
    cells: Sequence[Cell], tasks: Mapping[str, Task], data: Mapping[str, Splits], protocol: Protocol, results: Results
) -> Iterator[tuple[Any, Cell]]:
    """Start all cells, teachers before those that learn from them; yield what Ray will answer with for each."""
    function: Any = _fine_tune
    remote: Any = ray.remote(function).options(
        num_cpus=protocol.resources.cpus,
        num_gpus=protocol.resources.gpus,
        max_retries=protocol.resources.max_retries,
        name="fine_tune",
    )
    splits = {name: ray.put(rows) for name, rows in data.items()}
    tuned: dict[Cell, Any] = {}
    for cell in sorted(cells, key=lambda cell: cell.teacher is not None):
        if cell.teacher is not None and cell.teacher not in tuned:
            tuned[cell.teacher] = ray.put(Tuned({}, 0.0, results.soft_targets(cell.teacher)))
        teacher = None if cell.teacher is None else tuned[cell.teacher]
        tuned[cell] = remote.remote(cell, tasks[cell.task], splits[cell.task], protocol, teacher)
        yield tuned[cell], cell


def finetuner_of(cell: Cell, task: Task, protocol: Protocol) -> Finetuner:
    """A cell's model on the device and the threads that a Ray task of the protocol has."""
    torch.set_num_threads(protocol.resources.cpus)
    path, revision = cell.origin
    model = adapter_of(task).load(path, cell.seed, revision)
    tokenizer, finetuning = load_tokenizer_of(model, path, revision), protocol.finetuning_on(task.name)
    return Finetuner(model, tokenizer, task, finetuning, seed=cell.seed, device=assigned_device())


def _fine_tune(cell: Cell, task: Task, splits: Splits, protocol: Protocol, teacher: Tuned | None) -> Tuned:
    """Fine-tune a cell. Runs on a node of the cluster."""
    began = time.monotonic()
    finetuner = finetuner_of(cell, task, protocol)
    targets = teacher.soft_targets if teacher else None
    finetuner.train(splits, None if targets is None else SoftTargets(targets, protocol.second_step))
    scores = finetuner.score(splits)
    soft_targets = [np.array(one) for one in finetuner.logits(splits["train"])] if cell.teaches else None
    return Tuned(scores, time.monotonic() - began, soft_targets)
