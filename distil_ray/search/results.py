"""Trials -> files: a table as CSV and Parquet, and the best configuration, which `distil_ray.train` takes as it is."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from distil_ray.config import Config, shown, to_yaml
from distil_ray.search.settings import Plan
from distil_ray.search.trials import Trial, Trials, best
from distil_ray.training.metrics import Record, read_records

CSV_FILE = "trials.csv"
PARQUET_FILE = "trials.parquet"
BEST_FILE = "best.yaml"


def write_results(plan: Plan, trials: Trials) -> None:
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


def to_table(plan: Plan, trials: Trials) -> pa.Table:
    """One row a trial: how it ended, its settings, its newest held-out figures."""
    rows = [_row(plan, trial, read_records(trials.run_folder(trial.name))) for trial in trials]
    columns = {name: [row.get(name) for row in rows] for row in rows for name in row}
    for key in plan.space.keys:
        if not all(isinstance(value, int | float) for value in columns[key]):
            columns[key] = [shown(value) for value in columns[key]]
    return pa.table(columns)


def _row(plan: Plan, trial: Trial, records: list[Record]) -> dict[str, Any]:
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


def best_config(plan: Plan, trial: Trial) -> Config:
    """The configuration of a run that trains a trial's settings again, beside the search."""
    run = plan.config.run
    config = plan.trial_config(f"{run.name[:95]}-best", trial.settings)
    return config.model_copy(update={"run": config.run.model_copy(update={"storage_path": run.storage_path})})


def best_yaml(plan: Plan, trial: Trial, num_trials: int) -> str:
    """The best configuration as YAML, with a comment on where it comes from."""
    score = trial.scores[-1]
    return (
        f"# The best of {num_trials} trials of the search {plan.config.run.name}: {trial.name}, "
        f"{plan.search.metric} {score.value:.4f} after {score.step:,} steps.\n"
        f"{to_yaml(best_config(plan, trial))}"
    )
