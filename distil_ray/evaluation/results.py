"""The scores of a comparison, in files: one a fine-tuning, with what it depends on, by content.

A file counts only for what made it: the protocol, the weights and the tokenizer of the model, the rows of the task.
Where those lie does not matter. Files of schema 1, which did not note tokenizers and rows, count for what they noted.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from distil_ray.config import Source
from distil_ray.errors import InputError
from distil_ray.evaluation.kinds import Logits
from distil_ray.evaluation.protocol import METRICS_OF, Finetuning, HeldOutText, Protocol, SecondStep
from distil_ray.evaluation.tasks import Splits, Task
from distil_ray.models.loading import load_tokenizer
from distil_ray.models.origin import Origin, content_digest
from distil_ray.reporting.report import writing
from distil_ray.runs.storage import replace_file

SCHEMA = 2
_MAX_REASONS = 10
# Has what tokenizers treat differently: case, accents, numbers, marks, scripts, runs of blanks; and two texts.
_PROBE = "Ein Café in ZÜRICH, e-mail: a.b@c.org;  1,234.5 don't\t東京 한국어 हिन्दी مرحبا 😀 naïve-looking_words"

_NUM_PROBED_PIECES = 200


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a model (by the name of its row and where it lies) on a task with a seed.

    Attributes:
        teacher: fine-tuned on the same task, whose soft targets are learned from, too.
        teaches: whether its own soft targets are asked for.
    """

    model: str
    origin: Origin
    task: str
    seed: int
    teacher: "Cell | None" = None
    teaches: bool = False


class Stale(NamedTuple):
    """A file that was made with something else than it would be made with now, and with what."""

    file: Path
    reasons: list[str]


class Results:
    """The scores of a comparison below a folder.

    Args:
        tasks, data: those of the comparison, complete with their classes, and their rows by name.
    """

    def __init__(self, folder: Path, protocol: Protocol, tasks: Sequence[Task], data: Mapping[str, Splits]) -> None:
        self._folder = folder / "results"
        self._protocol = protocol
        self._tasks = {task.name: task for task in tasks}
        self._data = data
        self._rows: dict[str, dict[str, str]] = {}
        self._models: dict[Origin, dict[str, str]] = {}

    def done(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of the cells that have scores.

        Raises:
            InputError: scores were made by another protocol, model, tokenizer or rows; says what changed.
        """
        found = [(cell, content) for cell in cells if (content := self._read(cell)) is not None]
        self.check([stale for cell, content in found if (stale := self.stale(self._file(cell), content, cell))])
        return [cell for cell, _ in found]

    def check(self, stale: Sequence[Stale]) -> None:
        """Raise InputError if there is a stale file."""
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

    def num_unverified(self, cells: Iterable[Cell]) -> int:
        """How many of the cells, all of them done, do not note of which rows they are."""
        return sum("schema" not in content["made_with"] for cell in cells if (content := self._read(cell)))

    def score(self, cell: Cell) -> float:
        """The score of a cell that is done."""
        content = self._read(cell)
        assert content is not None, f"{cell} is not done"
        score: float = content["scores"]["score"]
        return score

    def put(self, cell: Cell, scores: Mapping[str, float], seconds: float) -> None:
        """Note the scores of a cell; a file is whole or not there."""
        content = {"scores": dict(scores), "seconds": round(seconds, 1), "made_with": self.made_with(cell)}
        _write(self._file(cell), content)

    def put_soft_targets(self, cell: Cell, logits: Logits) -> None:
        """Keep a teacher's logits, to be put before its scores are."""
        content = io.BytesIO()
        lengths = [one.shape[-1] for one in logits]
        np.savez_compressed(content, logits=np.concatenate(logits, axis=-1), lengths=lengths)
        file = self._soft_target_file(cell)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, content.getvalue())

    def soft_targets(self, cell: Cell) -> Logits:
        """A teacher's logits for each training feature."""
        with np.load(self._soft_target_file(cell)) as arrays:
            return np.split(arrays["logits"], np.cumsum(arrays["lengths"])[:-1], axis=-1)

    def _read(self, cell: Cell) -> dict[str, Any] | None:
        """What a cell's file holds; None without one, or if it is damaged."""
        if cell.teaches and not self._soft_target_file(cell).exists():
            return None
        content = read_json(self._file(cell))
        return content if content is not None and {"scores", "made_with"} <= content.keys() else None

    def _file(self, cell: Cell) -> Path:
        return self._folder / cell.model / cell.task / f"seed-{cell.seed}.json"

    def _soft_target_file(self, cell: Cell) -> Path:
        return self._file(cell).with_suffix(".soft-targets.npz")

    # ------------------------------------------------------------------------------------- what was made with what

    def made_with(self, cell: Cell) -> dict[str, Any]:
        """What a cell's outcome depends on."""
        task = self._tasks[cell.task]
        made_with = {
            "schema": SCHEMA,
            "protocol": self._protocol.finetuning_on(cell.task).model_dump(mode="json"),
            **self._content(cell.origin),
            "task": {"kind": task.kind, "metrics": list(task.metrics), "num_outputs": task.num_outputs},
            "rows": self._row_digests(cell.task),
        }
        if cell.teacher is not None:
            made_with["second_step"] = self._protocol.second_step.model_dump(mode="json")
            made_with["teacher"] = self._content(cell.teacher.origin)["model"]
        return made_with

    def stale(self, file: Path, content: Mapping[str, Any], cell: Cell) -> Stale | None:
        """What a file was made with that the cell would not be made with now."""
        old = content["made_with"]
        if old.get("schema", 1) > SCHEMA:
            return Stale(file, ["a later version of distil_ray has made it"])
        differences = self._differences(old, cell) if "schema" in old else self._differences_of_schema_1(old, cell)
        reasons = list(differences)
        return Stale(file, reasons) if reasons else None

    def _differences(self, old: Mapping[str, Any], cell: Cell) -> Iterator[str]:
        new = self.made_with(cell)
        yield from self._differences_of_protocol(old, cell)
        if old["model"] != new["model"]:
            yield f"{cell.model}: the model in {cell.origin.path} has other weights or another configuration"
        if old["tokenizer"] != new["tokenizer"]:
            yield f"{cell.model}: the tokenizer in {cell.origin.path} cuts texts in another way"
        if cell.teacher is not None and old["teacher"] != new["teacher"]:
            yield f"{cell.teacher.model}: the model in {cell.teacher.origin.path} is another one"
        if splits := [split for split in old["rows"] | new["rows"] if old["rows"].get(split) != new["rows"].get(split)]:
            yield f"{cell.task}: other rows ({', '.join(splits)})"
        for key, value in new["task"].items():
            if old["task"].get(key) != value:
                yield f"{cell.task}: its {key} was {old['task'].get(key)}, is {value}"

    def _differences_of_schema_1(self, old: Mapping[str, Any], cell: Cell) -> Iterator[str]:
        yield from self._differences_of_protocol(old, cell)
        if not _is_model_of_schema_1(old["model"], cell.origin):
            yield f"{cell.model}: the model in {cell.origin.path} is another one"
        if cell.teacher is not None and not _is_model_of_schema_1(old["teacher"], cell.teacher.origin):
            yield f"{cell.teacher.model}: the model in {cell.teacher.origin.path} is another one"
        if "task" in old:
            spec = self._protocol.tasks[cell.task].model_dump(mode="json")
            yield from _changes(f"tasks.{cell.task}", old["task"], {key: spec.get(key) for key in old["task"]})
        task = self._tasks[cell.task]
        if task.kind == "span" and set(task.metrics) != set(METRICS_OF["span"]):
            yield f"{cell.task}: at the time, the score of spans was the mean of all metrics, not of tasks.metrics"
        if self._data[cell.task]["train"].drawn_from is not None:
            yield f"{cell.task}: finetuning.max_train_rows has since come to draw other rows"

    def _differences_of_protocol(self, old: Mapping[str, Any], cell: Cell) -> Iterator[str]:
        protocol = self._protocol
        where = f"finetuning_of.{cell.task}" if cell.task in protocol.finetuning_of else "finetuning"
        yield from _differences_of(where, old["protocol"], protocol.finetuning_on(cell.task), Finetuning())
        if cell.teacher is not None:
            yield from _differences_of("second_step", old["second_step"], protocol.second_step, SecondStep())

    def _row_digests(self, task: str) -> dict[str, str]:
        if task not in self._rows:
            self._rows[task] = {split: rows.digest() for split, rows in self._data[task].items()}
        return self._rows[task]

    def _content(self, origin: Origin) -> dict[str, str]:
        """Digests of a model and its tokenizer."""
        if origin not in self._models:
            self._models[origin] = {"model": content_digest(origin), "tokenizer": _tokenizer_digest(origin)}
        return self._models[origin]

    # -------------------------------------------------------------------------------------------------------- text

    def get_text(
        self, models: Mapping[str, Origin], sources: Sequence[Source], digest: str
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """What is known of models on a text, by the name of their row; or None, and what changed since it was found.

        Args:
            digest: of the text (`text_digest`).
        """
        found = read_json(self._text_file)
        if found is None or not {"figures", "made_with"} <= found.keys():
            return None, []
        old = found["made_with"]
        reasons = list(_differences_of("text", old["protocol"], self._protocol.text, HeldOutText()))
        if "schema" in old:
            new = self._text_made_with(models, digest)
            reasons += [] if old["text"] == digest else ["--text: another text"]
            changed = [name for name in new["models"] if old["models"].get(name) != new["models"][name]]
        else:
            given = [source.model_dump(mode="json") for source in sources]
            reasons += [] if _same_sources(old["sources"], given) else ["--text: another text"]
            changed = [
                name
                for name, origin in models.items()
                if name not in old["models"] or not _is_model_of_schema_1(old["models"][name], origin)
            ]
        reasons += [f"{name}: another model or tokenizer" for name in changed]
        figures: dict[str, Any] = found["figures"]
        return (None, reasons) if reasons else (figures, [])

    def put_text(self, models: Mapping[str, Origin], digest: str, figures: Mapping[str, Any]) -> None:
        """Note what was found on a text; that of another text is replaced, as finding it again takes little."""
        _write(self._text_file, {"figures": figures, "made_with": self._text_made_with(models, digest)})

    def _text_made_with(self, models: Mapping[str, Origin], digest: str) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "models": {name: self._content(origin) for name, origin in models.items()},
            "text": digest,
            "protocol": self._protocol.text.model_dump(mode="json"),
        }

    @property
    def _text_file(self) -> Path:
        return self._folder / "text.json"


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, (json.dumps(content, indent=2) + "\n").encode())


def read_json(file: Path) -> dict[str, Any] | None:
    """The object that a file holds; None without a file, or if it is not whole, as after a power cut."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _differences_of(where: str, old: Mapping[str, Any], now: BaseModel, defaults: BaseModel) -> Iterator[str]:
    """What differs between settings; a key that was not there yet counts as its default."""
    return _changes(where, {**defaults.model_dump(mode="json"), **old}, now.model_dump(mode="json"))


def _changes(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield f"{where}.{key} was {json.dumps(old.get(key))}, is {json.dumps(new.get(key))}"


def _same_sources(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> bool:
    """Whether schema 1's sources are these ones; a key that was not there yet counts as its default."""
    defaults = {name: field.default for name, field in Source.model_fields.items()}
    return [{**defaults, **one} for one in old] == list(new)


def _tokenizer_digest(origin: Origin) -> str:
    """SHA-256 of a tokenizer's pieces and of what it makes of some text, which do not depend on how it is stored."""
    tokenizer = load_tokenizer(origin.path, origin.revision)
    vocabulary = tokenizer.get_vocab()
    some = sorted(vocabulary)[:: max(len(vocabulary) // _NUM_PROBED_PIECES, 1)]
    texts = [_PROBE, *(change(piece) for piece in some for change in (str, str.upper))]
    made = {
        name: list(values) for name, values in tokenizer(texts, [_PROBE.lower()] * len(texts), verbose=False).items()
    }
    return hashlib.sha256(json.dumps([vocabulary, made], sort_keys=True).encode()).hexdigest()


def _is_model_of_schema_1(noted: str, origin: Origin) -> bool:
    """Whether what schema 1 noted of a model, a digest of its safetensors or else its path, may be of this one."""
    files = sorted(Path(origin.path).glob("*.safetensors")) if origin.is_local else []
    if not files:
        return noted == origin.path or str(Path(noted).expanduser().absolute()) == origin.path
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return noted == digest.hexdigest()
