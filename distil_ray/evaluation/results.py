"""The scores of a comparison, in files: one a fine-tuning, with what it depends on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distil_ray.config import Source
from distil_ray.errors import InputError
from distil_ray.evaluation.features import Logits
from distil_ray.evaluation.protocol import Protocol


@dataclass(frozen=True)
class Cell:
    """One fine-tuning: a model (by the name of its row and its path) on a task with a seed.

    Attributes:
        teacher: fine-tuned on the same task, whose soft targets are learned from, too.
        teaches: whether its own soft targets are asked for.
    """

    model: str
    path: str
    task: str
    seed: int
    teacher: "Cell | None" = None
    teaches: bool = False


class Results:
    """The scores of a comparison below a folder.

    A file counts only for the protocol and the model that made it.
    """

    def __init__(self, folder: Path, protocol: Protocol) -> None:
        self._folder = folder / "results"
        self._protocol = protocol
        self._digests: dict[str, str] = {}

    def get(self, cell: Cell) -> dict[str, float] | None:
        """The scores of a cell, if there are any.

        Raises:
            InputError: they were made by another protocol or model.
        """
        file = self._file(cell)
        if not file.exists() or (cell.teaches and not self._soft_target_file(cell).exists()):
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        self.check_made_with(file, found, cell)
        scores: dict[str, float] = found["scores"]
        return scores

    def check_made_with(self, file: Path, content: Mapping[str, Any], cell: Cell) -> None:
        """Raise InputError unless a file's content was made by this protocol and the cell's model."""
        if content["made_with"] != self.made_with(cell):
            raise InputError(
                f"{file} was made with another protocol or another model of that name; give another --output, or "
                f"remove {self._folder.parent} to begin again"
            )

    def score(self, cell: Cell) -> float:
        """The score of a cell that is done."""
        scores = self.get(cell)
        assert scores is not None, f"{cell} is not done"
        return scores["score"]

    def put(self, cell: Cell, scores: Mapping[str, float], seconds: float) -> None:
        """Note the scores of a cell; a file is whole or not there."""
        content = {"scores": dict(scores), "seconds": round(seconds, 1), "made_with": self.made_with(cell)}
        self._write(self._file(cell), content)

    def put_soft_targets(self, cell: Cell, logits: Logits) -> None:
        """Keep a teacher's logits, to be put before its scores are."""
        file = self._soft_target_file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        with partial.open("wb") as content:
            lengths = [one.shape[-1] for one in logits]
            np.savez_compressed(content, logits=np.concatenate(logits, axis=-1), lengths=lengths)
        partial.replace(file)

    def soft_targets(self, cell: Cell) -> Logits:
        """A teacher's logits for each training feature."""
        with np.load(self._soft_target_file(cell)) as arrays:
            return np.split(arrays["logits"], np.cumsum(arrays["lengths"])[:-1], axis=-1)

    def get_text(self, models: Mapping[str, str], sources: Sequence[Source]) -> dict[str, Any] | None:
        """What is known of models on a text, by the name of their row, if it was looked at before."""
        if not self._text_file.exists():
            return None
        found = json.loads(self._text_file.read_text(encoding="utf-8"))
        figures: dict[str, Any] = found["figures"]
        return figures if found["made_with"] == self._text_made_with(models, sources) else None

    def put_text(self, models: Mapping[str, str], sources: Sequence[Source], figures: Mapping[str, Any]) -> None:
        """Note what was found on a text; that of another text is replaced, as finding it again takes little."""
        self._write(self._text_file, {"figures": figures, "made_with": self._text_made_with(models, sources)})

    def _text_made_with(self, models: Mapping[str, str], sources: Sequence[Source]) -> dict[str, Any]:
        return {
            "models": {name: self._digest(path) for name, path in models.items()},
            "sources": [source.model_dump(mode="json") for source in sources],
            "protocol": self._protocol.text.model_dump(mode="json"),
        }

    @property
    def _text_file(self) -> Path:
        return self._folder / "text.json"

    def _write(self, file: Path, content: Mapping[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(file)

    def _file(self, cell: Cell) -> Path:
        return self._folder / cell.model / cell.task / f"seed-{cell.seed}.json"

    def _soft_target_file(self, cell: Cell) -> Path:
        return self._file(cell).with_suffix(".soft-targets.npz")

    def made_with(self, cell: Cell) -> dict[str, Any]:
        """What a cell's outcome depends on."""
        protocol = self._protocol.finetuning_on(cell.task).model_dump(mode="json")
        made_with = {"protocol": protocol, "model": self._digest(cell.path)}
        if cell.task in self._protocol.tasks:
            made_with["task"] = self._protocol.tasks[cell.task].model_dump(mode="json")
        if cell.teacher is not None:
            made_with["second_step"] = self._protocol.second_step.model_dump(mode="json")
            made_with["teacher"] = self._digest(cell.teacher.path)
        return made_with

    def _digest(self, path: str) -> str:
        if path not in self._digests:
            self._digests[path] = _digest(path)
        return self._digests[path]


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
