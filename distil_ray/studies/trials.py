"""The trials of a search, kept in its folder so that a killed search can be resumed, and files with their results.

``trials.json`` names every trial before it starts, with its settings. What a trial achieved is stored in its run's
folder alone and is read back from there, so that the two cannot disagree.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from torch.utils.tensorboard import SummaryWriter

from distil_ray.config import Config, shown, to_yaml
from distil_ray.errors import InputError
from distil_ray.runs.storage import FINISHED_FILE, TENSORBOARD_FOLDER, RunFolder
from distil_ray.studies.settings import TRIALS_FOLDER, Direction, SearchPlan
from distil_ray.studies.space import Point, Settings
from distil_ray.training.metrics import Record, read_records

TRIALS_FILE = "trials.json"
FAILED_FILE = "failed.json"
_NAME = "trial-{:03d}"
FIRST_TRIAL = _NAME.format(0)  # with the unchanged settings

Status = Literal["open", "finished", "stopped", "failed"]


class Score(NamedTuple):
    """The objective ``value`` at a moment of a trial: its ``step``, ``progress`` in [0, 1] and Unix ``time``."""

    step: int
    progress: float
    value: float
    time: float = 0.0


@dataclass(frozen=True)
class Trial:
    """One setting and how far it got.

    Attributes:
        settings: by dotted key, on top of the configuration; empty for the first trial.
        point: the same as parameters; None if it is not in the space.
        status: open means waiting, running or interrupted.
        message: why it failed.
        scores: of all evaluations after the first step, in order.
    """

    name: str
    settings: Settings
    point: Point | None
    status: Status = "open"
    message: str = ""
    scores: tuple[Score, ...] = field(default=())

    @property
    def value(self) -> float | None:
        return self.scores[-1].value if self.scores else None

    def loss(self, direction: Direction) -> float:
        """The newest objective as a number that is to be small; infinite without one."""
        if self.value is None:
            return math.inf
        return self.value if direction == "min" else -self.value


class Trials:
    """All trials of a search, in the order in which they were made. Only the search's own process writes them."""

    def __init__(self, path: str, metric: str) -> None:
        """Read back what is in the folder of a search, which may have been moved.

        Args:
            path: path or URL of the folder.
            metric: the objective.

        Raises:
            InputError: its notes are damaged.
        """
        self.folder = RunFolder.at(path)
        self._runs = f"{path.rstrip('/')}/{TRIALS_FOLDER}"
        self._metric = metric
        self._trials: dict[str, Trial] = {}
        if self.folder.exists(TRIALS_FILE):
            for entry in self.folder.read_json(TRIALS_FILE, "trials")["trials"]:
                self._trials[entry["name"]] = self._caught_up(Trial(**entry))

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials.values()))

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, name: str) -> Trial:
        return self._trials[name]

    def run_folder(self, name: str) -> RunFolder:
        return RunFolder(self._runs, name)

    def add(self, settings: Settings, point: Point | None) -> Trial:
        trial = Trial(_NAME.format(len(self)), settings, point)
        self._trials[trial.name] = trial
        self._write()
        return trial

    def score(self, name: str, score: Score) -> None:
        """Note an evaluation, which the run has recorded; later scores are dropped, as their steps are repeated."""
        trial = self._trials[name]
        kept = tuple(old for old in trial.scores if old.step < score.step)
        self._trials[name] = replace(trial, scores=(*kept, score))

    def settle(self, name: str) -> Trial:
        """Note how a trial ended, as its folder says; one that neither finished nor failed was stopped."""
        trial = self._caught_up(self._trials[name])
        if trial.status == "open":
            trial = replace(trial, status="stopped")
        self._trials[name] = trial
        self._write()
        return trial

    def reopen(self, name: str) -> None:
        """Let a failed trial be tried again."""
        self.run_folder(name).remove(FAILED_FILE)
        self._trials[name] = replace(self._trials[name], status="open", message="")
        self._write()

    def _caught_up(self, trial: Trial) -> Trial:
        run = self.run_folder(trial.name)
        trial = replace(trial, scores=tuple(scores_of(read_records(run), self._metric)))
        if trial.status != "open":
            return trial
        if run.exists(FINISHED_FILE):
            return replace(trial, status="finished")
        if run.exists(FAILED_FILE):
            return replace(trial, status="failed", message=_read_message(run))
        return trial

    def _write(self) -> None:
        entries = [asdict(replace(trial, scores=())) for trial in self]
        self.folder.write_json(TRIALS_FILE, {"trials": entries})


def _read_message(run: RunFolder) -> str:
    """Why a trial failed; that it did is known from the file's existence."""
    try:
        return str(run.read_json(FAILED_FILE, "message")["message"])
    except InputError as error:
        return str(error)


def scores_of(records: list[Record], metric: str) -> Iterator[Score]:
    """The evaluations of a run after its first step."""
    for record in records:
        if record["step"] > 0 and record.get(metric) is not None:
            yield Score(record["step"], record["run/progress"], record[metric], record["time"])


def best(trials: Trials | list[Trial], direction: Direction) -> Trial | None:
    """The finished trial with the best final objective; of equals, the earliest."""
    finished = [trial for trial in trials if trial.status == "finished" and trial.value is not None]
    return min(finished, key=lambda trial: trial.loss(direction), default=None)


def common_step(trials: Trials | list[Trial]) -> int | None:
    """The last step at which all trials with scores have been evaluated, so that they can be compared there."""
    steps = [{score.step for score in trial.scores} for trial in trials if trial.scores]
    return max(set.intersection(*steps), default=None) if steps else None


def value_at(trial: Trial, step: int | None) -> float | None:
    return next((score.value for score in trial.scores if score.step == step), None)


CSV_FILE = "trials.csv"
PARQUET_FILE = "trials.parquet"
BEST_FILE = "best.yaml"


def write_results(plan: SearchPlan, trials: Trials) -> None:
    """Write what is known so far into the search's folder."""
    folder = trials.folder
    table = to_table(plan, trials)
    text, binary = io.BytesIO(), io.BytesIO()
    pa.csv.write_csv(table, text)
    pq.write_table(table, binary)
    folder.write_bytes(CSV_FILE, text.getvalue())
    folder.write_bytes(PARQUET_FILE, binary.getvalue())
    top = best(trials, plan.direction)
    if top is not None:
        folder.write_text(BEST_FILE, best_yaml(plan, top, len(trials)))


def to_table(plan: SearchPlan, trials: Trials) -> pa.Table:
    """One row per trial: how it ended, its settings, its newest held-out figures."""
    rows = [_row(plan, trial, read_records(trials.run_folder(trial.name))) for trial in trials]
    columns = {name: [row.get(name) for row in rows] for row in rows for name in row}
    for key in plan.space.keys:
        if not all(isinstance(value, int | float) for value in columns[key]):
            columns[key] = [shown(value) for value in columns[key]]
    return pa.table(columns)


def _row(plan: SearchPlan, trial: Trial, records: list[Record]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for record in records:
        figures |= {name: value for name, value in record.items() if name.startswith("eval/")}
    return {
        "trial": trial.name,
        "status": trial.status,
        "objective": trial.value,
        "step": trial.scores[-1].step if trial.scores else None,
        "progress": trial.scores[-1].progress if trial.scores else None,
        **plan.values(trial.settings),
        **dict(sorted(figures.items())),
        "seconds": records[-1]["time"] - records[0]["time"] if records else None,
        "message": trial.message or None,
    }


def best_config(plan: SearchPlan, trial: Trial) -> Config:
    """The configuration of a run that trains a trial's settings again, in a folder next to the search's."""
    run = plan.config.run
    config = plan.trial_config(f"{run.name[:95]}-best", trial.settings)
    return config.model_copy(update={"run": config.run.model_copy(update={"storage_path": run.storage_path})})


def best_yaml(plan: SearchPlan, trial: Trial, num_trials: int) -> str:
    """The best configuration as YAML, with a comment that says where it comes from."""
    score = trial.scores[-1]
    return (
        f"# The best of {num_trials} trials of the search {plan.config.run.name}: {trial.name}, "
        f"{plan.search.metric} {score.value:.4f} after {score.step:,} steps.\n"
        f"{to_yaml(best_config(plan, trial))}"
    )


def write_hparams(plan: SearchPlan, trial: Trial, run: RunFolder) -> None:
    """Add the trial's settings to the TensorBoard files of its run, where the objective's curve already is."""
    settings = {key: _plain(value) for key, value in plan.values(trial.settings).items()}
    metrics = {} if trial.value is None else {plan.search.metric: trial.value}
    step = trial.scores[-1].step if trial.scores else 0
    with TemporaryDirectory(prefix="distil_ray_") as temporary:
        with SummaryWriter(temporary) as writer:
            writer.add_hparams(settings, metrics, run_name=trial.name, global_step=step)
        run.upload(Path(temporary) / trial.name, TENSORBOARD_FOLDER)


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
