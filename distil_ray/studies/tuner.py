"""A plan -> a fitted `Tuner`: each trial an ordinary run, launched by an actor. The one module with Ray Tune."""

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

import ray.tune
import torch
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
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
from distil_ray.runs.events import EventQueue
from distil_ray.runs.lease import Claim, holding
from distil_ray.runs.storage import RunFolder
from distil_ray.runs.trackers import check_trackers, conclude
from distil_ray.studies.asha import Asha
from distil_ray.studies.display import SearchDisplay, TrialConsole
from distil_ray.studies.objective import ReportObjective
from distil_ray.studies.search_report import report_on
from distil_ray.studies.settings import SEARCH_FILE, SearchConfig, SearchPlan
from distil_ray.studies.suggest import suggest
from distil_ray.studies.trials import (
    BEST_FILE,
    FAILED_FILE,
    Score,
    Trial,
    Trials,
    best,
    write_hparams,
    write_results,
)
from distil_ray.training.examination import examine
from distil_ray.training.identity import Identity
from distil_ray.training.launcher import check_learned_settings, launch

_TUNE_FOLDER = "tune"  # of Ray Tune itself; nothing in it is needed to resume
_RETRIED_FILE = "retried.json"  # in a trial's folder: why the last attempt failed
_PROGRESS = "run/progress"
_NUM_SHOWN = 6  # trials in a dry run


def search(plan: SearchPlan, *, retry_failed: bool = False) -> Trial:
    """Run the search, or resume it, and return the best trial.

    Raises:
        InputError: bad configuration or input, found before the start where that is possible.
        RunError: no trial finished.
    """
    check_trackers(plan.config)
    folder = RunFolder.at(plan.folder)
    check_learned_settings(plan.identity(), folder)
    with holding(folder, "distil-ray tune", Console().line) as claim:
        return _search(plan, claim, retry_failed=retry_failed)


def _search(plan: SearchPlan, claim: Claim, *, retry_failed: bool) -> Trial:
    trials, display, known = _open(plan)
    if retry_failed:
        for trial in trials:
            if trial.status == "failed":
                trials.reopen(trial.name)
    if len(trials) < plan.num_trials or any(trial.status == "open" for trial in trials):
        _fit(plan, trials, display, known, claim)
    write_results(plan, trials)
    if (top := best(trials, plan.direction)) is None:
        messages = [f"\n  {trial.name}: {trial.message}" for trial in trials if trial.message]
        raise RunError(f"none of the {len(trials)} trials finished:{''.join(messages)}")
    report = report_on(plan, trials)
    files = report.files()
    for suffix, text in files.items():
        trials.folder.write_text(f"{NAME}{suffix}", text)
    display.line(f"\n{report.to_text()}\n")
    display.line(f"report: {plan.folder}/{NAME}{', '.join(files)}")
    display.line(f"best configuration: {plan.folder}/{BEST_FILE}")
    display.line(f"to train it again: distil-ray train --config {plan.folder}/{BEST_FILE}")
    return top


def dry_run(plan: SearchPlan) -> None:
    """Check everything that a search would check, and show what it would try; trains nothing.

    Raises:
        InputError: anything that a search would refuse.
    """
    check_trackers(plan.config)
    trials, display, known = _open(plan)
    examine(plan.config, trials.folder, display, known)
    display.line(connect(_own_cpu_slots(plan), dashboard=True))
    check_fits(plan.config, DRIVER_CPUS)
    display.line(f"{plan.num_trials} trials, {_at_once(plan, display)} at a time; the first ones:")
    num_by_chance = plan.num_trials if plan.search.searcher == "random" else plan.search.startup_trials
    display.line(f"  the unchanged settings ({plan.describe({})})")
    for number in range(1, min(plan.num_trials, num_by_chance, _NUM_SHOWN)):
        point = suggest(plan.space, plan.search, plan.direction, (), number)
        display.line(f"  {plan.describe(plan.space.settings(point, number - 1))}")
    display.line("dry run: nothing was trained")


def _open(plan: SearchPlan) -> tuple[Trials, SearchDisplay, Identity | None]:
    """The trials so far, their display, and the identity of the search that the folder holds, None if it holds none."""
    trials = Trials(plan.folder, plan.search.metric)
    known = check_learned_settings(plan.identity(), trials.folder, SearchConfig)
    return trials, SearchDisplay(plan, trials), known


def _fit(plan: SearchPlan, trials: Trials, display: SearchDisplay, known: Identity | None, claim: Claim) -> None:
    """Run every trial that is open or yet to be made."""
    config, folder = plan.config, trials.folder
    identity = replace(examine(config, folder, display, known).identity, learned=plan.identity())
    display.line(connect(_own_cpu_slots(plan), dashboard=True))
    check_fits(config, DRIVER_CPUS)
    at_once = _at_once(plan, display)
    identity.write(folder)
    folder.write_text(SEARCH_FILE, plan.to_yaml())
    folder.remove(_TUNE_FOLDER)
    num_settled = sum(trial.status != "open" for trial in trials)
    display.line(
        f"search {config.run.name} in {folder.path}: {num_settled} of {plan.num_trials} trials are done, "
        f"{at_once} at a time"
    )
    scheduler = _scheduler(plan, trials, display)
    num_left = max(plan.num_trials, len(trials)) - sum(trial.status != "open" for trial in trials)
    if not num_left:  # the search was killed when only the last trial was to be stopped
        return
    events = EventQueue()
    trainable: Any = ray.tune.with_parameters(_run_trial, plan=plan, basis=identity, events=events, claim=claim)
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silenced
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run writes its own metrics
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command at once; nothing is lost by it
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails early has reported nothing
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is printed by the display
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, {"CPU": DRIVER_CPUS}),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Suggestions(plan, trials, display),
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
        with display.following(events):
            tuner.fit()
    finally:
        events.close()
    folder.remove(_TUNE_FOLDER)
    stopped = [trial for trial in trials if trial.status == "stopped"]  # with their processes
    runs = [(plan.trial_config(trial.name, trial.settings), trials.run_folder(trial.name)) for trial in stopped]
    conclude(runs, display.line, config.run.name)


def _own_cpu_slots(plan: SearchPlan) -> float:
    """CPU slots of a Ray that is started on this machine: enough for as many trials as it has cores (or GPUs) for."""
    config = plan.config
    workers = config.runtime.max_workers
    if config.runtime.use_gpu:
        places = torch.cuda.device_count() // workers
    else:
        places = int(usable_cpus() // (worker_resources(config)["CPU"] * workers))
    at_once = max(min(places, plan.search.max_concurrent or places, plan.num_trials), 1)
    return at_once * slots_needed(config, workers, DRIVER_CPUS)["CPU"]


def _at_once(plan: SearchPlan, display: SearchDisplay) -> int:
    fitting, asked = runs_at_once(plan.config), plan.search.max_concurrent
    if asked is not None and has_autoscaler():  # which will add nodes for the other trials
        return min(asked, plan.num_trials)
    if asked is not None and asked > fitting:
        display.line(f"search.max_concurrent: given {asked}, but the cluster has room for {fitting}")
    return min(fitting, asked or fitting, plan.num_trials)


# ---------------------------------------------------------------------------------------------- what Ray Tune calls


def _run_trial(spec: Mapping[str, Any], *, plan: SearchPlan, basis: Identity, events: EventQueue, claim: Claim) -> None:
    """Run a trial, in its own actor. A failure that may be temporary is noted and raised, so that Tune tries again."""
    name = spec["trial"]
    console = TrialConsole(events, name)
    folder = RunFolder(plan.trials_folder, name)
    if folder.exists(_RETRIED_FILE):
        console.show("line", f"is tried again: {folder.read_json(_RETRIED_FILE)['message']}")
    try:
        config = plan.trial_config(name, json.loads(spec["settings"]))
        launch(config, console, [ReportObjective(plan.search.metric)], basis, claim, group=plan.config.run.name)
    except (InputError, DivergedError) as error:  # it would fail again
        folder.write_json(FAILED_FILE, {"message": str(error)})
    except Exception as error:
        message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {reason_of(error)}"
        folder.write_json(_RETRIED_FILE, {"message": message})
        raise


class _Suggestions(Searcher):
    """Gives Tune the open trials and then new ones, and notes how each ends."""

    def __init__(self, plan: SearchPlan, trials: Trials, display: SearchDisplay) -> None:
        super().__init__(metric=plan.search.metric, mode=plan.direction)
        self._plan, self._trials, self._display = plan, trials, display
        self._open = [trial.name for trial in trials if trial.status == "open"]
        self._names: dict[str, str] = {}  # by Tune's id of the trial

    def suggest(self, trial_id: str) -> Any:
        """The next trial; its settings as text, as Tune would interpret mappings and slashes in them."""
        if self._open:
            trial = self._trials[self._open.pop(0)]
        elif len(self._trials) < self._plan.num_trials:
            trial = new_trial(self._plan, self._trials)
        else:
            return Searcher.FINISHED
        self._names[trial_id] = trial.name
        self._display.started(trial)
        return {"trial": trial.name, "settings": json.dumps(trial.settings)}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if self.metric in result:
            name = self._names[trial_id]
            score = Score(result["step"], result[_PROGRESS], result[self.metric], time.time())
            self._trials.score(name, score)
            self._display.scored(self._trials[name], score)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Note how a trial ended; ``error``: it failed too often, or its actor was lost."""
        name = self._names[trial_id]
        run = self._trials.run_folder(name)
        if error:
            lost = {"message": "the process that launched it was lost, for example with its node"}
            run.write_json(FAILED_FILE, run.read_json(_RETRIED_FILE) if run.exists(_RETRIED_FILE) else lost)
        run.remove(_RETRIED_FILE)
        trial = self._trials.settle(name)
        if "tensorboard" in self._plan.config.metrics.trackers:
            write_hparams(self._plan, trial, run)
        self._display.settled(trial)
        write_results(self._plan, self._trials)

    # Nothing for Tune to save: the trials are in the search's folder.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


def new_trial(plan: SearchPlan, trials: Trials) -> Trial:
    """Make and note the next trial: first the unchanged settings, then what the searcher suggests."""
    number = len(trials)
    if number == 0:
        return trials.add({}, plan.space.point(plan.values({})))
    point = suggest(plan.space, plan.search, plan.direction, trials, number)
    return trials.add(plan.space.settings(point, number - 1), point)


def _scheduler(plan: SearchPlan, trials: Trials, display: SearchDisplay) -> FIFOScheduler:
    if plan.search.scheduler == "none":
        return FIFOScheduler()
    asha = Asha(plan.search, plan.direction)
    replay(asha, trials, display)
    return _Scheduler(asha, plan.search.metric)


class _Scheduler(FIFOScheduler):
    """Stops trials early. It identifies them by name, which stays the same when a search is resumed."""

    def __init__(self, asha: Asha, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._asha, self._objective = asha, metric

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let ASHA decide on an evaluation."""
        if self._objective not in result:
            return str(TrialScheduler.CONTINUE)
        is_stopped = self._asha.stops(trial.config["trial"], result[_PROGRESS], result[self._objective])
        return str(TrialScheduler.STOP if is_stopped else TrialScheduler.CONTINUE)


def replay(asha: Asha, trials: Trials, display: SearchDisplay) -> None:
    """Let ASHA decide again on all evaluations so far, in the order in which they were made."""
    scores = [(score.time, trial.name, score) for trial in trials for score in trial.scores]
    for _, name, score in sorted(scores, key=itemgetter(0)):
        if asha.stops(name, score.progress, score.value) and trials[name].status == "open":
            display.settled(trials.settle(name))
