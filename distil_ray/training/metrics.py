"""What a run reports: `metrics.jsonl`, TensorBoard, the digests."""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distil_ray.data.schedule import Position
from distil_ray.runs.figures import figures
from distil_ray.runs.storage import (
    DIGESTS_FILE,
    METRICS_FILE,
    RESTARTS_FILE,
    TENSORBOARD_FOLDER,
    RunFolder,
    flush_to_disk,
    replace_file,
)
from distil_ray.training.checkpoint import TrainState
from distil_ray.training.world import Events

_DIGESTS_HEADER = "step,digest,group,row\n"

Record = dict[str, Any]


class MetricsWriter:
    """Writes the run's records, on rank 0. What a crash leaves after a checkpoint is dropped on resume."""

    def __init__(self, folder: RunFolder, resume_step: int, *, has_board: bool = True) -> None:
        """``has_board``: whether TensorBoard's files are written, too."""
        self._folder = folder
        self._copies = None if folder.is_local else TemporaryDirectory(prefix="distil_ray_metrics_")
        self._local = Path(folder.path if self._copies is None else self._copies.name)
        self._restore(resume_step)
        self._metrics = (self._local / METRICS_FILE).open("a")
        self._digests = (self._local / DIGESTS_FILE).open("a")
        if self._digests.tell() == 0:
            self._digests.write(_DIGESTS_HEADER)
        flush_to_disk(self._local)
        self._board = None
        if has_board:
            from torch.utils.tensorboard import SummaryWriter  # by the one process that writes

            self._board = SummaryWriter(str(self._local / TENSORBOARD_FOLDER), purge_step=resume_step + 1)

    def _restore(self, resume_step: int) -> None:
        """Keep the records up to ``resume_step``; later ones will be made again. Damaged lines are dropped."""
        for name, step_of in ((METRICS_FILE, _metrics_step), (DIGESTS_FILE, _digests_step)):
            if self._folder.exists(name):
                lines = self._folder.read_bytes(name).splitlines(keepends=True)
                kept = [line for line in lines if line.endswith(b"\n") and 0 <= step_of(line) <= resume_step]
                header = [_DIGESTS_HEADER.encode()] if name == DIGESTS_FILE else []
                replace_file(self._local / name, b"".join([*header, *kept]))

    def write(self, record: Record) -> None:
        """Append one record (with ``step``) to the file and its numbers to TensorBoard; null: not finite."""
        self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        self._metrics.flush()
        self._digests.flush()
        if self._board is None:
            return
        for name, value in figures(record).items():
            self._board.add_scalar(name, value, record["step"])

    def write_digest(self, step: int, digest: int, group: int, row: int) -> None:
        """Note the digest of a step's global batch, and the position up to which its rows were taken."""
        self._digests.write(f"{step},{digest:016x},{group},{row}\n")

    def sync(self) -> None:
        """Bring everything to the run's folder, and to its disk: a checkpoint that relies on it may follow."""
        if self._board is not None:
            self._board.flush()
        for file in (self._metrics, self._digests):
            file.flush()
            os.fsync(file.fileno())
        if self._folder.is_local:
            for path in (self._local / TENSORBOARD_FOLDER).rglob("*"):
                flush_to_disk(path)
            return
        for name in (METRICS_FILE, DIGESTS_FILE):
            self._folder.write_bytes(name, (self._local / name).read_bytes())
        if self._board is not None:
            self._folder.upload(self._local / TENSORBOARD_FOLDER, TENSORBOARD_FOLDER)

    def close(self) -> None:
        """Write no more. What was not synced to storage elsewhere is dropped."""
        for one in (self._board, self._metrics, self._digests):
            if one is not None:
                one.close()
        if self._copies is not None:
            self._copies.cleanup()


def read_records(folder: RunFolder) -> list[Record]:
    """All records of a run so far; lines that are cut off or damaged are left out."""
    return folder.read_json_lines(METRICS_FILE)[0]


def summarize(records: Iterable[Record], state: TrainState) -> dict[str, Any]:
    """Where a run stands in ``state``, and its last figures up to there."""
    last: Record = {}
    for record in records:
        last |= record if record["step"] <= state.step else {}
    noted = {name: value for name, value in last.items() if name.startswith(("eval/", "train/", "data/"))}
    return {"step": state.step, "tokens": state.counters.get("data/tokens", 0), **noted}


def read_digests(folder: RunFolder) -> tuple[list[str], list[str]]:
    """The digests of the global batches in the order of the steps, and a complaint for each damaged line."""
    if not folder.exists(DIGESTS_FILE):
        return [], []
    digests, complaints = [], []
    for number, line in enumerate(folder.read_bytes(DIGESTS_FILE).splitlines(keepends=True), 1):
        if _digests_step(line) >= 0:
            digests.append(line.decode().split(",")[1])
        elif number > 1 and line.endswith(b"\n"):  # neither the header nor cut off by a crash
            complaints.append(f"{folder.join(DIGESTS_FILE)}: line {number:,} is damaged and is passed over")
    return digests, complaints


def _metrics_step(line: bytes) -> int:
    """The step of a record, -1 if the line is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1


def _digests_step(line: bytes) -> int:
    """The step of a digest, -1 if the line is damaged or the header."""
    fields = line.rstrip(b"\n").split(b",")
    is_whole = line.isascii() and line.endswith(b"\n") and len(fields) == 4 and fields[0].isdigit()
    return int(fields[0]) if is_whole else -1


class Reporter:
    """Writes the records of a run and passes them to the driver; does nothing on the other workers."""

    def __init__(self, folder: RunFolder, events: Events, *, is_active: bool, has_board: bool = True) -> None:
        self._folder = folder
        self._events = events
        self._is_active = is_active
        self._has_board = has_board

    def begin(
        self, state: TrainState, resumed_from: str | None, complaints: list[str], *, is_continuation: bool
    ) -> None:
        """Open the files after ``state``; say where the run resumes if it does, and with what precision it computes."""
        if not self._is_active:
            return
        self._began, self._progress_at_start = time.monotonic(), state.progress
        restarts, damaged_restarts = self._folder.read_json_lines(RESTARTS_FILE)
        records, damaged_records = self._folder.read_json_lines(METRICS_FILE)
        for line in [*damaged_restarts, *damaged_records]:
            self._events.post_text(line)
        last_record = max((record["time"] for record in records if "time" in record), default=None)
        if (resumed_from is not None or last_record is not None) and not is_continuation:
            restart = _describe_restart(state, resumed_from, last_record)
            restarts.append(restart)
            lines = "".join(json.dumps(entry) + "\n" for entry in restarts)
            self._folder.write_text(RESTARTS_FILE, lines)
            for line in [*complaints, _restart_line(restart)]:
                self._events.post_text(line)
        if not is_continuation:
            self._events.post_text(f"precision: {state.precision}")
        self._num_restarts = len(restarts)
        resume_step = -1 if resumed_from is None else state.step
        steps = (record["step"] for record in records if "step" in record)
        self._previous_step = max((step for step in steps if step <= resume_step), default=-1)
        self._writer = MetricsWriter(self._folder, resume_step, has_board=self._has_board)

    def record(self, state: TrainState, values: Mapping[str, Any]) -> None:
        """Write one record at the state's step. A number that is not finite becomes null, never another number."""
        if not self._is_active:
            return
        record: Record = {
            "step": state.step,
            "time": time.time(),
            **{name: value if is_writable(value) else None for name, value in values.items()},
            **state.counters,
            "run/progress": state.progress,
            "run/restarts": self._num_restarts,
        }
        self._writer.write(record)
        more = {"eta_seconds": self._eta_seconds(state.progress), "previous_step": self._previous_step}
        self._events.post_record(record | more)
        self._previous_step = state.step

    def digest(self, step: int, digest: int, position: Position) -> None:
        """Note the digest of a step's global batch, and up to which row it was taken."""
        if self._is_active:
            self._writer.write_digest(step, digest, *position)

    def sync(self) -> None:
        """Bring what is written to the run's folder."""
        if self._is_active:
            self._writer.sync()

    def close(self) -> None:
        """Write no more."""
        if self._is_active:
            self._writer.close()

    def _eta_seconds(self, progress: float) -> float | None:
        done = progress - self._progress_at_start
        return (time.monotonic() - self._began) * (1 - progress) / done if done > 0 else None


def is_writable(value: Any) -> bool:
    """Whether JSON (and Ray) can hold the value as it is."""
    return not isinstance(value, float) or math.isfinite(value)


def _describe_restart(state: TrainState, resumed_from: str | None, last_record: float | None) -> dict[str, Any]:
    lost_seconds = None
    if resumed_from is not None and last_record is not None:
        lost_seconds = max(last_record - state.saved_at, 0.0)
    return {
        "time": time.time(),
        "checkpoint": resumed_from,
        "step": state.step,
        "position": state.position,
        "lost_seconds": lost_seconds,
    }


def _restart_line(restart: Mapping[str, Any]) -> str:
    if restart["checkpoint"] is None:
        return "starting again from step 0: the run had no complete checkpoint yet"
    group, row = restart["position"]
    return (
        f"resuming from {restart['checkpoint']}: step {restart['step']:,}, after row {row:,} of group {group:,}; "
        f"{restart['lost_seconds'] or 0:.0f} s of work since then are done again"
    )
