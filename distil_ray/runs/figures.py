"""A run's record: its figures, and in words its loss and terms, its speed, its held-out figures."""

from collections.abc import Mapping
from typing import Any

_HELD_OUT = {
    "eval/mlm_loss": ("mlm_loss", ".4f"),
    "eval/mlm_accuracy": ("accuracy", ".1%"),
    "eval/kl_to_teacher": ("kl_to_teacher", ".4f"),
    "eval/teacher_agreement": ("agreement", ".1%"),
    "eval/relation_loss": ("relation_loss", ".4f"),
    "eval/hidden_loss": ("hidden_loss", ".4f"),
}  # by metric: how a line calls and writes it


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record that are figures: null stands for what was not finite."""
    return {
        name: value
        for name, value in record.items()
        if "/" in name and isinstance(value, int | float) and not isinstance(value, bool)
    }


def format_record(record: Mapping[str, Any]) -> str:
    """One line of text for one record."""
    parts = [f"step {record['step']:>6,}  {record['run/progress']:6.1%}"]
    if "train/loss" in record:
        parts += [format_terms(record), _speed(record)]
    if texts := [f"{label} {text}" for label, (_, text) in held_out(record).items()]:
        parts.append(f"held out: {', '.join(texts)}")
    return "  ".join([*parts, *_time_left(record)])


def format_progress(record: Mapping[str, Any]) -> str:
    """What fits beside a bar: the step, the time left, the speed."""
    speed = [_speed(record)] if "train/loss" in record else []
    return "  ".join([f"step {record['step']:,}", *_time_left(record), *speed])


def format_terms(record: Mapping[str, Any]) -> str:
    """The loss of a record of training, and what it is made of."""
    terms = "  ".join(
        f"{name.removeprefix('train/loss_')} {_number(value)}"
        for name, value in record.items()
        if name.startswith("train/loss_")
    )
    return f"loss {_number(record['train/loss'])} ({terms})"


def held_out(record: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """The held-out figures of a record, each as a number and as text, by the names that lines call them."""
    return {
        label: (record[name], format(record[name], form))
        for name, (label, form) in _HELD_OUT.items()
        if record.get(name) is not None
    }


def format_seconds(seconds: float) -> str:
    """90061 -> 25:01:01."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _speed(record: Mapping[str, Any]) -> str:
    return f"{record['perf/tokens_per_second']:,.0f} tokens/s"


def _time_left(record: Mapping[str, Any]) -> list[str]:
    is_known = record.get("eta_seconds") and record["run/progress"] < 1
    return [f"{format_seconds(record['eta_seconds'])} left"] if is_known else []


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
