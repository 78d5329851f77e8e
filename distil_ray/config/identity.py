"""Which settings decide what is learned, and what differs between two runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distil_ray.config.description import fields
from distil_ray.config.sections import LOSS_WEIGHTS, Config, Section, shown

_ABSENT = object()


def learned(config: Config) -> dict[str, Any]:
    """Return the settings that decide what is learned, by dotted key; equal ones teach the same.

    Loss weights count as shares. Where the text is stored is left out: the corpus has its own fingerprint.
    So is what decides only whether and how a run continues: bad files, skipped updates, all of `runtime`. The
    values survive JSON unchanged.
    """
    settings = config.model_dump(mode="json", include={"teacher", "student", "data", "distill", "optim"})
    data, distill, optim = settings["data"], settings["distill"], settings["optim"]
    del data["on_bad_file"], data["warn_skipped_fraction"], optim["max_skipped_updates"]
    for name in LOSS_WEIGHTS:
        del distill[name]
    distill["shares"] = {name: round(share, 12) for name, share in config.distill.shares.items()}
    # Null, the default, came later: it means what the default had been, with the teachers with which that worked.
    settings["student"]["architecture"] = settings["student"]["architecture"] or "distilbert"
    data["sources"] = {"columns": sorted({source.column for source in config.data.sources})}
    if data.pop("eval_sources") is not None:
        data["eval_fraction"] = 0.0  # nothing is held out of the training text
    return dict(dotted({"run": {"seed": config.run.seed}, **settings}))


def difference(old: Mapping[str, Any], new: Mapping[str, Any], *roots: type[Section]) -> list[str]:
    """Say what differs between two results of `learned`, one line per setting.

    A setting that ``old`` does not have counts by its default: it may be newer than the run that ``old`` is of. So a
    new setting's default must be what runs did before there was the setting.

    Args:
        roots: sections besides `Config` in which the keys' defaults are looked up.
    """
    lines = []
    for key in dict.fromkeys([*old, *new]):
        default = _default_of(key, (Config, *roots))
        was = _words(old.get(key, default))
        now = _words(new.get(key, default))
        if was != now:
            lines.append(f"{key}: was {was}, now {now}")
    return lines


def _words(value: Any) -> str:
    return "not set" if value is _ABSENT else shown(value)


def _default_of(key: str, roots: Sequence[type[Section]]) -> Any:
    """Return what a setting is where it is not set; `_ABSENT` if that is nothing."""
    if key.startswith("distill.shares."):
        return 0.0
    for root in roots:
        field = root.model_fields.get(key) or dict(fields(root)).get(key)
        if field is not None and not field.is_required():
            return field.get_default(call_default_factory=True)
    return _ABSENT


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting of nested mappings with its dotted key."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
