"""A trial's objective, from Ray Train's controller to Tune.

A module of its own, as the controller of each trial imports it: importing the tuner would take seconds longer.
"""

from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback


class ReportObjective(TuneReportCallback):
    """Reports every evaluation to Tune, unless its objective is not finite."""

    def __init__(self, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass the metrics on, if the objective is among them."""
        if self._metric in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)
