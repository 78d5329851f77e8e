"""What rank 0 writes down and tells the driver."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

from distil_ray.training.checkpoint import TrainState
from distil_ray.training.metrics import METRICS_FILE, MetricsWriter, Record
from distil_ray.training.storage import RunFolder

RESTARTS_FILE = "restarts.jsonl"


class Events(Protocol):
    """Where messages to the driver go."""

    def line(self, text: str) -> None:
        """Pass on a line of text without waiting."""

    def record(self, record: Record) -> None:
        """Pass on metrics without waiting."""


class Reporter:
    """Writes the records of a run and tells the driver of them; does nothing on the other workers."""

    def __init__(self, folder: RunFolder, events: Events, *, is_active: bool) -> None:
        self._folder = folder
        self._events = events
        self._is_active = is_active

    def begin(
        self, state: TrainState, resumed_from: str | None, complaints: list[str], *, is_continuation: bool
    ) -> None:
        """Open the files behind ``state``, and say where the run goes on if it does not begin here."""
        if not self._is_active:
            return
        self._began, self._progress_at_start = time.monotonic(), state.progress
        restarts, damaged_restarts = self._folder.read_json_lines(RESTARTS_FILE)
        records, damaged_records = self._folder.read_json_lines(METRICS_FILE)
        for line in [*damaged_restarts, *damaged_records]:
            self._events.line(line)
        last_record = max((record["time"] for record in records if "time" in record), default=None)
        if (resumed_from is not None or last_record is not None) and not is_continuation:
            restart = _describe_restart(state, resumed_from, last_record)
            restarts.append(restart)
            lines = "".join(json.dumps(entry) + "\n" for entry in restarts)
            self._folder.write_text(RESTARTS_FILE, lines)
            for line in [*complaints, _restart_line(restart)]:
                self._events.line(line)
        self._num_restarts = len(restarts)
        self._writer = MetricsWriter(self._folder, -1 if resumed_from is None else state.step)

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
        self._events.record({**record, "eta_seconds": self._eta_seconds(state.progress)})

    def digest(self, state: TrainState, digest: int) -> None:
        """Note the digest of the step that led to ``state``."""
        if self._is_active:
            self._writer.write_digest(state.step, digest, *state.position)

    def sync(self) -> None:
        """Bring what is written to the run's folder."""
        if self._is_active:
            self._writer.sync()

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
        f"resuming from {restart['checkpoint']}: step {restart['step']:,}, behind row {row:,} of group {group:,}; "
        f"{restart['lost_seconds'] or 0:.0f} s of work since then are done again"
    )
