"""Asks every node of the cluster, and puts the verdicts together."""

import logging
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distil_ray.config import Config
from distil_ray.data.plan import DataPlan
from distil_ray.errors import InputError, RunError, reason_of
from distil_ray.runs.cluster import check_fits, connect, has_label, missing_now, slots_needed
from distil_ray.runs.console import Console
from distil_ray.runs.stopping import keeping_sigterm
from distil_ray.runs.storage import RunFolder
from distil_ray.training import verdicts
from distil_ray.training.assembly import build_plan, build_tokenizer
from distil_ray.training.ray_train import time_all_reduce
from distil_ray.training.verdicts import Node, NodeFacts, Verdict, probe

_PATIENCE_SECONDS = 300.0  # for a node to load the models, which it may have to download first


def checkup(config: Config, console: Console) -> list[Verdict]:
    """Look at the cluster as a run with this configuration would find it; trains nothing and leaves no files.

    Raises:
        InputError: there is no cluster to look at.
    """
    console.line(connect(slots_needed(config)["CPU"], dashboard=True))
    plan, listings = _listing(config)
    nodes, one_storage = _ask_all(config, plan)
    facts = {node.name: node.facts for node in nodes if isinstance(node.facts, NodeFacts)}
    with keeping_sigterm():
        address = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url  # of the Ray in use
    return [
        verdicts.answers(nodes),
        _fits(config),
        verdicts.versions(facts),
        *listings,
        *verdicts.reading_and_writing(facts, is_listed=plan is not None),
        one_storage,
        verdicts.gpus(nodes, config),
        verdicts.labels(nodes, config),
        _all_reduce(config, facts, one_storage),
        verdicts.object_stores(nodes),
        verdicts.jobs_api(_status_without_token(address), address),
        verdicts.dashboard(address),
    ]


def _listing(config: Config) -> tuple[DataPlan | None, list[Verdict]]:
    """The plan of the data, or what keeps it from being made here."""
    try:
        tokenizer = build_tokenizer(config)
    except InputError as error:
        return None, [
            Verdict("tokenizer", "failed", str(error)),
            Verdict("listing", "not tried", "the text is cut for a tokenizer, which does not load"),
        ]
    try:
        return build_plan(config, tokenizer), []
    except InputError as error:
        return None, [Verdict("listing", "failed", str(error))]


def _fits(config: Config) -> Verdict:
    try:
        lines = check_fits(config)
    except InputError as error:
        return Verdict("room", "failed", str(error))
    return Verdict("room", "ok", "; ".join(lines) or "the run fits")


def _ask_all(config: Config, plan: DataPlan | None) -> tuple[list[Node], Verdict]:
    """Ask all nodes at once, and see whether what they have written is all in one place."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    mark = _new_mark()
    label = config.runtime.data_label
    shared_plan = ray.put(plan)
    function: Any = probe  # Ray's annotations know functions without arguments only
    task: Any = ray.remote(function)
    answers = {
        node["NodeID"]: task.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(config, shared_plan, mark, node["NodeID"], has_data_tasks=has_label(node["Labels"], label))
        for node in alive
    }
    done, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=_PATIENCE_SECONDS)
    folder = RunFolder(config.run.storage_path, mark)
    nodes = list(_nodes(alive, {name: answer for name, answer in answers.items() if answer in done}))
    facts = {node.name: node.facts for node in nodes if isinstance(node.facts, NodeFacts)}
    names = {node["NodeID"]: _name(node) for node in alive}
    written = [names.get(file, file) for file in _collect(folder)]
    return nodes, verdicts.shared_storage(written, facts)


def _new_mark() -> str:
    return f".doctor-{uuid.uuid4().hex[:8]}"


def _all_reduce(config: Config, facts: Mapping[str, NodeFacts], one_storage: Verdict) -> Verdict:
    """How fast the run's workers add up their gradients, which is tried if there is room for them already."""
    num_gradients = max((one.num_gradients for one in facts.values()), default=0)
    if config.runtime.min_workers == 1:
        return Verdict("all-reduce", "ok", "none needed: one worker has nobody to share gradients with")
    if not num_gradients:
        return Verdict("all-reduce", "not tried", "the size of the gradients is not known, see models")
    if one_storage.outcome != "ok":
        return Verdict("all-reduce", "not tried", "Ray Train needs a storage that all nodes reach, see above")
    if missing := missing_now(config):
        return Verdict("all-reduce", "not tried", missing)
    folder = RunFolder(config.run.storage_path, _new_mark())
    try:
        return verdicts.all_reduce(time_all_reduce(config, num_gradients, folder))
    except TimeoutError as error:
        return Verdict("all-reduce", "not tried", str(error))
    except RunError as error:
        return Verdict("all-reduce", "failed", str(error))
    finally:
        _collect(folder)


def _collect(folder: RunFolder) -> list[str]:
    """The files that are seen from here, which are removed; none if the storage cannot be read from here."""
    try:
        names = folder.names()
        if names:
            folder.filesystem.rm(folder.path, recursive=True)
    except Exception:  # fsspec implementations raise errors of their own; what the nodes wrote counts as not seen
        return []
    return names


def _nodes(alive: list[Mapping[str, Any]], answers: Mapping[str, Any]) -> Iterator[Node]:
    for node in alive:
        facts: NodeFacts | str = f"no answer within {_PATIENCE_SECONDS:g} seconds"
        if node["NodeID"] in answers:
            try:
                facts = ray.get(answers[node["NodeID"]])
            except ray.exceptions.RayError as error:
                facts = reason_of(error)
        yield Node(_name(node), node["Resources"], node["Labels"], facts)


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _status_without_token(address: str | None) -> int | None:
    """What the job server answers to a stranger; None if nothing."""
    if address is None:
        return None
    try:
        with urllib.request.urlopen(f"http://{address}/api/jobs/", timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
