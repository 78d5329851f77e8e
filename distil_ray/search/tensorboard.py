"""TensorBoard's HParams tab: the settings of each trial beside its scalars."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import hparams

from distil_ray.search.settings import Plan
from distil_ray.search.trials import Trial
from distil_ray.training.metrics import TENSORBOARD_FOLDER
from distil_ray.training.storage import RunFolder


def write_hparams(plan: Plan, trial: Trial, run: RunFolder) -> None:
    """Add the trial's settings to the TensorBoard files of its run, where the objective's curve already is."""
    settings = {key: _plain(value) for key, value in plan.values(trial.settings).items()}
    metrics = {plan.search.metric: trial.value if trial.value is not None else float("nan")}
    with TemporaryDirectory(prefix="distil_ray_") as temporary:
        writer = FileWriter(temporary, filename_suffix=".hparams")
        for summary in hparams(settings, metrics):
            writer.add_summary(summary)
        writer.close()
        run.upload(Path(temporary), TENSORBOARD_FOLDER)


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
