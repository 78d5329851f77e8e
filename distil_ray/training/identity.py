"""What a run was made with, known by content, and kept in its folder: settings, text, tokenizer, models.

A run is resumed only with the same. Where models and text lie does not matter; names on the Hub are pinned to commits
when the run begins, and resumes use those commits.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from distil_ray.config import Config, Section, difference
from distil_ray.data.contents import Content, changed_contents, contents_of
from distil_ray.data.plan import DataPlan, explain_fingerprints
from distil_ray.data.sources import commits_of
from distil_ray.errors import InputError, reason_of
from distil_ray.models.origin import Origin, config_digest, content_digest, resolve
from distil_ray.outages import AT_START, Patience
from distil_ray.runs.storage import IDENTITY_FILE, RunFolder

SCHEMA = 2
"""Version 1 knew models by their paths alone."""

MODEL_LOCATIONS = ("teacher.path", "teacher.revision", "student.path", "student.tokenizer", "student.config")
"""Settings that say where models are and not what they are."""


class Pin(NamedTuple):
    """A model as it was given, and what that was when the run began.

    Attributes:
        path, revision: as given.
        commit: of a model on the Hub.
        digest: of its content; None for a tokenizer, which counts as a part of the data.
    """

    path: str
    revision: str | None
    commit: str | None
    digest: str | None

    @property
    def origin(self) -> Origin:
        """Where to load it from."""
        return Origin(self.path, self.commit)


Pins = Mapping[str, Pin]
"""By role: teacher, student, configuration (of the student) or tokenizer."""


@dataclass(frozen=True)
class Identity:
    """What a run (or a search) was made with.

    Attributes:
        learned: settings by dotted key, see `config.learned`.
        data: fingerprint of text and tokenizer.
        models: teacher and student.
        text: what each file of the text holds, those of the held-out text at the end.
        commits: of data sets of the Hub, see `commits_of`.
    """

    learned: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    models: Pins = field(default_factory=dict)
    text: Sequence[Content] = ()
    commits: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def read(cls, folder: RunFolder) -> Self | None:
        """Return what is in the folder, None if it has no run yet.

        Raises:
            InputError: the file is damaged.
        """
        if not folder.exists(IDENTITY_FILE):
            return None
        content = folder.read_json(IDENTITY_FILE, "learned", "data")
        try:
            models = {role: Pin(**pin) for role, pin in content.get("models", {}).items()}
            text = tuple(Content(**one) for one in content.get("text", ()))
            commits = dict(content.get("commits", {}))
            return cls(dict(content["learned"]), dict(content["data"]), models, text, commits, content.get("schema", 1))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{folder.join(IDENTITY_FILE)} is damaged ({error}); restore it from a copy") from error

    def write(self, folder: RunFolder) -> None:
        """Keep it in the folder."""
        content = asdict(self) | {"models": {role: pin._asdict() for role, pin in self.models.items()}}
        content["text"] = [one._asdict() for one in self.text]
        folder.write_text(IDENTITY_FILE, json.dumps({"schema": self.schema} | content, indent=2) + "\n")

    def check_settings(self, learned: Mapping[str, Any], folder: RunFolder, *roots: type[Section]) -> None:
        """Refuse to resume under settings that would teach something else.

        Args:
            learned: the settings of today, by dotted key.
            roots: sections besides a run's own in which their defaults are looked up.

        Raises:
            InputError: with each difference.
        """
        old, new = dict(self.learned), dict(learned)
        for key in MODEL_LOCATIONS if self.schema > 1 else ():  # models are known by content
            both_are_places = all(isinstance(settings.get(key), str | None) for settings in (old, new))
            if both_are_places and bool(old.get(key)) == bool(new.get(key)):
                old.pop(key, None), new.pop(key, None)
        if differences := difference(old, new, *roots):
            _refuse(folder, "was started with different settings", differences)

    def check_models(self, models: Pins, folder: RunFolder) -> None:
        """Refuse to resume with models that have changed.

        Raises:
            InputError: with each difference.
        """
        changed = [
            f"{role}: {known.path} had different weights or a different configuration from {models[role].path} now"
            for role, known in self.models.items()
            if role in models and known.digest and known.digest != models[role].digest
        ]
        if changed:
            _refuse(folder, "was started with different models", changed)

    def check_data(self, data: Mapping[str, Any], text: Sequence[Content], folder: RunFolder) -> None:
        """Refuse to resume on different text, or with a tokenizer that encodes it differently.

        Raises:
            InputError: with what changed.
        """
        reasons = explain_fingerprints(dict(self.data), dict(data))
        if not reasons:  # then the files are the same by name, size and order
            reasons = [f"{name}: its content has changed" for name in changed_contents(self.text, text)]
        if reasons:
            _refuse(folder, "was started on different text", reasons)


def _refuse(folder: RunFolder, what: str, reasons: list[str]) -> None:
    listed = "\n".join(f"  {reason}" for reason in reasons)
    raise InputError(
        f"the run in {folder.path} {what}:\n{listed}\nGive it a new run.name, or undo the change to resume it"
    )


def data_commits(config: Config, plan: DataPlan) -> dict[str, str]:
    """The commits at which the data sets of the Hub were taken for a plan."""
    sources = (*config.data.sources, *(config.data.eval_sources or ()))
    return commits_of(sources, (file.path for corpus in (plan.corpus, plan.eval_corpus) for file in corpus.files))


def text_contents(plan: DataPlan, known: Sequence[Content]) -> tuple[Content, ...]:
    """What the files of a plan hold. Local ones that have not been modified since ``known`` are not read again.

    Raises:
        InputError: a file cannot be read.
    """
    files = [*plan.corpus.files, *(plan.eval_corpus.files if plan.eval_corpus is not plan.corpus else ())]
    try:
        return tuple(contents_of(files, known))
    except OSError as error:
        raise InputError(f"data.sources: {reason_of(error)}") from error


def pin_models(config: Config, known: Pins, patience: Patience = AT_START) -> Pins:
    """Resolve the models and tokenizer of a configuration, each once.

    Args:
        known: pins of an earlier start; a model that is given as it was then keeps its pin.

    Raises:
        InputError: one cannot be found or read.
        OutageError: the Hub does not answer.
    """
    return {role: _pin(role, *given, known.get(role), patience) for role, given in _given(config).items()}


def _given(config: Config) -> dict[str, tuple[str, str | None]]:
    """Path and revision by role, of what the configuration names."""
    student = config.student
    given: dict[str, tuple[str | None, str | None]] = {
        "teacher": (None, None) if config.teacher is None else (config.teacher.path, config.teacher.revision),
        "student": (student.path, None),
        "configuration": (student.config if isinstance(student.config, str) else None, None),
        "tokenizer": (student.tokenizer, None),
    }
    return {role: (path, revision) for role, (path, revision) in given.items() if path is not None}


def _pin(role: str, path: str, revision: str | None, known: Pin | None, patience: Patience) -> Pin:
    if known is not None and known.commit is not None and (known.path, known.revision) == (path, revision):
        return known  # a commit does not change
    try:
        origin = resolve(path, revision, patience)
        digest = _DIGESTS[role](origin, patience) if role in _DIGESTS else None
    except InputError as error:
        raise InputError(f"{role}: {error}") from error
    return Pin(path, revision, origin.revision, digest)


_DIGESTS = {"teacher": content_digest, "student": content_digest, "configuration": config_digest}


def unpinned(config: Config) -> Pins:
    """The models and tokenizer as the configuration names them."""
    return {role: Pin(path, revision, revision, None) for role, (path, revision) in _given(config).items()}


def with_commits(identity: Identity | None, config: Config) -> Pins:
    """What a run that has begun was made with; where that is not known, what its configuration names."""
    known = {} if identity is None else identity.models
    return {role: known.get(role, pin) for role, pin in unpinned(config).items()}
