"""Models and tasks -> a scoreboard: fine-tuned and measured, on a Ray cluster and on this machine."""

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distil_ray import __version__
from distil_ray.distillation.models import check_vocabulary_fits, load_classifier, load_tokenizer, max_tokens
from distil_ray.errors import InputError
from distil_ray.evaluation.downstream import Cell, Results, Splits, fine_tune_all, read_tasks
from distil_ray.evaluation.glue import Rows, Task
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.scoreboard import Scoreboard, Standing
from distil_ray.evaluation.scores import summarise
from distil_ray.evaluation.speed import Contender, measure_speed
from distil_ray.training.cluster import connect
from distil_ray.training.console import Console

_SPEED_TASK = "stsb"  # the paper's, if it is among the tasks


class Question(NamedTuple):
    """What is asked: models by the name of their row, the teacher first; tasks, and where their rows are."""

    models: Mapping[str, str]
    tasks: Sequence[Task]
    source: str
    num_seeds: int
    output: Path


def answer(question: Question, protocol: Protocol, console: Console) -> Scoreboard:
    """Fine-tune each model on each task with each seed, or what is left of that, and measure the models.

    Raises:
        InputError: a model or a task cannot be used; said before anything is trained.
        RunError: fine-tunings failed; what succeeded is kept.
    """
    contenders = {name: _load(name, path, protocol) for name, path in question.models.items()}
    data = read_tasks(question.source, question.tasks, protocol.finetuning.max_train_rows)
    results = Results(question.output, protocol.finetuning)
    cells = [
        Cell(name, path, task.name, seed)
        for seed in range(1, question.num_seeds + 1)
        for task in question.tasks
        for name, path in question.models.items()
    ]
    counts = f"{len(question.models)} models, {len(data)} tasks, {question.num_seeds} seeds"
    console.line(f"{len(cells)} fine-tunings: {counts}")
    open_cells = [cell for cell in cells if results.get(cell) is None]
    if len(open_cells) < len(cells):
        console.line(f"{len(cells) - len(open_cells)} of {len(cells)} fine-tunings are done already")
    if open_cells:
        console.line(connect(protocol.resources.cpus))
        fine_tune_all(open_cells, {task.name: task for task in question.tasks}, data, protocol, results, console.line)
    console.line("measuring on this machine's CPU")
    rows = _validation(data, _SPEED_TASK if _SPEED_TASK in data else question.tasks[0].name)
    speeds = measure_speed(contenders, rows, protocol.finetuning.max_seq_length)
    standings = []
    for name, path in question.models.items():
        own = [cell for cell in cells if cell.model == name]
        scores = {
            task.name: summarise([results.score(cell) for cell in own if cell.task == task.name])
            for task in question.tasks
        }
        encoder: Any = contenders[name][0].base_model
        standings.append(Standing(name, path, encoder.num_parameters(), _num_bytes(path), scores, speeds[name]))
    footer = (
        f"distil_ray {__version__}, torch {torch.__version__}, {platform.machine()} with {torch.get_num_threads()} "
        f"threads, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    )
    return Scoreboard(standings, protocol.model_dump(mode="json"), footer)


def _validation(data: Mapping[str, Splits], task: str) -> Rows:
    return next(rows for split, rows in data[task].items() if split != "train")


def _load(name: str, path: str, protocol: Protocol) -> Contender:
    model, tokenizer = load_classifier(path, num_labels=2, seed=0), load_tokenizer(path)
    try:
        check_vocabulary_fits(model, tokenizer)
    except InputError as error:
        raise InputError(f"{name}, {path}: {error}") from error
    length = protocol.finetuning.max_seq_length
    if length > max_tokens(model):
        raise InputError(
            f"finetuning.max_seq_length: given {length}, but {name}, {path}, takes {max_tokens(model)} tokens at most"
        )
    return model, tokenizer


def _num_bytes(path: str) -> int:
    """Bytes of the weights on disk; of a model on the Hub, those of the copy that was fetched."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns="*.safetensors", local_files_only=True))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
