"""A plan -> a fitted `Tuner`: each trial an ordinary run, launched by an actor. The one module with Ray Tune."""

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ray.tune
import torch
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distil_ray.errors import DivergedError, InputError, RunError, reason_of
from distil_ray.reporting.report import NAME
from distil_ray.runs.cluster import (
    DRIVER_CPUS,
    check_fits,
    connect,
    has_autoscaler,
    runs_at_once,
    slots_needed,
    usable_cpus,
    worker_resources,
)
from distil_ray.runs.console import Console
from distil_ray.runs.events import Line
from distil_ray.runs.lease import Claim, holding
from distil_ray.runs.storage import RunFolder
from distil_ray.studies.board import Board, Relay, describe
from distil_ray.studies.objective import ReportObjective
from distil_ray.studies.search_report import report_on
from distil_ray.studies.settings import SEARCH_FILE, Plan, Search, SearchConfig
from distil_ray.studies.suggest import suggest
from distil_ray.studies.trials import (
    BEST_FILE,
    FAILED_FILE,
    FIRST_TRIAL,
    Score,
    Trial,
    Trials,
    best,
    write_hparams,
    write_results,
)
from distil_ray.training.identity import Identity
from distil_ray.training.launcher import check_learned_settings, examine, launch

_TUNE_FOLDER = "tune"  # Ray Tune's own notes, of which nothing is needed to go on
_RETRIED_FILE = "retried.json"  # in a trial's folder: why it failed the last time
_PROGRESS = "run/progress"
_NUM_SHOWN = 6  # trials in a dry run


def search(plan: Plan, *, retry_failed: bool = False) -> None:
    """Do the whole search, or what is left of it.

    Raises:
        InputError: bad configuration or input, found before the start where that is possible.
        RunError: no trial reached its end.
    """
    run = plan.config.run
    folder = RunFolder(run.storage_path, run.name)
    check_learned_settings(plan.identity(), folder)
    with holding(folder, "distil_ray.tune", Console().line) as claim:
        _search(plan, claim, retry_failed=retry_failed)


def _search(plan: Plan, claim: Claim, *, retry_failed: bool) -> None:
    trials, board, known = _open(plan)
    if retry_failed:
        for trial in trials:
            if trial.status == "failed":
                trials.reopen(trial.name)
    if len(trials) < plan.num_trials or any(trial.status == "open" for trial in trials):
        _fit(plan, trials, board, known, claim)
    write_results(plan, trials)
    if best(trials, plan.direction) is None:
        messages = [f"\n  {trial.name}: {trial.message}" for trial in trials if trial.message]
        raise RunError(f"none of the {len(trials)} trials came to its end:{''.join(messages)}")
    report = report_on(plan, trials)
    files = report.files()
    for suffix, text in files.items():
        trials.folder.write_text(f"{NAME}{suffix}", text)
    board.line(f"\n{report.to_text()}\n")
    place = f"{plan.config.run.storage_path}/{plan.config.run.name}"
    board.line(f"report: {place}/{NAME}{', '.join(files)}")
    board.line(f"best configuration: {place}/{BEST_FILE}")
    board.line(f"to train it again: python -m distil_ray.train --config {place}/{BEST_FILE}")


def dry_run(plan: Plan) -> None:
    """Check everything that a search would, and show what it would try; nothing is trained.

    Raises:
        InputError: whatever a search would refuse.
    """
    trials, board, known = _open(plan)
    examine(plan.config, trials.folder, board, known)
    board.line(connect(_own_cpu_slots(plan)))
    check_fits(plan.config, DRIVER_CPUS)
    board.line(f"{plan.num_trials} trials, {_at_once(plan, board)} at a time; the first ones:")
    num_by_chance = plan.num_trials if plan.search.searcher == "random" else plan.search.startup_trials
    board.line(f"  the settings as they stand ({describe(plan, {})})")
    for number in range(1, min(plan.num_trials, num_by_chance, _NUM_SHOWN)):
        point = suggest(plan.space, plan.search, plan.direction, (), number)
        board.line(f"  {describe(plan, plan.space.settings(point, number - 1))}")
    board.line("dry run: nothing was trained")


def _open(plan: Plan) -> tuple[Trials, Board, Identity | None]:
    """What there is of the search, and what it was made with, if the folder is not another's."""
    run = plan.config.run
    folder = RunFolder(run.storage_path, run.name)
    known = check_learned_settings(plan.identity(), folder, SearchConfig)
    trials = Trials(folder, plan.folder, plan.search.metric)
    return trials, Board(plan, trials), known


def _fit(plan: Plan, trials: Trials, board: Board, known: Identity | None, claim: Claim) -> None:
    """Run every trial that is open or still to be made."""
    config, folder = plan.config, trials.folder
    identity = replace(examine(config, folder, board, known).identity, learned=plan.identity())
    board.line(connect(_own_cpu_slots(plan)))
    check_fits(config, DRIVER_CPUS)
    at_once = _at_once(plan, board)
    identity.write(folder)
    folder.write_text(SEARCH_FILE, plan.to_yaml())
    folder.remove(_TUNE_FOLDER)
    num_settled = sum(trial.status != "open" for trial in trials)
    board.line(
        f"search {config.run.name} in {folder.path}: {num_settled} of {plan.num_trials} trials are done, "
        f"{at_once} at a time"
    )
    scheduler = _scheduler(plan.search, plan.direction)
    _replay(scheduler, trials, board)
    num_left = max(plan.num_trials, len(trials)) - sum(trial.status != "open" for trial in trials)
    if not num_left:  # it was killed when the last trial was to be stopped
        return
    events = Line()
    trainable: Any = ray.tune.with_parameters(_run_trial, plan=plan, basis=identity, events=events, claim=claim)
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silenced
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run writes its own metrics
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command at once; nothing is lost by it
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails early has reported nothing
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is said by the board
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, {"CPU": DRIVER_CPUS}),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Suggestions(plan, trials, board),
            scheduler=scheduler,
            num_samples=num_left,
            max_concurrent_trials=at_once,
        ),
        run_config=ray.tune.RunConfig(
            name=_TUNE_FOLDER,
            storage_path=folder.path,
            storage_filesystem=folder.arrow_filesystem,
            failure_config=ray.tune.FailureConfig(max_failures=plan.search.max_failures),
            verbose=0,
        ),
    )
    try:
        with board.following(events):
            tuner.fit()
    finally:
        events.close()
    folder.remove(_TUNE_FOLDER)


def _own_cpu_slots(plan: Plan) -> float:
    """CPU slots of a Ray that is started on this machine: as many trials as it has cores (or GPUs) for."""
    config = plan.config
    workers = config.runtime.max_workers
    if config.runtime.use_gpu:
        places = torch.cuda.device_count() // workers
    else:
        places = int(usable_cpus() // (worker_resources(config)["CPU"] * workers))
    at_once = max(min(places, plan.search.max_concurrent or places, plan.num_trials), 1)
    return at_once * slots_needed(config, workers, DRIVER_CPUS)["CPU"]


def _at_once(plan: Plan, board: Board) -> int:
    fitting, asked = runs_at_once(plan.config), plan.search.max_concurrent
    if asked is not None and has_autoscaler():  # for which the nodes of further trials are still to come
        return min(asked, plan.num_trials)
    if asked is not None and asked > fitting:
        board.line(f"search.max_concurrent: given {asked}, but the cluster has room for {fitting}")
    return min(fitting, asked or fitting, plan.num_trials)


# ---------------------------------------------------------------------------------------------- what Ray Tune calls


def _run_trial(spec: Mapping[str, Any], *, plan: Plan, basis: Identity, events: Line, claim: Claim) -> None:
    """A trial, in an actor of its own. What may pass is raised, for Tune to try again, and written down for then."""
    name = spec["trial"]
    relay = Relay(events, name)
    folder = RunFolder(plan.folder, name)
    if folder.exists(_RETRIED_FILE):
        relay.show("line", f"is tried again: {folder.read_json(_RETRIED_FILE)['message']}")
    try:
        config = plan.trial_config(name, json.loads(spec["settings"]))
        launch(config, relay, [ReportObjective(plan.search.metric)], basis, claim)
    except (InputError, DivergedError) as error:  # it would fail again
        folder.write_json(FAILED_FILE, {"message": str(error)})
    except Exception as error:
        message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {reason_of(error)}"
        folder.write_json(_RETRIED_FILE, {"message": message})
        raise


class _Suggestions(Searcher):
    """Hands Tune the open trials and then new ones, and notes what becomes of each."""

    def __init__(self, plan: Plan, trials: Trials, board: Board) -> None:
        super().__init__(metric=plan.search.metric, mode=plan.direction)
        self._plan, self._trials, self._board = plan, trials, board
        self._open = [trial.name for trial in trials if trial.status == "open"]
        self._names: dict[str, str] = {}  # by Tune's id of the trial

    def suggest(self, trial_id: str) -> Any:
        """The next trial; its settings as text, since Tune would take mappings and slashes in them for its own."""
        if self._open:
            trial = self._trials[self._open.pop(0)]
        elif len(self._trials) < self._plan.num_trials:
            trial = new_trial(self._plan, self._trials)
        else:
            return Searcher.FINISHED
        self._names[trial_id] = trial.name
        self._board.started(trial)
        return {"trial": trial.name, "settings": json.dumps(trial.settings)}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note an evaluation."""
        if self.metric in result:
            name = self._names[trial_id]
            score = Score(result["step"], result[_PROGRESS], result[self.metric], time.time())
            self._trials.score(name, score)
            self._board.scored(self._trials[name], score)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Note the end of a trial; ``error``: it failed too often, or its actor was lost."""
        name = self._names[trial_id]
        run = self._trials.run_folder(name)
        if error:
            lost = {"message": "the process that launched it was lost, as with its node"}
            run.write_json(FAILED_FILE, run.read_json(_RETRIED_FILE) if run.exists(_RETRIED_FILE) else lost)
        run.remove(_RETRIED_FILE)
        trial = self._trials.settle(name, is_stopped=True)
        write_hparams(self._plan, trial, run)
        self._board.settled(trial)
        write_results(self._plan, self._trials)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Tune's own notes, as below."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials are in the search's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


def new_trial(plan: Plan, trials: Trials) -> Trial:
    """Make and note the next trial: the settings as they stand, then what the searcher suggests."""
    number = len(trials)
    if number == 0:
        return trials.add({}, plan.space.point(plan.values({})))
    point = suggest(plan.space, plan.search, plan.direction, trials, number)
    return trials.add(plan.space.settings(point, number - 1), point)


# ---------------------------------------------------------------------------------------------------- stopping early


def _scheduler(search: Search, direction: str) -> Any:
    return FIFOScheduler() if search.scheduler == "none" else _Asha(search, direction)


class _Asha(AsyncHyperBandScheduler):
    """Ray's ASHA, which knows trials by their names, so that it can be told what happened before a restart.

    The first trial, with the settings as they stand, is never stopped: the best one is to be compared with it.
    """

    def __init__(self, search: Search, direction: str) -> None:
        times: dict[str, Any] = {  # fractions, for all that Ray says of integers
            "grace_period": search.grace_fraction,
            "max_t": 1 - 1e-9,  # no look at the end, where a trial is about to write its student
        }
        super().__init__(
            time_attr=_PROGRESS,
            metric=search.metric,
            mode=direction,
            reduction_factor=search.reduction_factor,
            stop_last_trials=False,
            **times,
        )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _by_name(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        named = _by_name(trial)
        action: str = super().on_trial_result(tune_controller, named, result)
        return str(TrialScheduler.CONTINUE) if named.trial_id == FIRST_TRIAL else action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _by_name(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _by_name(trial))


def _by_name(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["trial"], config=trial.config)


def _replay(scheduler: Any, trials: Trials, board: Board) -> None:
    """Tell the scheduler of all evaluations so far, in the order in which they were made."""
    stand_ins = {trial.name: SimpleNamespace(config={"trial": trial.name}) for trial in trials}
    for stand_in in stand_ins.values():
        scheduler.on_trial_add(None, stand_in)
    for name, score in _by_time(trials):
        result = {_PROGRESS: score.progress, scheduler.metric: score.value}
        action = scheduler.on_trial_result(None, stand_ins[name], result)
        if action == TrialScheduler.STOP and trials[name].status == "open":
            board.settled(trials.settle(name, is_stopped=True))


def _by_time(trials: Iterable[Trial]) -> list[tuple[str, Score]]:
    return sorted(((trial.name, score) for trial in trials for score in trial.scores), key=lambda pair: pair[1].time)
