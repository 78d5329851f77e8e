"""What a search shows at the terminal: a live table of its trials, or a line per event."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console as Terminal
from rich.live import Live
from rich.table import Table

from distil_ray.runs.console import Console
from distil_ray.runs.events import EventQueue
from distil_ray.runs.figures import format_seconds
from distil_ray.studies.settings import SearchPlan, brief, short
from distil_ray.studies.trials import Score, Trial, Trials, best

_NUM_SHOWN = 12  # settled trials in the live table, the best first


class TrialConsole(Console):
    """The console of a trial: sends its events to the search, and drops lines, which are the same for all trials."""

    def __init__(self, events: EventQueue, name: str) -> None:
        super().__init__()
        self._events = events
        self._name = name

    def line(self, text: str) -> None:
        """Print nothing: the search has printed the same."""

    def show(self, kind: str, content: Any) -> None:
        self._events.send(kind, (self._name, content))

    @contextmanager
    def _display(self) -> Iterator[None]:
        yield


class SearchDisplay(Console):
    """The console of the search: a live table of its trials on a terminal, otherwise a line per event."""

    def __init__(self, plan: SearchPlan, trials: Trials) -> None:
        super().__init__()
        self._plan, self._trials = plan, trials
        self._running: dict[str, Mapping[str, Any]] = {}
        self._began = time.monotonic()

    def show(self, kind: str, content: Any) -> None:
        """Handle an event of a trial: ("line" or "record", (its name, text or metrics))."""
        name, detail = content
        if kind == "line":
            self.line(f"{name}  {detail}")
        elif name in self._running:
            self._running[name] = detail

    def started(self, trial: Trial) -> None:
        self._running[trial.name] = {}
        verb = "resumes" if trial.scores else "starts"
        described = self._plan.describe(trial.settings)
        if not trial.settings:
            described = f"the unchanged settings ({described})"
        self.line(f"{trial.name}  {verb}: {described}")

    def scored(self, trial: Trial, score: Score) -> None:
        if self._terminal is None:
            metric = self._plan.search.metric
            self.line(f"{trial.name}  step {score.step:,}  {score.progress:.0%}  {metric} {score.value:.4f}")

    def settled(self, trial: Trial) -> None:
        self._running.pop(trial.name, None)
        if trial.status == "failed":
            self.line(f"{trial.name}  failed: {trial.message}")
            return
        value = "" if trial.value is None else f": {self._plan.search.metric} {trial.value:.4f}"
        step = trial.scores[-1].step if trial.scores else 0
        is_best = best(self._trials, self._plan.direction) == trial
        note = ", the best so far" if is_best else ""
        end = "finished" if trial.status == "finished" else f"stopped early at step {step:,}"
        self.line(f"{trial.name}  {end}{value}{note}")

    @contextmanager
    def _display(self) -> Iterator[None]:
        if not sys.stdout.isatty():
            yield
            return
        self._terminal = Terminal(highlight=False, markup=False)
        try:
            with Live(get_renderable=self._table, console=self._terminal, refresh_per_second=2, transient=True):
                yield
        finally:
            self._terminal = None

    def _table(self) -> Table:
        settled = [trial for trial in self._trials if trial.status != "open"]
        table = Table(box=None, title=self._headline(len(settled)), title_justify="left")
        keys = self._plan.space.keys
        for name in ("trial", "", *map(short, keys), "done", self._plan.search.metric, "left"):
            table.add_column(name, justify="left" if name in ("trial", "") else "right")
        settled.sort(key=lambda trial: (trial.status != "finished", trial.loss(self._plan.direction)))
        running = [self._trials[name] for name in list(self._running)]
        for trial in [*running, *settled[:_NUM_SHOWN]]:
            record = self._running.get(trial.name, {})
            done = record.get("run/progress", trial.scores[-1].progress if trial.scores else 0.0)
            left = record.get("eta_seconds")
            table.add_row(
                trial.name,
                "running" if trial.status == "open" else trial.status,
                *(brief(value) for value in self._plan.values(trial.settings).values()),
                f"{done:.0%}",
                "" if trial.value is None else f"{trial.value:.4f}",
                format_seconds(left) if left and done < 1 else "",
            )
        return table

    def _headline(self, num_settled: int) -> str:
        top = best(self._trials, self._plan.direction)
        found = (
            f"; best {self._plan.search.metric} {top.value:.4f} ({top.name})" if top and top.value is not None else ""
        )
        spent = format_seconds(time.monotonic() - self._began)
        return f"{num_settled} of {self._plan.num_trials} trials done, {len(self._running)} running, {spent}{found}"
