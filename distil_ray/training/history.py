"""What a run has written, read back: its configuration, records, digests and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distil_ray.config import Config, parse_config, parse_mapping
from distil_ray.errors import InputError
from distil_ray.runs.storage import CONFIG_FILE, EXPORT_FOLDER, FINISHED_FILE, IDENTITY_FILE, METRICS_FILE, RunFolder
from distil_ray.training.identity import Identity, Pins, with_commits
from distil_ray.training.metrics import Record, read_digests


@dataclass(frozen=True)
class History:
    """One run, finished or not.

    Attributes:
        models: teacher, student and tokenizer, pinned.
        commits: of data sets of the Hub.
        learned: the settings that decide what is learned, by dotted key.
        heldout_identity: what the held-out rows depend on; where it is equal, figures can be compared.
        records: one per line of `metrics.jsonl`.
        digests: by step, of the global batches.
        is_finished: whether the student has been exported.
        complaints: lines about damaged lines of the records and digests, which are passed over.
    """

    folder: RunFolder
    config: Config
    models: Pins
    commits: Mapping[str, str]
    learned: dict[str, Any]
    heldout_identity: Any
    records: list[Record]
    digests: list[str]
    is_finished: bool
    complaints: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.config.run.name

    @property
    def is_start(self) -> bool:
        """Whether the run shows its student as it starts, and trains nothing."""
        return self.config.optim.num_steps == 0

    @property
    def export_path(self) -> str:
        """Where the student is once the run is finished."""
        return self.folder.join(EXPORT_FOLDER)

    def last(self, name: str) -> float | None:
        """The newest value of a metric, None if there is none."""
        values = [record[name] for record in self.records if record.get(name) is not None]
        return values[-1] if values else None

    def curve(self, name: str) -> list[tuple[float, float]]:
        """The points (tokens trained on, value) of a metric."""
        return [(record.get("data/tokens", 0), record[name]) for record in self.records if record.get(name) is not None]


def read_history(path: str) -> History:
    """Read the folder of a run, ``<storage_path>/<name>``.

    Raises:
        InputError: there is no run, or its identity is damaged.
    """
    folder = RunFolder.at(path)
    if not folder.exists(IDENTITY_FILE) or not folder.exists(CONFIG_FILE):
        raise InputError(
            f"{path}: is not the folder of a run (it has no {IDENTITY_FILE}); expected <run.storage_path>/<run.name>"
        )
    identity = Identity.read(folder)
    assert identity is not None
    learned = dict(identity.learned)
    heldout = {key: value for key, value in learned.items() if key.startswith(("data.", "run.seed"))}
    config = parse_config(parse_mapping(folder.read_bytes(CONFIG_FILE).decode(), f"{path}/{CONFIG_FILE}"))
    records, damaged_records = folder.read_json_lines(METRICS_FILE)
    digests, damaged_digests = read_digests(folder)
    return History(
        folder=folder,
        config=config,
        models=with_commits(identity, config),
        commits=identity.commits,
        learned=learned,
        heldout_identity=[heldout, identity.data["eval_corpus"]["digest"], identity.data["tokenizer"]],
        records=records,
        digests=digests,
        is_finished=folder.exists(FINISHED_FILE),
        complaints=[*damaged_records, *damaged_digests],
    )
