"""Which settings decide what is learned, and what differs between two runs."""

from collections.abc import Iterator, Mapping
from typing import Any

from distil_ray.config.checks import shown
from distil_ray.config.sections import Config


def learned(config: Config) -> dict[str, Any]:
    """Return the settings that decide what is learned, by dotted key; equal ones teach the same.

    Loss weights stand there as shares. Where the text lies is left out: the corpus has its own fingerprint.
    So is what decides only whether and how a run goes on: bad files, skipped updates, all of `runtime`. The
    values survive JSON unchanged.
    """
    settings = config.model_dump(mode="json", include={"teacher", "student", "data", "distill", "optim"})
    data, distill, optim = settings["data"], settings["distill"], settings["optim"]
    del data["on_bad_file"], data["warn_skipped_fraction"], optim["max_skipped_updates"]
    del distill["alpha_ce"], distill["alpha_mlm"], distill["alpha_cos"]
    distill["shares"] = {name: round(share, 12) for name, share in config.distill.shares.items()}
    data["sources"] = {"columns": sorted({source.column for source in config.data.sources})}
    if data.pop("eval_sources") is not None:
        data["eval_fraction"] = 0.0  # nothing is held out of the training text
    return dict(_flat({"run": {"seed": config.run.seed}, **settings}))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what differs between two results of `learned`, one line a setting."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        was, now = (shown(settings[key]) if key in settings else "not set" for settings in (old, new))
        if was != now:
            lines.append(f"{key}: was {was}, now {now}")
    return lines


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
