"""Models and tasks -> a scoreboard: fine-tuned and measured, on a Ray cluster and on this machine."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from distil_ray import __version__
from distil_ray.config import Source
from distil_ray.errors import InputError
from distil_ray.evaluation.deployment import Deployed, check_on_device, deploy_all, stale_files
from distil_ray.evaluation.facts import facts_of, stored_weights
from distil_ray.evaluation.finetuning import adapter_of, fine_tune_all
from distil_ray.evaluation.intrinsic import Intrinsic, measure_intrinsic, text_digest
from distil_ray.evaluation.kinds import Summary, summarise
from distil_ray.evaluation.nodes import join
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.results import Cell, Results
from distil_ray.evaluation.scoreboard import SECOND_STEP, ModelResult, Scoreboard
from distil_ray.evaluation.speed import Loaded, Speed, measure_speed
from distil_ray.evaluation.tasks import Splits, Task, first_validation, read_tasks
from distil_ray.models.loading import (
    check_vocabulary,
    check_vocabulary_fits,
    load_classifier,
    load_tokenizer_of,
    max_tokens,
)
from distil_ray.models.origin import Origin
from distil_ray.reporting.report import make_folder
from distil_ray.runs.console import Console

_SPEED_TASK = "stsb"  # the paper's, if it is among the tasks


class Question(NamedTuple):
    """What is asked.

    Attributes:
        models: by the name of their row, the teacher first.
        with_second_step: whether students are also fine-tuned with the teacher's soft targets.
        text: on which models are evaluated as they are; none = they are not.
        device_task: one of ``tasks``, for which models are exported to run on a device; None = for none.
    """

    models: Mapping[str, Origin]
    tasks: Sequence[Task]
    num_seeds: int
    output: Path
    with_second_step: bool = False
    text: Sequence[Source] = ()
    device_task: str | None = None

    @property
    def cells(self) -> list[Cell]:
        """All fine-tunings: seed by seed, task by task, in the order of the rows."""
        return list(self._cells())

    def _cells(self) -> Iterator[Cell]:
        teacher, *students = self.models
        for seed in range(1, self.num_seeds + 1):
            for task in self.tasks:
                own = {name: Cell(name, origin, task.name, seed) for name, origin in self.models.items()}
                own[teacher] = replace(own[teacher], teaches=self.with_second_step)
                for name, cell in own.items():
                    yield cell
                    if self.with_second_step and name in students:
                        yield replace(cell, model=f"{name}{SECOND_STEP}", teacher=own[teacher])

    @property
    def device_cells(self) -> list[Cell]:
        """The fine-tunings whose outcome is exported."""
        if self.device_task is None:
            return []
        return [Cell(name, origin, self.device_task, seed=1) for name, origin in self.models.items()]


def answer(question: Question, protocol: Protocol, console: Console, hold: Callable[[], object]) -> Scoreboard:
    """Fine-tune each model on each task with each seed, or what is left of that, and measure the models.

    Args:
        hold: called when everything is checked and the output folder is there, to keep others from writing to it.

    Raises:
        InputError: a model, a task or an earlier result cannot be used; said before anything is trained.
        RunError: fine-tunings failed; what succeeded is kept.
    """
    for task in question.tasks:
        if task.name == question.device_task:
            check_on_device(task)
    models = {name: _load(name, origin, question, protocol) for name, origin in question.models.items()}
    stored = {origin: stored_weights(origin) for origin in question.models.values()}
    tasks, data = read_tasks(question.tasks, protocol)
    check_rows([tokenizer for _, tokenizer in models.values()], tasks, data, protocol)
    if question.with_second_step and any(task.kind == "span" for task in tasks):
        _check_same_pieces(models)
    make_folder(question.output)
    hold()
    results, device_folder = Results(question.output, protocol, tasks, data), question.output / "on-device"
    results.done(question.cells)
    results.check(stale_files(question.device_cells, results, device_folder))
    intrinsic = _read_text(question, protocol, results, console) if question.text else {}
    fine_tune(question.cells, tasks, data, protocol, results, console)
    on_device: dict[str, list[Deployed]] = {}
    if cells := question.device_cells:
        (task,) = (task for task in tasks if task.name == question.device_task)
        on_device = deploy_all(cells, task, data[task.name], protocol, results, device_folder, console.line)
    speeds = _measure_speed(models, data, protocol, console) if data else {}
    rows = {cell.model: cell.origin for cell in question.cells} or question.models
    model_results = [
        ModelResult(
            name,
            origin.path,
            _num_parameters(models[name.removesuffix(SECOND_STEP)]),
            stored[origin].num_bytes,
            dtype=stored[origin].dtype,
            revision=origin.revision,
            tasks=_summaries(name, question, results),
            speeds=speeds.get(name.removesuffix(SECOND_STEP), []),
            intrinsic=intrinsic.get(name),
            on_device=on_device.get(name, []),
        )
        for name, origin in rows.items()
    ]
    facts = {task.name: facts_of(task, data[task.name], protocol.finetuning_on(task.name)) for task in tasks}
    return Scoreboard(model_results, protocol.model_dump(mode="json"), _footer(), question.device_task, facts)


def check_rows(
    tokenizers: Sequence[PreTrainedTokenizerBase],
    tasks: Sequence[Task],
    data: Mapping[str, Splits],
    protocol: Protocol,
) -> None:
    """Raise InputError if features cannot be made of a task's rows with one of the tokenizers."""
    for task in tasks:
        adapter, length = adapter_of(task), protocol.finetuning_on(task.name).max_seq_length
        for tokenizer in tokenizers:
            for rows in data[task.name].values():
                adapter.check(tokenizer, rows, length)


def _measure_speed(
    models: Mapping[str, Loaded], data: Mapping[str, Splits], protocol: Protocol, console: Console
) -> dict[str, list[Speed]]:
    console.line("measuring on this machine")
    task = _SPEED_TASK if _SPEED_TASK in data else next(iter(data))
    return measure_speed(models, first_validation(data[task]), protocol.finetuning.max_seq_length)


def _read_text(question: Question, protocol: Protocol, results: Results, console: Console) -> dict[str, Intrinsic]:
    """Each model's figures on the text, measured or known from before."""
    digest = text_digest(question.text, question.models, protocol.text)
    known, changes = results.get_text(question.models, question.text, digest)
    if changes:
        console.line(f"the text is evaluated again: {'; '.join(changes)}")
    if known is None:
        console.line(join(question.models, protocol.resources))
        found = measure_intrinsic(question.models, question.text, protocol.text, protocol.resources, console.line)
        known = {name: figures._asdict() for name, figures in found.items()}
        results.put_text(question.models, digest, known)
    return {name: Intrinsic(**figures) for name, figures in known.items()}


def fine_tune(
    cells: Sequence[Cell],
    tasks: Sequence[Task],
    data: Mapping[str, Splits],
    protocol: Protocol,
    results: Results,
    console: Console,
) -> None:
    """Fine-tune what is not done yet; without joining a cluster if that is nothing.

    Raises:
        InputError: earlier results were made with something else.
        RunError: fine-tunings failed; what succeeded is kept.
    """
    if not cells:
        return
    num_seeds, num_models = len({cell.seed for cell in cells}), len({cell.model for cell in cells})
    console.line(f"{len(cells)} fine-tunings: {num_models} models, {len(tasks)} tasks, {num_seeds} seeds")
    done = set(results.done(cells))
    open_cells = [cell for cell in cells if cell not in done]
    if done:
        console.line(f"{len(done)} of {len(cells)} fine-tunings are done already")
    if num_unverified := results.num_unverified(done):
        console.line(
            f"{num_unverified} of them were done by an earlier version, which did not note the tasks' rows: they count "
            "as made with those of today"
        )
    if open_cells:
        console.line(join({cell.model: cell.origin for cell in open_cells}, protocol.resources))
        fine_tune_all(open_cells, {task.name: task for task in tasks}, data, protocol, results, console.line)


def _summaries(name: str, question: Question, results: Results) -> dict[str, Summary]:
    own = [cell for cell in question.cells if cell.model == name]
    return {
        task.name: summarise([results.score(cell) for cell in own if cell.task == task.name]) for task in question.tasks
    }


def _load(name: str, origin: Origin, question: Question, protocol: Protocol) -> Loaded:
    path, revision = origin
    model = load_classifier(path, num_labels=2, seed=0, revision=revision)
    tokenizer = load_tokenizer_of(model, path, revision)
    try:
        check_vocabulary_fits(model, tokenizer)
    except InputError as error:
        raise InputError(f"{name}, {path}: {error}") from error
    for task in question.tasks:
        length = protocol.finetuning_on(task.name).max_seq_length
        if length > max_tokens(model):
            where = f"finetuning_of.{task.name}" if task.name in protocol.finetuning_of else "finetuning"
            raise InputError(
                f"{where}.max_seq_length: given {length}, but {name}, {path}, takes {max_tokens(model)} tokens at most"
            )
    return model, tokenizer


def _check_same_pieces(models: Mapping[str, Loaded]) -> None:
    """Raise InputError unless all tokenizers are the teacher's, whose soft targets are about pieces."""
    (_, (_, teacher)), *students = models.items()
    for name, (_, tokenizer) in students:
        try:
            check_vocabulary(teacher, tokenizer)
        except InputError as error:
            raise InputError(f"--second-step: {name}: {error}") from error


def _num_parameters(loaded: Loaded) -> int:
    """Parameters of the encoder, without the head of the task that was loaded for."""
    encoder: Any = loaded[0].base_model
    return int(encoder.num_parameters())


def _footer() -> str:
    return (
        f"distil_ray {__version__}, torch {torch.__version__}, {platform.machine()} with {torch.get_num_threads()} "
        f"threads, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    )
