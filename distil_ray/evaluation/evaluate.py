"""Models and tasks -> a scoreboard: fine-tuned and measured, on a Ray cluster and on this machine."""

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from distil_ray.config import Source
from distil_ray.errors import InputError
from distil_ray.evaluation.deployment import Deployed, check_on_device, deploy_all, stale_files
from distil_ray.evaluation.finetuning import fine_tune
from distil_ray.evaluation.intrinsic import Intrinsic, measure_intrinsic, text_digest
from distil_ray.evaluation.kinds import Summary, adapter_of, facts_of, summarize
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.nodes import join
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.results import FinetuneJob, Results
from distil_ray.evaluation.scoreboard import ModelResult, Scoreboard
from distil_ray.evaluation.speed import Speed, measure_speed
from distil_ray.evaluation.tasks import Splits, Task, first_validation, read_tasks
from distil_ray.models.loading import check_vocabulary, check_vocabulary_fits, max_tokens
from distil_ray.reporting.report import made_by, make_folder
from distil_ray.runs.console import Console

_SPEED_TASK = "stsb"  # the paper's, if it is among the tasks


class Request(NamedTuple):
    """What to evaluate.

    Attributes:
        models: the teacher first.
        with_second_step: whether students are also fine-tuned with the teacher's soft targets.
        text: on which models are evaluated without fine-tuning; empty: they are not.
        device_task: the one of ``tasks`` that models are exported for, to run on a device; None: none are.
    """

    models: Sequence[Model]
    tasks: Sequence[Task]
    num_seeds: int
    output: Path
    with_second_step: bool = False
    text: Sequence[Source] = ()
    device_task: str | None = None

    @property
    def jobs(self) -> list[FinetuneJob]:
        """All fine-tunings: seed by seed, task by task, in the order of the rows. One seed where nothing is tuned."""
        jobs = []
        for seed in range(1, self.num_seeds + 1):
            for task in self.tasks:
                if seed > 1 and not task.is_tuned:
                    continue
                teacher = FinetuneJob(self.models[0], task.name, seed, teaches=self.with_second_step)
                jobs.append(teacher)
                for model in self.models[1:]:
                    jobs.append(FinetuneJob(model, task.name, seed))
                    if self.with_second_step:
                        jobs.append(FinetuneJob(model, task.name, seed, teacher=teacher))
        return jobs

    @property
    def device_jobs(self) -> list[FinetuneJob]:
        """The fine-tunings to export."""
        if self.device_task is None:
            return []
        return [FinetuneJob(model, self.device_task, seed=1) for model in self.models]


def evaluate(request: Request, protocol: Protocol, console: Console, hold: Callable[[], object]) -> Scoreboard:
    """Fine-tune each model on each task with each seed, unless done, and measure the models.

    Args:
        hold: called when everything is checked and the output folder exists, to keep others from writing to it.

    Raises:
        InputError: a model, a task or an earlier result cannot be used. Raised before anything is trained.
        RunError: fine-tunings failed; the others are kept.
    """
    for task in request.tasks:
        if task.name == request.device_task:
            check_on_device(task)
        if request.with_second_step and not task.is_tuned:
            raise InputError(
                f"--second-step: {task.name} is scored without fine-tuning, so that there is nothing to learn from the "
                "teacher; leave out one of them"
            )
    for model in request.models:
        _check_model(model, request, protocol)
    tasks, data = read_tasks(request.tasks, protocol)
    remarks = check_rows([model.tokenizer for model in request.models], tasks, data, protocol)
    if request.with_second_step and any(task.kind in ("span", "tokens") for task in tasks):
        _check_same_pieces(request.models)
    make_folder(request.output)
    hold()
    for remark in remarks:
        console.line(remark)
    results, device_folder = Results(request.output, protocol, tasks, data), request.output / "on-device"
    jobs = request.jobs
    results.done([*results.trials(jobs), *jobs])
    results.check(stale_files(request.device_jobs, results, device_folder))
    figures = _read_text(request, protocol, results, console) if request.text else {}
    fine_tune(jobs, results, console)
    on_device: dict[str, list[Deployed]] = {}
    if request.device_jobs:
        results.check(stale_files(request.device_jobs, results, device_folder))  # now that all learning rates are known
        on_device = deploy_all(request.device_jobs, results, device_folder, console.line)
    speeds = _measure_speed(request.models, data, protocol, console) if data else {}
    rates = results.chosen_rates(jobs)
    rows = {job.row: job.model for job in jobs} or {model.name: model for model in request.models}
    return Scoreboard(
        results=[
            ModelResult(
                row,
                model.path,
                model.num_parameters,
                model.stored.num_bytes,
                dtype=model.stored.dtype,
                revision=model.origin.revision,
                tasks=_summaries([job for job in jobs if job.row == row], results),
                learning_rates=rates.get(model.name, {}),
                untuned=[task.name for task in tasks if not task.is_tuned],
                speeds=speeds.get(model.name, []),
                text=figures.get(row),
                on_device=on_device.get(row, []),
            )
            for row, model in rows.items()
        ],
        protocol=protocol.model_dump(mode="json"),
        footer=made_by(f"torch {torch.__version__}", f"{platform.machine()} with {torch.get_num_threads()} threads"),
        device_task=request.device_task,
        facts={task.name: facts_of(task, data[task.name], protocol.finetuning_on(task.name)) for task in tasks},
    )


def check_rows(
    tokenizers: Sequence[PreTrainedTokenizerBase],
    tasks: Sequence[Task],
    data: Mapping[str, Splits],
    protocol: Protocol,
) -> list[str]:
    """Raise InputError if one of the tokenizers cannot make features of a task's rows; return what they leave out."""
    remarks = []
    for task in tasks:
        adapter, length = adapter_of(task), protocol.finetuning_on(task.name).max_seq_length
        for tokenizer in tokenizers:
            for split, rows in data[task.name].items():
                if remark := adapter.check(tokenizer, rows, length):
                    remarks.append(f"{task.name}, {split}: {remark}")
    return list(dict.fromkeys(remarks))


def _measure_speed(
    models: Sequence[Model], data: Mapping[str, Splits], protocol: Protocol, console: Console
) -> dict[str, list[Speed]]:
    console.line("measuring on this machine")
    rows = first_validation(data[_SPEED_TASK] if _SPEED_TASK in data else next(iter(data.values())))
    loaded = {model.name: (model.encoder, model.tokenizer) for model in models}
    return measure_speed(loaded, rows, protocol.finetuning.max_seq_length)


def _read_text(request: Request, protocol: Protocol, results: Results, console: Console) -> dict[str, Intrinsic]:
    """Each model's figures on the text, measured now or earlier."""
    models = request.models
    digest = text_digest(request.text, models, protocol.text)
    known, changes = results.get_text(models, request.text, digest)
    if changes:
        console.line(f"the text is evaluated again: {'; '.join(changes)}")
    if known is None:
        console.line(join(models, protocol.resources))
        found = measure_intrinsic(models, request.text, protocol.text, protocol.resources, console.line)
        known = {name: figures._asdict() for name, figures in found.items()}
        results.put_text(models, digest, known)
    return {name: Intrinsic(**figures) for name, figures in known.items()}


def _summaries(jobs: Sequence[FinetuneJob], results: Results) -> dict[str, Summary]:
    scores: dict[str, list[float]] = {}
    for job in jobs:
        scores.setdefault(job.task, []).append(results.score(job))
    return {task: summarize(values) for task, values in scores.items()}


def _check_model(model: Model, request: Request, protocol: Protocol) -> None:
    """Load a model, and raise InputError unless it has a tokenizer, weights and enough positions."""
    try:
        check_vocabulary_fits(model.encoder, model.tokenizer)
    except InputError as error:
        raise InputError(f"{model.name}, {model.path}: {error}") from error
    longest = max_tokens(model.encoder)
    for task in request.tasks:
        if not task.is_tuned:
            model.embedding(task.pooling)
            continue
        length = protocol.finetuning_on(task.name).max_seq_length
        if length > longest:
            where = f"finetuning_of.{task.name}" if task.name in protocol.finetuning_of else "finetuning"
            raise InputError(
                f"{where}.max_seq_length: given {length}, but {model.name}, {model.path}, takes {longest} tokens at "
                "most"
            )
    _ = model.stored


def _check_same_pieces(models: Sequence[Model]) -> None:
    """Raise InputError unless all tokenizers are equal to the teacher's, whose soft targets are about its pieces."""
    teacher, *students = models
    for student in students:
        try:
            check_vocabulary(teacher.tokenizer, student.tokenizer)
        except InputError as error:
            raise InputError(f"--second-step: {student.name}: {error}") from error
