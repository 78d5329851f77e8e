"""A run's figures on their way to W&B, MLflow or Trackio, from its driver. The run neither waits for them nor fails.

`metrics.jsonl` is the truth. What a tracker has is all of it up to a step, which is noted in the run's folder beside
the id of its run there. So steps that are done again after a resume are passed over, and what was written while no
driver was there, or while a tracker was out of reach, follows from the file.
"""

import importlib.util
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Full, Queue
from typing import Any, Literal, Protocol

from distil_ray.config import Config, dotted, to_settings
from distil_ray.errors import InputError, OutageError, Stopped, reason_of
from distil_ray.runs.console import Inbox
from distil_ray.runs.figures import figures
from distil_ray.runs.storage import FINISHED_FILE, METRICS_FILE, TRACKERS_FOLDER, RunFolder

Record = Mapping[str, Any]
State = Literal["finished", "failed", "stopped"]

_DEFAULT_PROJECT = "distil_ray"
_END_SECONDS = 30.0  # for what is left at the end: uploads take seconds, and GPUs that wait cost money
_BEGIN_SECONDS = 20.0  # for W&B's server to answer: its library waits that long even at the end of the process
_RETRY_SECONDS = 60.0  # between two attempts at a tracker that fails, each of which may take long
_MAX_WAITING = 1000  # records for a tracker that hangs; the others are in metrics.jsonl
_RECORDS_AT_ONCE = 50
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        group: the search or the ablation that it belongs to.
        settings: its whole configuration, a mapping of sections.
        local_path: of its folder; None if that is remote.
    """

    name: str
    group: str | None
    settings: Mapping[str, Any]
    local_path: str | None


class Tracker(Protocol):
    """A place for figures. All its methods are called in one thread, and may raise or block.

    Attributes:
        place: where the run is to be seen, once it has begun.
    """

    place: str

    def begin(self, run: TrackedRun, known_id: str | None) -> tuple[str, int | None]:
        """Begin a run there, or continue the one with ``known_id``.

        Returns:
            Its id, and the last step that it has: -1 is before the first, None if the tracker cannot tell.
        """

    def log(self, records: Sequence[Record]) -> None:
        """Add records, in the order of their steps."""

    def end(self, state: State, final: Record) -> None:
        """End the run; ``final``: the last figures of a finished one."""


# ---------------------------------------------------------------------------------------------------- the trackers


class Wandb:
    """Weights & Biases, which wants steps in their order. What it writes offline lies in the run's folder."""

    def begin(self, run: TrackedRun, known_id: str | None) -> tuple[str, int | None]:
        import wandb

        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("there is no API key: set WANDB_API_KEY, or WANDB_MODE=offline")
        settings = wandb.Settings(
            console="off",  # the driver's own output stays as it is
            silent=True,
            init_timeout=_BEGIN_SECONDS,
            finish_timeout=_END_SECONDS - 5.0,  # also at the end of the process; then its files can still be synced
            finish_timeout_raises=True,
        )
        run_id = known_id or os.urandom(4).hex()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _DEFAULT_PROJECT),
            id=run_id,
            name=run.name,
            group=run.group or os.environ.get("WANDB_RUN_GROUP"),
            dir=os.environ.get("WANDB_DIR", run.local_path),
            config=dict(run.settings),
            allow_val_change=True,  # on resume, what does not change what is learned may
            resume="allow",
            reinit="create_new",  # trials and ablations have several runs in a process
            settings=settings,
        )
        self._run.summary["run/state"] = "running"
        self.place = self._run.dir if self._run.offline else self._run.url or self._run.id
        return run_id, self._run.step - 1 if self._run.resumed else None  # no server has been asked when offline

    def log(self, records: Sequence[Record]) -> None:
        for record in records:
            self._run.log(figures(record) | {"_timestamp": record["time"]}, step=record["step"], commit=True)

    def end(self, state: State, final: Record) -> None:
        self._run.summary.update(figures(final) | {"run/state": state})
        self._run.finish(exit_code={"finished": 0, "failed": 1, "stopped": 130}[state])


class Mlflow:
    """MLflow. A record that is logged again is the same row for it, as its time is the record's."""

    _MAX_PARAMS, _MAX_METRICS, _MAX_CHARACTERS = 100, 1000, 6000  # limits of its API

    def begin(self, run: TrackedRun, known_id: str | None) -> tuple[str, int | None]:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        if known_id is None:
            tags = {"distil_ray.group": run.group} if run.group else {}
            self._id = self._client.create_run(self._experiment(), run_name=run.name, tags=tags).info.run_id
        else:
            self._id = known_id
            self._client.update_run(self._id, status="RUNNING")
        self.place = f"run {self._id} at {_USER_IN_URL.sub('', self._client.tracking_uri)}"
        known = self._client.get_run(self._id).data.params  # which cannot be changed
        flat = {key: str(value)[: self._MAX_CHARACTERS] for key, value in dotted(run.settings)}
        params = [Param(key, value) for key, value in flat.items() if key not in known]
        for at in range(0, len(params), self._MAX_PARAMS):
            self._client.log_batch(self._id, params=params[at : at + self._MAX_PARAMS])
        return self._id, None

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        if "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _DEFAULT_PROJECT)
        with suppress(MlflowException):  # it is there, perhaps made by another run a moment ago
            return str(self._client.create_experiment(name))
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            raise RuntimeError(f"the experiment {name} can neither be made nor found")
        return str(experiment.experiment_id)

    def log(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(record["time"] * 1000), record["step"])
            for record in records
            for name, value in figures(record).items()
        ]
        for at in range(0, len(metrics), self._MAX_METRICS):
            self._client.log_batch(self._id, metrics=metrics[at : at + self._MAX_METRICS])

    def end(self, state: State, final: Record) -> None:
        """The last value of each metric is its summary."""
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[state]
        self._client.set_terminated(self._id, status)


class Trackio:
    """Trackio, which finds a run by its name: that is followed by some characters of its own."""

    def begin(self, run: TrackedRun, known_id: str | None) -> tuple[str, int | None]:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = known_id or f"{run.name}-{os.urandom(3).hex()}"
        project = os.environ.get("TRACKIO_PROJECT", _DEFAULT_PROJECT)
        is_local = not any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        held = SQLiteStorage.get_last_step(project, name) if is_local and known_id else None
        self._run = trackio.init(
            project=project,
            name=name,
            group=run.group,
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.place = f"run {name} of the project {project}"
        return name, held

    def log(self, records: Sequence[Record]) -> None:
        for record in records:
            self._run.log(figures(record), step=record["step"])

    def end(self, state: State, final: Record) -> None:
        """Trackio has no states: an alert says how the run ended."""
        from trackio import AlertLevel

        level = {"finished": AlertLevel.INFO, "failed": AlertLevel.ERROR, "stopped": AlertLevel.WARN}[state]
        self._run.alert(f"run {state}", level=level)
        self._run.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def check_trackers(config: Config) -> None:
    """Raise InputError for trackers of the configuration whose packages are missing here."""
    missing = [name for name in _chosen(config) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"metrics.trackers: given {' and '.join(missing)} without the packages for it; expected "
            f"pip install 'distil-ray[{','.join(missing)}]' where the command runs, or trackers without it"
        )


def _chosen(config: Config) -> list[str]:
    return [name for name in config.metrics.trackers if name in TRACKERS]


def _without_users(value: Any) -> Any:
    """The same settings; of a URL with a user and a password, these are left out."""
    if isinstance(value, dict):
        return {key: _without_users(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_users(one) for one in value]
    return _USER_IN_URL.sub("", value) if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------------- the shell


class Followers:
    """The trackers of a run, each in a thread of its own."""

    def __init__(self, followers: Sequence["_Follower"]) -> None:
        self._all = followers

    def watching(self, events: Inbox) -> Inbox:
        """The same events, of which the trackers get the records."""
        return _Watched(events, self.offer) if self._all else events

    def offer(self, record: Record) -> None:
        """Pass a record on, without waiting."""
        for follower in self._all:
            follower.offer(record)

    def end(self, state: State) -> None:
        """Let the trackers catch up and end the run there, and wait some time for it."""
        for follower in self._all:
            follower.begin_end(state)
        deadline = time.monotonic() + _END_SECONDS
        for follower in self._all:
            follower.wait_until(deadline)


class _Watched:
    def __init__(self, events: Inbox, offer: Callable[[Record], None]) -> None:
        self._events, self._offer = events, offer

    def get(self, *, timeout: float) -> Any:
        kind, content = self._events.get(timeout=timeout)
        if kind == "record":
            self._offer(content)
        return kind, content


class _Follower:
    """One tracker, kept up with `metrics.jsonl` in a thread."""

    def __init__(
        self, name: str, tracker: Tracker, folder: RunFolder, run: TrackedRun, say: Callable[[str], None]
    ) -> None:
        self._name = name
        self._tracker, self._folder, self._run, self._say = tracker, folder, run, say
        self._note_file = _note_file(name)
        self._id: str | None = None  # of the run there
        self._step = -1  # the last one that the tracker has
        self._has_failed, self._retry_at = False, 0.0
        self._state: State | None = None  # how the run ended
        self._records: Queue[Record | None] = Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def offer(self, record: Record) -> None:
        with suppress(Full):
            self._records.put_nowait(record)

    def begin_end(self, state: State) -> None:
        self._state = state
        with suppress(Full):  # it is awake, then
            self._records.put_nowait(None)

    def wait_until(self, deadline: float) -> None:
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._say(f"tracker {self._name}: has not ended within {_END_SECONDS:.0f} s and is left behind")
            self._say = lambda line: None  # what the end of the process makes of its thread is no news

    def _work(self) -> None:
        self._attempt(self._catch_up)
        while (record := self._records.get()) is not None and self._state is None:
            if time.monotonic() >= self._retry_at:
                self._attempt(partial(self._follow, record))
        self._has_failed = False  # what is missing in the end is worth another line
        self._attempt(self._end)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
            self._has_failed = False
        except Exception as error:  # whatever a library raises
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            if not self._has_failed:
                rest = "the run goes on" if self._state is None else f"it has the steps up to {self._step:,}"
                self._say(f"tracker {self._name}: {reason_of(error)}; {rest}")
            self._has_failed = True

    def _follow(self, record: Record) -> None:
        if self._id is not None and record["previous_step"] <= self._step:
            self._log([record])
        else:  # records before it were missed
            self._catch_up()

    def _catch_up(self) -> None:
        if self._id is None:
            known: dict[str, Any] = {"id": None, "step": -1}
            if self._folder.exists(self._note_file):
                known = self._folder.read_json(self._note_file, "id", "step")
            self._id, held = self._tracker.begin(self._run, known["id"])
            self._step = known["step"] if held is None else held
            self._say(f"tracker {self._name}: {self._tracker.place}")
            self._note()
        records, _ = self._folder.read_json_lines(METRICS_FILE)
        for at in range(0, len(records), _RECORDS_AT_ONCE):
            self._log(records[at : at + _RECORDS_AT_ONCE])

    def _log(self, records: Sequence[Record]) -> None:
        new = [record for record in records if record["step"] > self._step]
        if new:
            self._tracker.log(new)
            self._step = new[-1]["step"]
            self._note()

    def _note(self, ended: State | None = None) -> None:
        self._folder.write_json(self._note_file, {"id": self._id, "step": self._step, "ended": ended})

    def _end(self) -> None:
        self._catch_up()
        assert self._state is not None
        final = self._folder.read_json(FINISHED_FILE) if self._state == "finished" else {}
        self._tracker.end(self._state, final)
        self._note(ended=self._state)


def _say_of(say: Callable[[str], None], name: str, line: str) -> None:
    say(f"{name}  {line}")


def _note_file(name: str) -> str:
    return f"{TRACKERS_FOLDER}/{name}.json"


def _is_open(folder: RunFolder, name: str) -> bool:
    """Whether a tracker has the run, and does not know yet that it has ended."""
    try:
        return folder.read_json(_note_file(name), "ended")["ended"] is None
    except FileNotFoundError:
        return False
    except (InputError, OutageError):  # the follower will say so
        return True


def _follow(
    config: Config, folder: RunFolder, names: Sequence[str], say: Callable[[str], None], group: str | None
) -> list[_Follower]:
    settings = _without_users(to_settings(config))
    run = TrackedRun(config.run.name, group, settings, folder.path if folder.is_local else None)
    return [_Follower(name, TRACKERS[name](), folder, run, say) for name in names]


@contextmanager
def tracking(
    config: Config, folder: RunFolder, say: Callable[[str], None], group: str | None = None
) -> Iterator[Followers]:
    """Keep the run's trackers up while the block runs, and tell them how it ended.

    Args:
        say: prints a line; called in threads.
        group: the search or the ablation that the run belongs to.
    """
    followers = Followers(_follow(config, folder, _chosen(config), say, group))
    state: State = "failed"
    try:
        yield followers
        state = "finished"
    except (Stopped, KeyboardInterrupt, SystemExit):
        state = "stopped"
        raise
    finally:
        followers.end(state)


def conclude(runs: Iterable[tuple[Config, RunFolder]], say: Callable[[str], None], group: str) -> None:
    """Have trackers catch up with runs that were stopped by force, driver and all, and end them there.

    Runs that a tracker does not know, or that have ended there, are passed over.
    """
    followers = []
    for config, folder in runs:
        names = [name for name in _chosen(config) if _is_open(folder, name)]
        followers += _follow(config, folder, names, partial(_say_of, say, config.run.name), group)
    Followers(followers).end("stopped")
