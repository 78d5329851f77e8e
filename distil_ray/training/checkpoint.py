"""Checkpoints: written beside the training, committed by a marker that comes last, verified before use.

``checkpoint_<step>/`` holds ``student.safetensors``, ``optimizer.safetensors``, ``state.json`` and the marker
``complete.json`` with size and SHA-256 of the others. A folder without a valid marker is not a checkpoint. The commit
rests on the storage alone and not on a report to Ray, which registers one only at its controller's next poll.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distil_ray.data.schedule import START, Position
from distil_ray.training.storage import RunFolder

PREFIX = "checkpoint_"
MARKER = "complete.json"
STATE = "state.json"

if TYPE_CHECKING:  # torch is imported late: Ray's controller asks for the position alone
    import torch

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: all of its state that is not a tensor.

    Attributes:
        step: updates done (skipped ones included).
        position: of the last row consumed.
        progress: share of the run's schedule that lies behind, in [0, 1].
        counters: totals since the run began, by metric name.
        saved_at: Unix time in seconds.
        group_rows: rows of the position's group; 0 = not known.
    """

    step: int = 0
    position: Position = START
    progress: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)
    saved_at: float = 0.0
    group_rows: int = 0

    @classmethod
    def from_json(cls, text: bytes) -> "TrainState":
        """Inverse of ``json.dumps(asdict(state))``."""
        values = json.loads(text)
        return cls(**{**values, "position": Position(*values["position"])})


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint whose files have been verified."""

    folder: RunFolder
    name: str
    state: TrainState

    def load(self, part: str) -> Tensors:
        """Read ``student`` or ``optimizer``, by tensor name."""
        import safetensors.torch

        return safetensors.torch.load(self.folder.read_bytes(f"{self.name}/{part}.safetensors"))


def latest_checkpoint(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is complete and undamaged, and what is wrong with each newer one."""
    complaints: list[str] = []
    for name in reversed([name for name in folder.names() if name.startswith(PREFIX)]):
        complaint = _complaint(folder, name)
        if complaint is None:
            state = TrainState.from_json(folder.read_bytes(f"{name}/{STATE}"))
            return Checkpoint(folder, name, state), complaints
        complaints.append(f"{name} is left out: {complaint}")
    return None, complaints


def _complaint(folder: RunFolder, name: str) -> str | None:
    """What is wrong with a checkpoint, if anything is."""
    try:
        entries = folder.read_json(f"{name}/{MARKER}")["files"].items()
        expected = {file: (int(entry["bytes"]), str(entry["sha256"])) for file, entry in entries}
    except FileNotFoundError:
        return "its save was cut off"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MARKER} is damaged"
    if STATE not in expected:
        return f"its {MARKER} is damaged"
    for file, (num_bytes, sha256) in expected.items():
        try:
            content = folder.read_bytes(f"{name}/{file}")
        except FileNotFoundError:
            return f"{file} is missing"
        if len(content) != num_bytes:
            return f"{file} has {len(content)} bytes instead of {num_bytes}"
        if hashlib.sha256(content).hexdigest() != sha256:
            return f"{file} does not match its SHA-256"
    return None


class CheckpointWriter:
    """Saves checkpoints in a thread of its own, one at a time, and keeps the newest ``keep`` of them."""

    def __init__(self, folder: RunFolder, keep: int, *, is_active: bool = True) -> None:
        """``is_active`` off makes every call a no-op, as on all workers but the first."""
        self._is_active = is_active
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState, parts: Mapping[str, Tensors]) -> None:
        """Copy the tensors to host memory and return; a failure of the previous save is raised here."""
        if not self._is_active:
            return
        self.wait()
        copies = {
            part: {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }
        self._pending = self._thread.submit(self._write, state, copies)

    def wait(self) -> None:
        """Return when everything saved is committed.

        Raises:
            OSError, SafetensorError: the save failed, as on a full disk. What was committed before is still there.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, state: TrainState, parts: Mapping[str, Tensors]) -> None:
        import safetensors.torch

        name = f"{PREFIX}{state.step:09d}"
        with self._folder.new_folder(name) as local:
            for part, tensors in parts.items():
                safetensors.torch.save_file(tensors, local / f"{part}.safetensors")
            (local / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            files = {path.name: _describe(path) for path in sorted(local.iterdir())}
        self._folder.write_json(f"{name}/{MARKER}", {"files": files})
        self._prune(name)

    def _prune(self, newest: str) -> None:
        older = [n for n in self._folder.names() if n.startswith(PREFIX) and n < newest]
        complete = [name for name in older if self._folder.exists(f"{name}/{MARKER}")]
        kept = complete[len(complete) - (self._keep - 1) :] if self._keep > 1 else []
        for name in older:
            if name not in kept:
                self._folder.remove(f"{name}/{MARKER}")  # first, so that a half-removed folder is none
                self._folder.remove(name)


def _describe(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
