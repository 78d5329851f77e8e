"""A trial's objective, as Ray Train's controller hears of it -> Tune.

A module of its own, since the controller of each trial imports it: with the tuner's it took seconds more to start.
"""

from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback


class ReportObjective(TuneReportCallback):
    """Tells Tune of every evaluation, unless its objective is not finite."""

    def __init__(self, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = metric

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass the metrics on, if the objective is among them."""
        if self._metric in metrics[0]:
            super().after_report(run_context, metrics, checkpoint)
