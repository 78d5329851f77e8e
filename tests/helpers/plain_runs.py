"""Whole runs in plain processes over gloo: the training loop as on Ray, without Ray, and in a tenth of the time.

This process does what Ray and the driver do: it lists the text, makes the rows, deals the blocks out, restarts the
workers after a loss, and does one pass after the other.
"""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from processes import run_workers

from distil_ray.config import Config, learned, parse_config, to_yaml
from distil_ray.data.batch import END_OF_SCHEDULE, MORE_FOLLOWS, READ_FAILED, Arrays, digest, filler_rows
from distil_ray.data.plan import DataPlan
from distil_ray.data.schedule import Position
from distil_ray.errors import InputError
from distil_ray.models.precision import Precision
from distil_ray.runs.console import Console
from distil_ray.runs.lease import holding
from distil_ray.runs.storage import CONFIG_FILE, RunFolder
from distil_ray.training import loop
from distil_ray.training.assembly import build_plan, build_tokenizer, smoothing_weights
from distil_ray.training.checkpoint import TrainState, latest_checkpoint
from distil_ray.training.job import Job, Outcome
from distil_ray.training.learner import Learner
from distil_ray.training.loop import train
from distil_ray.training.passes import run_passes
from distil_ray.training.world import PreemptionWatch, World


class Event(NamedTuple):
    """What happens to a worker when it asks for its block number ``block`` (from 0) of an attempt, or in a ``step``.

    ``kill``: SIGKILL; ``stop``: the driver wants the run to end; ``leave``: the end of its node is announced, due at
    once; ``announce``: due in an hour.
    """

    kind: str
    block: int | None = None
    rank: int = 0
    step: int | None = None


@dataclass
class PlainRun:
    """One run, which may be started several times.

    Attributes:
        num_workers: of each attempt, the last one of all that follow; None: as configured.
        events: of each attempt; none happen in those that follow.
        nonfinite_steps: steps whose gradient is made infinite.
        fastest: precision that each worker finds the fastest; empty: what it is.
        groups_per_pass: of the schedule that one pipeline covers; None: all.
        texts: lines for the user.
        outcomes: of the passes.
        num_losses: how often workers were lost.
    """

    settings: dict[str, Any]
    num_workers: Sequence[int] = ()
    events: Sequence[Sequence[Event]] = ()
    nonfinite_steps: frozenset[int] = frozenset()
    fastest: Sequence[Precision] = ()
    groups_per_pass: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    num_losses: int = 0
    _num_attempts: int = 0
    _last_events: Sequence[Event] = ()

    @property
    def config(self) -> Config:
        return parse_config(self.settings)

    @property
    def path(self) -> Path:
        return Path(self.config.run.storage_path) / self.config.run.name

    @property
    def texts(self) -> list[str]:
        return _Events(self.path).texts()

    def start(self) -> Outcome:
        """Do the run, or what is left of it."""
        from distil_ray.training.examination import examine  # not by the workers: Ray
        from distil_ray.training.launcher import check_learned_settings

        config = self.config
        folder = RunFolder(config.run.storage_path, config.run.name)
        known = check_learned_settings(learned(config), folder)
        identity, _, _, plan = examine(config, folder, Console(), known)
        folder.write_text(CONFIG_FILE, to_yaml(config))
        identity.write(folder)
        plan = _with_smoothing(plan, config.data.mlm_smoothing)
        sample = plan.rows_of("train", 0)[0]["input_ids"][:4]
        job = Job(config, identity.models, _heldout(plan, config.eval.num_rows), sample, plan.schedule.num_groups)
        events = _Events(self.path)

        with holding(folder, "test", print) as claim:

            def do_pass(job: Job, overprovision: int) -> Outcome:
                while True:
                    checkpoint, _ = latest_checkpoint(folder, verify_tensors=False)
                    events.begin()
                    events.note("start", "checkpoint", None if checkpoint is None else checkpoint.name)
                    state = TrainState() if checkpoint is None else checkpoint.state
                    blocks = _blocks(plan, config, state.position, self._num_groups(plan, state, overprovision), events)
                    try:
                        outcomes = self._attempt(job, claim, blocks)
                    except (BrokenProcessPool, RuntimeError):  # the latter: another worker notices it first
                        if not any(event.kind == "kill" for event in self._last_events):
                            raise
                        self.num_losses += 1
                        continue
                    assert outcomes == [outcomes[0]] * len(outcomes)
                    self.outcomes.append(outcomes[0])
                    return outcomes[0]

            return run_passes(job, do_pass, events.post_text)

    def _num_groups(self, plan: DataPlan, state: TrainState, overprovision: int) -> int:
        """As many as the rest of the run needs for certain, or as the schedule has."""
        left = (plan.schedule.num_groups or 10**9) - state.position.group
        return min(left, (self.groups_per_pass or 200) * overprovision)

    def _attempt(self, job: Job, claim: Any, blocks: list[Arrays]) -> list[Outcome]:
        number, self._num_attempts = self._num_attempts, self._num_attempts + 1
        self._last_events = self.events[number] if number < len(self.events) else ()
        world_size = job.config.runtime.max_workers
        if self.num_workers:
            world_size = self.num_workers[min(number, len(self.num_workers) - 1)]
        arguments = (job, claim, blocks, list(self._last_events), self.nonfinite_steps, self.fastest, self.path)
        return run_workers(_work, world_size, *arguments)


class _Events:
    """Events that lie in files beside the run's folder, for all processes."""

    def __init__(self, path: Path) -> None:
        self._folder = path.with_name(f"{path.name}.events")
        self._folder.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Forget the request of an attempt before."""
        (self._folder / "stop").unlink(missing_ok=True)

    def post_text(self, text: str) -> None:
        self._append("texts", text)

    def post_record(self, record: Any) -> None:
        json.dumps(record, allow_nan=False)

    def texts(self) -> list[str]:
        return self._read("texts")

    def note(self, topic: str, key: Any, content: Any) -> None:
        self._append(topic, [key, content])

    def noted(self, topic: str) -> dict[Any, Any]:
        return dict(self._read(topic))

    def want_stop(self) -> None:
        (self._folder / "stop").touch()

    def is_stop_wanted(self) -> bool:
        return (self._folder / "stop").exists()

    def _append(self, name: str, entry: Any) -> None:
        with (self._folder / name).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _read(self, name: str) -> list[Any]:
        file = self._folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _work(
    rank: int,
    world_size: int,
    job: Job,
    claim: Any,
    blocks: list[Arrays],
    events: list[Event],
    nonfinite_steps: frozenset[int],
    fastest: Sequence[Precision],
    path: Path,
) -> Outcome:
    announced: list[Any] = [None]
    driver = _Events(path)
    own = blocks[rank : len(blocks) - len(blocks) % world_size : world_size]

    def serve() -> Iterator[Arrays]:
        for number, block in enumerate(own):
            for event in events:
                if (event.rank, event.block) == (rank, number):
                    _happen(event, driver, announced)
            yield block

    if fastest:
        loop.fastest_precision = lambda device: fastest[rank]  # type: ignore[assignment]

    def begin_step(step: int) -> None:
        for event in events:
            if (event.rank, event.step) == (rank, step):
                _happen(event, driver, announced)

    loop.Learner = _disturbed(nonfinite_steps, begin_step)  # type: ignore[misc]
    world = World(
        rank,
        world_size,
        torch.device("cpu"),
        claim.guard(RunFolder(job.config.run.storage_path, job.config.run.name)),
        serve(),
        driver,
        preemption=PreemptionWatch(lambda: announced[-1]),
    )
    return train(job, world)


def _happen(event: Event, driver: _Events, announced: list[Any]) -> None:
    if event.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if event.kind == "stop":
        driver.want_stop()
    if event.kind in ("leave", "announce"):
        announced.append(SimpleNamespace(deadline_ms=None if event.kind == "leave" else 1e15))


def _disturbed(nonfinite_steps: frozenset[int], begin_step: Callable[[int], None]) -> type[Learner]:
    class Disturbed(Learner):
        def update(self, rows: Any, step: int, *others: Any) -> tuple[torch.Tensor, float]:
            begin_step(step)
            self._optimizer._gradients.poison = step in nonfinite_steps
            return super().update(rows, step, *others)

        def __init__(self, *arguments: Any, **others: Any) -> None:
            super().__init__(*arguments, **others)
            gradients = self._optimizer._gradients
            norm = gradients.norm

            def poisoned_norm() -> torch.Tensor:
                if gradients.poison:
                    gradients.buffer[3] = math.inf
                return norm()

            gradients.norm = poisoned_norm  # type: ignore[method-assign]

    return Disturbed


def _with_smoothing(plan: DataPlan, smoothing: float) -> DataPlan:
    if not smoothing:
        return plan
    groups = range(min(8, plan.schedule.groups_per_epoch))  # data.pipeline.SAMPLE_GROUPS
    counts = sum(plan.piece_counts_of(group) for group in groups)
    return replace(plan, settings=replace(plan.settings, piece_weights=smoothing_weights(counts, smoothing)))


def _heldout(plan: DataPlan, num_rows: int) -> Arrays:
    parts = [plan.rows_of("eval", unit)[0] for unit in range(len(plan.eval_units))]
    return {name: np.concatenate([part[name] for part in parts])[:num_rows] for name in parts[0]} if parts else {}


def _blocks(plan: DataPlan, config: Config, start: Position, num_groups: int, events: _Events) -> list[Arrays]:
    """The blocks of a pipeline as `data.pipeline.train_dataset` cuts them."""
    end = start.group + num_groups
    kind = END_OF_SCHEDULE if end == plan.schedule.num_groups else MORE_FOLLOWS
    parts: list[Arrays] = []
    k, batch = config.data.steps_per_block, config.optim.global_batch_size
    num_rows = math.inf if config.optim.num_steps is None else (config.optim.num_steps + k) * batch
    for group in range(start.group, end):
        if sum(len(part["row"]) for part in parts) >= num_rows:
            break  # nobody will ask for more
        try:
            rows, _ = plan.rows_of("train", group)
        except InputError as error:
            events.note("unreadable", group, (True, str(error)))
            kind = READ_FAILED
            break
        if not len(rows["row"]):
            events.note("empty", group, [])
        parts.append({name: values[start.row + 1 :] for name, values in rows.items()} if group == start.group else rows)
    size = config.block_rows * k
    num_filler = size * config.runtime.max_workers
    settings = plan.settings
    dtype = plan.vocabulary.id_dtype
    parts.append(filler_rows(num_filler, settings.max_seq_length, settings.num_masked, dtype, kind=kind))
    rows = {name: np.concatenate([part[name] for part in parts if len(part["row"])]) for name in parts[-1]}
    return [
        {name: values[at : at + size] for name, values in rows.items()}
        for at in range(0, len(rows["row"]) - size + 1, size)
    ]


def expected_digests(config: Config) -> list[str]:
    """The digest of each step of a run over its epochs (of the first one, if it has none), from the plan alone."""
    plan = build_plan(config, build_tokenizer(config))
    groups = range(plan.schedule.num_groups or plan.schedule.groups_per_epoch)
    parts = [rows for rows, _ in (plan.rows_of("train", group) for group in groups) if len(rows["row"])]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    k = config.data.steps_per_block
    size = k * config.optim.global_batch_size
    ranges = [range(at + i, at + size, k) for at in range(0, len(rows["row"]) - size + 1, size) for i in range(k)]
    return [f"{digest({name: values[list(step)] for name, values in rows.items()}):016x}" for step in ranges]
