"""Models -> files for a device, fine-tuned for a task, each in a Ray task; what they cost and what they score."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import ray
import torch

from distil_ray.distillation.models import load_tokenizer
from distil_ray.errors import InputError, RunError, reason_of
from distil_ray.evaluation.downstream import finetuner_of
from distil_ray.evaluation.labelling import Labelling
from distil_ray.evaluation.nodes import join
from distil_ray.evaluation.on_device import (
    INT8_FILE,
    LOW_AGREEMENT,
    MODEL_FILE,
    OnnxModel,
    check_packages,
    export_and_check,
    logits_of,
)
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.results import Cell, Results, Stale, read_json
from distil_ray.evaluation.speed import Contender, Run, Timing, as_function, measure_latency, using_threads
from distil_ray.evaluation.tasks import Rows, Splits, Task, first_validation
from distil_ray.reporting.files import writing

_FIGURES_FILE = "figures.json"
FORMATS = {"PyTorch": "", "ONNX": MODEL_FILE, "ONNX int8": INT8_FILE}


class Figures(NamedTuple):
    """What a file scores on the task, in percent, and how its logits differ from the original's; see `Exported`."""

    score: float
    max_difference: float
    agreement: float


class Deployed(NamedTuple):
    """A fine-tuned model in one of `FORMATS`; ``latency_ms`` of one row on one thread."""

    format: str
    num_bytes: int
    latency_ms: Timing
    figures: Figures


def check_on_device(task: Task) -> None:
    """Raise InputError unless the packages are there, and the task is one that can be deployed for."""
    check_packages()
    if task.kind == "span":
        raise InputError(f"--on-device: given {task.name}, expected a task that asks for a class or a number")


def deploy_all(
    cells: Sequence[Cell],
    task: Task,
    splits: Splits,
    protocol: Protocol,
    results: Results,
    folder: Path,
    tell: Callable[[str], None],
) -> dict[str, list[Deployed]]:
    """Fine-tune and export models, or what is left of them, to ``folder/<model>``, and time them here, in turns.

    Raises:
        RunError: exports that failed, with why; the others are kept.
    """
    open_cells = [cell for cell in cells if _figures(folder, cell) is None]
    if open_cells:
        tell(join({cell.model: cell.origin for cell in open_cells}, protocol.resources))
    function: Any = _export
    remote: Any = ray.remote(function).options(num_cpus=protocol.resources.cpus, num_gpus=protocol.resources.gpus)
    waiting = [(cell, remote.remote(cell, task, splits, protocol)) for cell in open_cells]
    failures = []
    for cell, reference in waiting:
        try:
            files = ray.get(reference)
        except ray.exceptions.RayError as error:
            failures.append(f"{cell.model}: {reason_of(error)}")
            continue
        with writing(folder / cell.model):
            _keep(folder / cell.model, files, results.made_with(cell))
        tell(f"{cell.model}: {task.name} for a device, in {folder / cell.model}")
    if failures:
        raise RunError(f"{len(failures)} of {len(open_cells)} exports for a device failed:\n  " + "\n  ".join(failures))
    rows = first_validation(splits)
    latency = _latency(cells, task, folder, rows, protocol)
    found = {cell.model: _deployed(cell, folder, latency) for cell in cells}
    for model, files in found.items():
        for one in files:
            if one.figures.agreement < LOW_AGREEMENT:
                tell(f"{model}: {one.format} agrees with PyTorch on {one.figures.agreement:.0%} of the rows only")
    return found


def stale_files(cells: Sequence[Cell], results: Results, folder: Path) -> list[Stale]:
    """Files of an earlier comparison that were made with something else than they would be made with now."""
    found = [(cell, figures) for cell in cells if (figures := _figures(folder, cell)) is not None]
    stale = [results.stale(folder / cell.model / _FIGURES_FILE, figures, cell) for cell, figures in found]
    return [one for one in stale if one is not None]


def _figures(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What is noted of a model's files; None without them, or if it is damaged."""
    found = read_json(folder / cell.model / _FIGURES_FILE)
    return found if found is not None and {"formats", "made_with"} <= found.keys() else None


def _export(cell: Cell, task: Task, splits: Splits, protocol: Protocol) -> dict[str, bytes]:
    """The files of a fine-tuned model, by name. Runs on a node of the cluster."""
    finetuner = finetuner_of(cell, task, protocol)
    finetuner.train(splits)
    model, tokenizer = finetuner.model, finetuner.tokenizer
    adapter, rows, length = Labelling(task), first_validation(splits), protocol.finetuning_on(task.name).max_seq_length
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = as_function(model.cpu(), torch.device("cpu"))
        exported = export_and_check(model, tokenizer, rows, folder, length)
        runs: list[Run] = [original, *(OnnxModel(one.path, protocol.resources.cpus) for one in exported)]
        scores = [_score(adapter, rows, logits_of(run, tokenizer, rows, length)) for run in runs]
        same = [(0.0, 1.0), *((one.max_difference, one.agreement) for one in exported)]
        figures = {
            kind: Figures(score, *pair)._asdict() for kind, score, pair in zip(FORMATS, scores, same, strict=True)
        }
        model.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {_FIGURES_FILE: json.dumps(figures).encode()}


def _score(adapter: Labelling, rows: Rows, logits: Any) -> float:
    scores = adapter.scores(rows, list(logits)).values()
    return sum(scores) / len(scores)


def _keep(folder: Path, files: Mapping[str, bytes], made_with: Mapping[str, Any]) -> None:
    """Write a model's files; the folder is whole or not there."""
    partial = folder.with_name(f"{folder.name}.part")
    rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    figures = {"formats": json.loads(files[_FIGURES_FILE]), "made_with": made_with}
    (partial / _FIGURES_FILE).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    rmtree(folder, ignore_errors=True)  # of which the figures are missing or damaged
    partial.replace(folder)


def _latency(
    cells: Sequence[Cell], task: Task, folder: Path, rows: Rows, protocol: Protocol
) -> dict[tuple[str, str], Timing]:
    """Of each model in each format."""
    contenders: dict[tuple[str, str], Contender] = {}
    for cell in cells:
        own = folder / cell.model
        tokenizer = load_tokenizer(str(own))
        for kind, file in FORMATS.items():
            contenders[cell.model, kind] = Contender(_run(own, file, task), tokenizer)
    with using_threads(1):
        return measure_latency(contenders, rows, protocol.finetuning_on(task.name).max_seq_length)


def _run(folder: Path, file: str, task: Task) -> Run:
    """A file as a function; without its name, the original."""
    if file:
        return OnnxModel(folder / file, num_threads=1)
    return as_function(Labelling(task).load(str(folder), seed=0), torch.device("cpu"))


def _deployed(cell: Cell, folder: Path, latency: Mapping[tuple[str, str], Timing]) -> list[Deployed]:
    own, figures = folder / cell.model, _figures(folder, cell)
    assert figures is not None, f"{cell} is not done"
    return [
        Deployed(
            kind,
            (own / (file or "model.safetensors")).stat().st_size,
            latency[cell.model, kind],
            Figures(**figures["formats"][kind]),
        )
        for kind, file in FORMATS.items()
    ]
