"""Checkpoints: written beside the training, committed by a marker that comes last, verified before use.

``checkpoint_<step>/``, the step in nine digits or more, holds ``student.safetensors``, ``optimizer.safetensors``,
``state.json`` and the marker ``complete.json`` with size and SHA-256 of the others. A folder without a valid marker is
not a checkpoint, and one with another name is left alone. The commit depends on the storage alone, not on a
report to Ray, which registers one only at its controller's next poll.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distil_ray.data.schedule import START, Position
from distil_ray.errors import InputError, reason_of
from distil_ray.runs.storage import RunFolder

MARKER = "complete.json"
STATE = "state.json"
PARTS = ("student", "optimizer")
_WITHDRAWN = "damaged.json"  # what the marker of a damaged checkpoint becomes
_NAME = re.compile(r"checkpoint_(\d{9,})")

if TYPE_CHECKING:  # torch is imported late: Ray's controller asks for the position alone
    import torch

    from distil_ray.models.precision import Precision

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: all of its state that is not a tensor.

    Attributes:
        step: updates done, including skipped ones.
        position: of the last row of the last whole super-step: the pipeline of a resume begins after it.
        progress: share of the run's schedule that is done, in [0, 1].
        counters: totals since the run began, by metric name.
        saved_at: Unix time in seconds.
        group_rows: rows of the position's group; 0 = not known.
        precision: that of the run's matrix products, which ``runtime.precision: auto`` keeps.
        steps_after: steps of the super-step after the position that are done.
    """

    step: int = 0
    position: Position = START
    progress: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)
    saved_at: float = 0.0
    group_rows: int = 0
    precision: "Precision" = "fp32"  # of runs that did not record it: the default at that time
    steps_after: int = 0

    def is_due(self, every_steps: int) -> bool:
        """Whether something is due that happens every so many steps, and at the end of the run."""
        return self.step % every_steps == 0 or self.progress >= 1

    @classmethod
    def from_json(cls, text: bytes) -> "TrainState":
        """Inverse of ``json.dumps(asdict(state))``."""
        values = json.loads(text)
        return cls(**{**values, "position": Position(*values["position"])})


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        state: always verified.
    """

    folder: RunFolder
    name: str
    state: TrainState
    _contents: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def load(self, part: str) -> Tensors:
        """Read one of PARTS, by tensor name.

        What `latest_checkpoint` has read to verify it is not read a second time: memory holds it until then.
        """
        import safetensors.torch

        file = f"{part}.safetensors"
        content = self._contents.pop(file, None)
        return safetensors.torch.load(self.folder.read_bytes(f"{self.name}/{file}") if content is None else content)


def latest_checkpoint(folder: RunFolder, *, verify_tensors: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is complete and undamaged, and what is wrong with each newer one.

    Args:
        verify_tensors: off compares the sizes of the tensors' files alone and reads none of them, which is enough to
            learn a state. The two answers are the same once damaged checkpoints are withdrawn.

    Raises:
        InputError: no checkpoint can be used, and the files of at least one cannot even be read.
        OutageError: a remote storage did not answer.
    """
    complaints: list[str] = []
    is_unreadable = False
    for name in reversed(_names(folder)):
        try:
            return _verified(folder, name, verify_tensors=verify_tensors), complaints
        except _Damaged as damage:
            complaints.append(f"{name} is left out: {damage}")
            is_unreadable = is_unreadable or damage.is_unreadable
    if is_unreadable:  # a start from step 0 would drop what may be intact
        listed = "\n".join(f"  {complaint}" for complaint in complaints)
        raise InputError(
            f"no checkpoint in {folder.path} can be used:\n{listed}\nMake them readable, or remove them to start again"
        )
    return None, complaints


def checkpoint_of(folder: RunFolder, step: int | None) -> Checkpoint:
    """Return the checkpoint of a step, or the newest that is undamaged.

    Raises:
        InputError: there is none, or it is damaged.
        OutageError: a remote storage did not answer.
    """
    if step is None:
        found, complaints = latest_checkpoint(folder)
        if found is None:
            raise InputError("\n".join([*complaints, f"{folder.path} has no checkpoint yet"]))
        return found
    try:
        return _verified(folder, _name_of(step), verify_tensors=True)
    except _Damaged as damage:
        names = _names(folder)
        steps = ", ".join(f"{int(name.removeprefix('checkpoint_')):,}" for name in names) or "none"
        reason = damage if _name_of(step) in names else f"there is none; checkpoints: {steps}"
        raise InputError(f"--step: given {step:,} of {folder.path}: {reason}") from damage


def withdraw_damaged(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """Like `latest_checkpoint`, and remove the marker of each newer checkpoint that is damaged.

    Whoever looks afterwards without reading tensors comes to the same answer. The marker is kept beside the files, as
    ``damaged.json``.
    """
    checkpoint, complaints = latest_checkpoint(folder)
    for complaint in complaints:
        name = complaint.partition(" ")[0]
        try:
            marker = folder.read_bytes(f"{name}/{MARKER}")
        except (FileNotFoundError, NotADirectoryError, InputError):
            continue  # which is seen without reading tensors, too
        folder.write_bytes(f"{name}/{_WITHDRAWN}", marker)
        folder.remove(f"{name}/{MARKER}")
    return checkpoint, complaints


class _Damaged(Exception):
    """Why a checkpoint cannot be used."""

    def __init__(self, complaint: str, *, is_unreadable: bool = False) -> None:
        super().__init__(complaint)
        self.is_unreadable = is_unreadable


def _names(folder: RunFolder) -> list[str]:
    """What may be a checkpoint of this run, by step."""
    steps = {name: int(match[1]) for name in folder.names() if (match := _NAME.fullmatch(name))}
    return sorted(steps, key=lambda name: steps[name])


def _verified(folder: RunFolder, name: str, *, verify_tensors: bool) -> Checkpoint:
    """Read a checkpoint and compare it with its marker.

    Raises:
        _Damaged: it differs, or cannot be read.
    """
    expected = _read_marker(folder, name)
    sizes = {} if verify_tensors else folder.sizes(name)
    contents: dict[str, bytes] = {}
    for file, (num_bytes, sha256) in expected.items():
        if verify_tensors or file == STATE:
            content = _read(folder, name, file, f"{file} is missing")
            found = len(content)
        elif file in sizes:
            content, found = None, sizes[file]
        else:
            raise _Damaged(f"{file} is missing")
        if found != num_bytes:
            raise _Damaged(f"{file} has {found} bytes instead of {num_bytes}")
        if content is not None:
            if hashlib.sha256(content).hexdigest() != sha256:
                raise _Damaged(f"{file} does not match its SHA-256")
            contents[file] = content
    state = TrainState.from_json(contents.pop(STATE))
    if name != _name_of(state.step):
        raise _Damaged(f"it holds step {state.step:,}")
    return Checkpoint(folder, name, state, contents)


def _read_marker(folder: RunFolder, name: str) -> dict[str, tuple[int, str]]:
    """(bytes, SHA-256) by file."""
    content = _read(folder, name, MARKER, "its save was cut off")
    try:
        entries = json.loads(content)["files"].items()
        expected = {file: (int(entry["bytes"]), str(entry["sha256"])) for file, entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError):
        expected = {}
    if STATE not in expected:
        raise _Damaged(f"its {MARKER} is damaged")
    return expected


def _read(folder: RunFolder, name: str, file: str, complaint_if_missing: str) -> bytes:
    try:
        return folder.read_bytes(f"{name}/{file}")
    except (FileNotFoundError, NotADirectoryError):
        raise _Damaged(complaint_if_missing) from None
    except (InputError, OSError) as error:
        raise _Damaged(f"{file} cannot be read ({reason_of(error)})", is_unreadable=True) from error


def _name_of(step: int) -> str:
    return f"checkpoint_{step:09d}"


class CheckpointWriter:
    """Saves checkpoints in a thread of its own, one at a time, and keeps the newest ``keep`` of them."""

    def __init__(
        self,
        folder: RunFolder,
        keep: int,
        *,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        is_active: bool = True,
    ) -> None:
        """``is_active`` off makes every call a no-op, as on all workers but the first."""
        self._is_active = is_active
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self._saved = time.monotonic()
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def is_due(self, state: TrainState) -> bool:
        """Whether a checkpoint is due by steps or by time; by time perhaps on one worker alone, the one that saves."""
        is_time = self._every_minutes is not None and time.monotonic() - self._saved >= 60 * self._every_minutes
        return is_time or (self._every_steps is not None and state.is_due(self._every_steps))

    def save(self, state: TrainState, parts: Mapping[str, Tensors]) -> None:
        """Copy the tensors to host memory and return; a failure of the previous save is raised here."""
        if not self._is_active:
            return
        self.wait()
        self._saved = time.monotonic()
        copies = {part: _on_host(tensors) for part, tensors in parts.items()}
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

        name = _name_of(state.step)
        with self._folder.new_folder(name) as local:
            for part, tensors in parts.items():
                safetensors.torch.save_file(tensors, local / f"{part}.safetensors")
            (local / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            files = {path.name: _describe(path) for path in sorted(local.iterdir())}
        self._folder.write_json(f"{name}/{MARKER}", {"files": files})
        self._prune(name)

    def _prune(self, newest: str) -> None:
        names = _names(self._folder)
        older = names[: names.index(newest)]
        complete = [name for name in older if self._folder.exists(f"{name}/{MARKER}")]
        kept = complete[max(len(complete) - (self._keep - 1), 0) :]
        for name in older:
            if name not in kept:
                self._folder.remove(f"{name}/{MARKER}")  # first, so that a half-removed folder is none
                self._folder.remove(name)


def _on_host(tensors: Tensors) -> Tensors:
    """Copies in memory of the host. From a GPU they go to pinned memory, and are waited for at the end."""
    import torch

    copies: Tensors = {}
    for name, tensor in tensors.items():
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.current_stream().synchronize()
    return copies


def _describe(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
