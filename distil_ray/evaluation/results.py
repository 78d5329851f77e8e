"""The scores of a comparison, one file per fine-tuning, with digests of everything it was made with.

A file is valid only for what made it: the protocol, the weights and the tokenizer of the model, the rows of the task.
Where those are stored does not matter, nor in what precision they were computed. What files of earlier schemas recorded
is compared: those of schema 1 had no tokenizers and rows, those before 3 were made with a decay of all weights.
"""

import io
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from distil_ray.config import Source
from distil_ray.errors import InputError
from distil_ray.evaluation.kinds import Logits
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import METRICS_OF, Finetuning, HeldOutText, Protocol, SecondStep
from distil_ray.evaluation.tasks import Splits, Task
from distil_ray.models.precision import Precision
from distil_ray.reporting.report import writing
from distil_ray.runs.storage import replace_file

SCHEMA = 3
_MAX_REASONS = 10
_ROUNDING_ONLY = {"precision"}  # settings that are not compared
_CHANGES_SINCE = {
    2: "which did not record the tasks' rows: they are taken to be on the same ones",
    3: "which decayed biases and LayerNorms, too (times 1 - learning rate × weight_decay a step)",
}
"""What is different in results, by the schema before which."""
SECOND_STEP = " (D)"
"""Suffix of a student that was also distilled during fine-tuning, as in the paper's table 2."""
_TRIAL_SEED = 0  # that of no score


@dataclass(frozen=True)
class FinetuneJob:
    """One fine-tuning: a model on a task with a seed.

    Attributes:
        teacher: the teacher's fine-tuning on the same task, if the student also learns from its soft targets.
        teaches: whether its own soft targets are kept.
        trial_rate: of a trial, the learning rate that is tried; see `Results.trials`.
    """

    model: Model
    task: str
    seed: int
    teacher: "FinetuneJob | None" = None
    teaches: bool = False
    trial_rate: float | None = None

    def __str__(self) -> str:
        what = f"seed {self.seed}" if self.trial_rate is None else f"learning rate {self.trial_rate:g}"
        return f"{self.row} on {self.task}, {what}"

    @property
    def row(self) -> str:
        """The name of the row that its score is for."""
        return f"{self.model.name}{SECOND_STEP}" if self.teacher else self.model.name


def _trial(job: FinetuneJob, rate: float) -> FinetuneJob:
    return FinetuneJob(job.model, job.task, _TRIAL_SEED, trial_rate=rate)


class Stale(NamedTuple):
    """A file made with something else than it would be made with now, and what differs."""

    file: Path
    reasons: list[str]


class Results:
    """A comparison's protocol, its tasks complete with classes, their rows, and the scores, which are in a folder."""

    def __init__(self, folder: Path, protocol: Protocol, tasks: Sequence[Task], data: Mapping[str, Splits]) -> None:
        self._folder = folder / "results"
        self.protocol = protocol
        self.tasks = {task.name: task for task in tasks}
        self.data = data
        self._rows: dict[str, dict[str, str]] = {}

    def trials(self, jobs: Iterable[FinetuneJob]) -> list[FinetuneJob]:
        """The fine-tunings that choose the jobs' learning rates, where the protocol has several: each rate once, for
        each model by name and task. They are trained on nine tenths of the training rows and scored on the others.
        """
        found: dict[Hashable, FinetuneJob] = {}
        for job in jobs:
            rates = self._learning_rates(job)
            for rate in rates if len(rates) > 1 else ():
                found.setdefault((job.model.name, job.task, rate), _trial(job, rate))
        return list(found.values())

    def learning_rate(self, job: FinetuneJob) -> float | None:
        """The one that a job is made with; None until the trials that choose it are done."""
        rates = self._learning_rates(job)
        if job.trial_rate is not None or len(rates) == 1:
            return job.trial_rate or rates[0]
        trials = [self._read(_trial(job, rate)) for rate in rates]
        scores = [trial["scores"]["score"] for trial in trials if trial is not None]
        return rates[scores.index(max(scores))] if len(scores) == len(rates) else None

    def chosen_rates(self, jobs: Iterable[FinetuneJob]) -> dict[str, dict[str, float]]:
        """The learning rates that trials have chosen for the jobs, by model and task."""
        chosen: dict[str, dict[str, float]] = {}
        for trial in self.trials(jobs):
            rate = self.learning_rate(replace(trial, trial_rate=None))
            assert rate is not None, f"{trial} is not done"
            chosen.setdefault(trial.row, {})[trial.task] = rate
        return chosen

    def _learning_rates(self, job: FinetuneJob) -> tuple[float, ...]:
        rates = self.protocol.finetuning_on(job.task).learning_rates
        return rates if self.tasks[job.task].is_tuned else rates[:1]

    def protocol_of(self, job: FinetuneJob) -> Protocol:
        """The protocol as a job is made with it: with one learning rate for its task."""
        rate = self.learning_rate(job)
        assert rate is not None, f"the learning rate of {job} is not chosen yet"
        settings = self.protocol.finetuning_on(job.task).model_copy(update={"learning_rate": rate})
        return self.protocol.model_copy(update={"finetuning_of": {job.task: settings}})

    def done(self, jobs: Sequence[FinetuneJob]) -> list[FinetuneJob]:
        """The jobs that have scores, of those whose learning rate is known.

        Raises:
            InputError: scores were made with another protocol, model, tokenizer or rows; says what changed.
        """
        known = [job for job in jobs if self.learning_rate(job) is not None]
        found = {job: content for job in known if (content := self._read(job)) is not None}
        stale = [self.stale(self._file(job), content, job) for job, content in found.items()]
        self.check(list(filter(None, stale)))
        return list(found)

    def check(self, stale: Sequence[Stale]) -> None:
        """Raise InputError if there are stale files; says what changed."""
        if not stale:
            return
        reasons = list(dict.fromkeys(reason for one in stale for reason in one.reasons))
        if len(reasons) > _MAX_REASONS:
            reasons[_MAX_REASONS:] = ["…"]
        files = "a result" if len(stale) == 1 else f"{len(stale)} results"
        raise InputError(
            f"{files} in {self._folder.parent}, first {stale[0].file}, would now be made with something else:\n  "
            + "\n  ".join(reasons)
            + "\ngive another --output, or remove those files to have them made again"
        )

    def remarks(self, jobs: Iterable[FinetuneJob]) -> list[str]:
        """Lines on results of earlier versions among those of the jobs, all of which are done."""
        schemas = [content["made_with"].get("schema", 1) for job in jobs if (content := self._read(job))]
        found = {remark: sum(schema < since for schema in schemas) for since, remark in _CHANGES_SINCE.items()}
        return [f"{number} of them are from an earlier version, {remark}" for remark, number in found.items() if number]

    def score(self, job: FinetuneJob) -> float:
        content = self._read(job)
        assert content is not None, f"{job} is not done"
        score: float = content["scores"]["score"]
        return score

    def put(self, job: FinetuneJob, scores: Mapping[str, float], seconds: float, precision: Precision | None) -> None:
        """Write the scores of a job, and how they were computed; a file is complete or does not exist."""
        computed = {"seconds": round(seconds, 1), "precision": precision}
        content = {"scores": dict(scores), **computed, "made_with": self.made_with(job)}
        write_file(self._file(job), to_json(content))

    def put_soft_targets(self, job: FinetuneJob, logits: Logits) -> None:
        """Write a teacher's logits, before its scores are written."""
        content = io.BytesIO()
        lengths = [one.shape[-1] for one in logits]
        np.savez_compressed(content, logits=np.concatenate(logits, axis=-1), lengths=lengths)
        write_file(self._soft_target_file(job), content.getvalue())

    def soft_targets(self, job: FinetuneJob) -> Logits:
        with np.load(self._soft_target_file(job)) as arrays:
            return np.split(arrays["logits"], np.cumsum(arrays["lengths"])[:-1], axis=-1)

    def _read(self, job: FinetuneJob) -> dict[str, Any] | None:
        """The content of a job's file; None if there is none or it is damaged."""
        if job.teaches and not self._soft_target_file(job).exists():
            return None
        content = read_json(self._file(job))
        return content if content is not None and {"scores", "made_with"} <= content.keys() else None

    def _file(self, job: FinetuneJob) -> Path:
        name = f"seed-{job.seed}" if job.trial_rate is None else f"rate-{job.trial_rate:g}"
        return self._folder / job.row / job.task / f"{name}.json"

    def _soft_target_file(self, job: FinetuneJob) -> Path:
        return self._file(job).with_suffix(".soft-targets.npz")

    # ------------------------------------------------------------------------------------- what a file was made with

    def made_with(self, job: FinetuneJob) -> dict[str, Any]:
        """Everything that a job's scores depend on."""
        task = self.tasks[job.task]
        settings = (
            {"protocol": self._settings(job).model_dump(mode="json", exclude=_ROUNDING_ONLY)}
            if task.is_tuned
            else {"embedding": job.model.embedding(task.pooling)._asdict()}
        )
        made_with = {
            "schema": SCHEMA,
            **settings,
            **job.model.digests,
            "task": {"kind": task.kind, "metrics": list(task.metrics), "num_outputs": task.num_outputs},
            "rows": self._row_digests(job.task),
        }
        if job.teacher is not None:
            made_with["second_step"] = self.protocol.second_step.model_dump(mode="json")
            made_with["teacher"] = job.teacher.model.digests["model"]
        return made_with

    def _settings(self, job: FinetuneJob) -> Finetuning:
        return self.protocol_of(job).finetuning_on(job.task)

    def stale(self, file: Path, content: Mapping[str, Any], job: FinetuneJob) -> Stale | None:
        """How what a file was made with differs from what the job would be made with now; None if it does not."""
        old = content["made_with"]
        if old.get("schema", 1) > SCHEMA:
            return Stale(file, ["it was made by a later version of distil_ray"])
        differences = self._differences(old, job) if "schema" in old else self._differences_of_schema_1(old, job)
        reasons = list(differences)
        return Stale(file, reasons) if reasons else None

    def _differences(self, old: Mapping[str, Any], job: FinetuneJob) -> Iterator[str]:
        new = self.made_with(job)
        yield from self._differences_of_protocol(old, job)
        if old["model"] != new["model"]:
            yield f"{job.row}: the model in {job.model.path} has other weights or another configuration"
        if old["tokenizer"] != new["tokenizer"]:
            yield f"{job.row}: the tokenizer in {job.model.path} splits texts differently"
        if job.teacher is not None and old["teacher"] != new["teacher"]:
            yield f"{job.teacher.row}: the model in {job.teacher.model.path} is a different one"
        splits = dict.fromkeys([*old["rows"], *new["rows"]])
        changed = [split for split in splits if old["rows"].get(split) != new["rows"].get(split)]
        if changed:
            yield f"{job.task}: other rows ({', '.join(changed)})"
        for key, value in new["task"].items():
            if old["task"].get(key) != value:
                yield f"{job.task}: its {key} was {old['task'].get(key)}, is {value}"

    def _differences_of_schema_1(self, old: Mapping[str, Any], job: FinetuneJob) -> Iterator[str]:
        yield from self._differences_of_protocol(old, job)
        if not job.model.may_be(old["model"]):
            yield f"{job.row}: the model in {job.model.path} is a different one"
        if job.teacher is not None and not job.teacher.model.may_be(old["teacher"]):
            yield f"{job.teacher.row}: the model in {job.teacher.model.path} is a different one"
        if "task" in old:
            spec = self.protocol.tasks[job.task].model_dump(mode="json")
            yield from _changes(f"tasks.{job.task}", old["task"], {key: spec.get(key) for key in old["task"]})
        task = self.tasks[job.task]
        if task.kind == "span" and set(task.metrics) != set(METRICS_OF["span"]):
            yield f"{job.task}: at that time, the score of spans was the mean of all metrics, not of tasks.metrics"
        if self.data[job.task]["train"].drawn_from is not None:
            yield f"{job.task}: finetuning.max_train_rows draws other rows since then"

    def _differences_of_protocol(self, old: Mapping[str, Any], job: FinetuneJob) -> Iterator[str]:
        protocol, task = self.protocol, self.tasks[job.task]
        if not task.is_tuned:
            embedding = job.model.embedding(task.pooling)._asdict()
            yield from _changes(f"{job.row}: embedding", old.get("embedding", {}), embedding)
            return
        where = f"finetuning_of.{job.task}" if job.task in protocol.finetuning_of else "finetuning"
        yield from _differences_of(where, old.get("protocol", {}), self._settings(job), Finetuning())
        if job.teacher is not None:
            yield from _differences_of("second_step", old["second_step"], protocol.second_step, SecondStep())

    def _row_digests(self, task: str) -> dict[str, str]:
        if task not in self._rows:
            self._rows[task] = {split: rows.digest() for split, rows in self.data[task].items()}
        return self._rows[task]

    # -------------------------------------------------------------------------------------------------------- text

    def get_text(
        self, models: Sequence[Model], sources: Sequence[Source], digest: str
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """Figures of models on a text, by row; or None, and what has changed since they were measured.

        Args:
            digest: of the text (`text_digest`).
        """
        found = read_json(self._text_file)
        if found is None or not {"figures", "made_with"} <= found.keys():
            return None, []
        old = found["made_with"]
        reasons = list(_differences_of("text", old["protocol"], self.protocol.text, HeldOutText()))
        if "schema" in old:
            new = self._text_made_with(models, digest)
            reasons += [] if old["text"] == digest else ["--text: another text"]
            changed = [name for name, digests in new["models"].items() if old["models"].get(name) != digests]
        else:
            given = [source.model_dump(mode="json") for source in sources]
            reasons += [] if _same_sources(old["sources"], given) else ["--text: another text"]
            noted = old["models"]
            changed = [model.name for model in models if model.name not in noted or not model.may_be(noted[model.name])]
        reasons += [f"{name}: another model or tokenizer" for name in changed]
        figures: dict[str, Any] = found["figures"]
        return (None, reasons) if reasons else (figures, [])

    def put_text(self, models: Sequence[Model], digest: str, figures: Mapping[str, Any]) -> None:
        """Write the figures on a text. Those on another text are replaced, as measuring them again takes little."""
        content = {"figures": figures, "made_with": self._text_made_with(models, digest)}
        write_file(self._text_file, to_json(content))

    def _text_made_with(self, models: Sequence[Model], digest: str) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "models": {model.name: model.digests for model in models},
            "text": digest,
            "protocol": self.protocol.text.model_dump(mode="json"),
        }

    @property
    def _text_file(self) -> Path:
        return self._folder / "text.json"


def write_file(file: Path, content: bytes) -> None:
    """Write a file, and its folder if need be; a reader sees the old or the new content.

    Raises:
        RunError: it cannot be written.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)


def to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is no file, or it is damaged, as after a power cut."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _differences_of(where: str, old: Mapping[str, Any], now: BaseModel, defaults: BaseModel) -> Iterator[str]:
    """What differs between settings; a key that did not exist yet has its default."""
    before = {**defaults.model_dump(mode="json"), **old}
    compared = {key: value for key, value in before.items() if key not in _ROUNDING_ONLY}
    return _changes(where, compared, now.model_dump(mode="json", exclude=_ROUNDING_ONLY))


def _changes(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield f"{where}.{key} was {json.dumps(old.get(key))}, is {json.dumps(new.get(key))}"


def _same_sources(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> bool:
    """Whether schema 1's sources are these; a key that did not exist yet has its default."""
    defaults = {name: field.default for name, field in Source.model_fields.items()}
    return [{**defaults, **one} for one in old] == list(new)
