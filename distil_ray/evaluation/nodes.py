"""The cluster that models are evaluated on: joined, its nodes checked for the models, and its tasks waited for."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distil_ray.errors import InputError, RunError, reason_of
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import Resources
from distil_ray.models.loading import load_tokenizer
from distil_ray.models.origin import Origin
from distil_ray.runs.cluster import connect
from distil_ray.runs.events import EventQueue

Job = TypeVar("Job")
Listing = dict[str, int]  # the files of a model's folder: bytes by name

_PARTS = (".safetensors", ".bin", ".json", ".txt", ".model")  # weights, configuration, tokenizer
_FIRST_SECONDS, _MOST_SECONDS = 60.0, 600.0  # of waiting until something is said
_NUM_NAMED = 4  # of the running tasks; the others are counted
_MAX_SECONDS = 300.0  # to start a process on a busy node and to import torch


def join(models: Iterable[Model], resources: Resources) -> str:
    """Connect to Ray (see `connect`) for work on ``models``; return a line that says to which one.

    Raises:
        InputError: there is no cluster, or a node of it cannot reach a model.
    """
    line = connect(resources.cpus)
    own = ray.get_runtime_context().get_node_id()
    gpus = resources.gpus_for(())  # the smallest share
    nodes = [node for node in ray.nodes() if node["Alive"] and resources.num_fitting(node["Resources"], gpus)]
    others = [node for node in nodes if node["NodeID"] != own]
    check_reachable({model: listing_of(model.path) for model in dict.fromkeys(models)}, others)
    return line


def num_at_a_time(models: Iterable[Model], resources: Resources) -> int:
    """How many tasks that take ``resources`` for the largest of ``models`` the cluster runs at a time, at least one."""
    gpus = max(resources.gpus_for([model]) for model in models)
    return max(1, sum(resources.num_fitting(node["Resources"], gpus) for node in ray.nodes() if node["Alive"]))


def remote_task(function: Callable[..., Any], resources: Resources, model: Model) -> Any:
    """A function as a Ray task that takes ``resources`` for a model and is named like the function."""
    return _remote(function).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus_for([model]),
        max_retries=resources.max_retries,
        name=function.__name__.strip("_"),
    )


@cache
def _remote(function: Callable[..., Any]) -> Any:
    """The function for Ray, wrapped once: Ray starts the calls of one wrapping in order, of several in no order."""
    untyped: Any = function  # Ray's annotations know functions without arguments only
    return ray.remote(untyped)


class Progress:
    """How far tasks are, as each tells it where it runs."""

    def __init__(self) -> None:
        """Begin in the driver; a copy goes to each task."""
        self._events = EventQueue()

    def teller(self, job: Any) -> Callable[[float], None]:
        """For a job's task: takes the share of its work that is done, and passes on each further hundredth."""
        began, told = time.monotonic(), 0.0

        def tell(share: float) -> None:
            nonlocal told
            if share >= told + 0.01:
                told = share
                self._events.note("share", job, (share, time.monotonic() - began))

        return tell

    def shares(self, jobs: Iterable[Job]) -> dict[Job, tuple[float, float]]:
        """For the driver: of those of the jobs that have begun, the share that is done and the seconds it took."""
        known = self._events.noted("share")
        return {job: known[job] for job in jobs if job in known}

    def line(self, jobs: Collection[Job]) -> str:
        """For the driver: how many there still are, and how far the first few of those that have begun."""
        shares = self.shares(jobs)
        named = [f"{job} {share:.0%}" for job, (share, _) in islice(shares.items(), _NUM_NAMED)]
        if more := len(shares) - len(named):
            named.append(f"{more} more running")
        return f"{len(jobs)} to go" + (f": {'; '.join(named)}" if named else "")

    def close(self) -> None:
        """End it, in the driver."""
        self._events.close()


def completed(
    running: dict[Any, Job], what: str, while_waiting: Callable[[], None] = lambda: None
) -> Iterator[tuple[Job, Any]]:
    """Wait for Ray tasks; yield the job and the result of each that succeeds, as they end.

    Args:
        running: the job by its task's reference. A task is removed when it ends.
        what: the jobs in the plural, for the message.
        while_waiting: is called when none has ended for a minute, then after twice as long each time, ten minutes
            at most.

    Raises:
        RunError: after all have ended, if any failed; says which and why.
    """
    num_jobs, failures, patience = len(running), [], _FIRST_SECONDS
    while running:
        ended, _ = ray.wait(list(running), num_returns=1, timeout=patience)
        if not ended:
            while_waiting()
            patience = min(2 * patience, _MOST_SECONDS)
            continue
        (reference,), patience = ended, _FIRST_SECONDS
        job = running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            failures.append(f"\n  {job}: {reason_of(error)}")
            continue
        yield job, result
    if failures:
        raise RunError(f"{len(failures)} of {num_jobs} {what} failed:{''.join(failures)}")


def check_reachable(models: Mapping[Model, Listing], nodes: Sequence[Mapping[str, Any]]) -> None:
    """Check that nodes can load models.

    Args:
        models: each with the files in its folder on this machine, none for a model of the Hub.
        nodes: as `ray.nodes` describes them.

    Raises:
        InputError: a node does not have the same files, or cannot load a model from the Hub.
    """
    function: Any = _problems
    answers = []
    for node in nodes:
        affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)
        answers.append((node["NodeManagerAddress"], remote.remote(models)))
    problems = []
    for address, answer in answers:
        try:
            problems += [f"node {address}: {problem}" for problem in ray.get(answer, timeout=_MAX_SECONDS)]
        except ray.exceptions.RayError as error:
            problems.append(f"node {address}: cannot be checked: {reason_of(error)}")
    if problems:
        raise InputError(
            "not all nodes of the cluster can load the models:\n  "
            + "\n  ".join(problems)
            + "\nexpected folders that all nodes share under the same path, or models of the Hub"
        )


def listing_of(path: str) -> Listing:
    """The files of a model in a folder; empty if there is no such folder."""
    folder = Path(path)
    files = folder.iterdir() if folder.is_dir() else ()
    return {file.name: file.stat().st_size for file in files if file.suffix in _PARTS}


def _problems(expected: Mapping[Model, Listing]) -> list[str]:
    """Why this node cannot load models, a line each. Runs on the node."""
    problems = {model.name: _problem(model.origin, listing) for model, listing in expected.items()}
    return [f"{name}: {problem}" for name, problem in problems.items() if problem]


def _problem(origin: Origin, listing: Listing) -> str | None:
    if origin.revision is not None or not listing:
        try:
            load_tokenizer(origin.path, origin.revision)
        except InputError as error:
            return str(error)
        return None
    found = listing_of(origin.path)
    if not found:
        return f"there is no folder {origin.path}"
    if unlike := sorted(name for name in listing | found if listing.get(name) != found.get(name)):
        return f"{origin.path} is another model there: {', '.join(unlike[:3])} differ in size"
    return None
