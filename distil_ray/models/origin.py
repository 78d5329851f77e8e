"""Where a model comes from, pinned: a folder, or a commit on the Hub; and what it is, known by content.

A name on the Hub may point to something else tomorrow. It is resolved to a commit once, by the driver; workers, resumes
and comparisons use that commit.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.models.files import CONFIG_FILE, is_commit, local_path
from distil_ray.outages import AT_START, Patience

_WEIGHTS = (".safetensors", ".bin")
_NOT_LEARNED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")  # of config.json


class Origin(NamedTuple):
    """A local folder (``revision`` None), or a model on the Hub at a commit."""

    path: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return os.path.exists(os.path.expanduser(self.path))


def resolve(path: str, revision: str | None, patience: Patience = AT_START) -> Origin:
    """Pin a model: the absolute path of a folder, or the commit that a branch or tag of the Hub points to now.

    Without the Hub (HF_HUB_OFFLINE), the commit is that of the cached copy.

    Raises:
        InputError: neither folder nor Hub has it.
        OutageError: the Hub does not answer.
    """
    if (local := local_path(path)) is not None:
        return Origin(os.path.abspath(local))
    if is_commit(revision):
        return Origin(path, revision)
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return Origin(path, _cached_commit(path, revision))
    return Origin(path, _ask_hub(Origin(path, revision), patience, HfApi().model_info).sha)


def _ask_hub(origin: Origin, patience: Patience, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return ``ask(path, …, revision=…)``, or say that the model is not to be had."""
    path, revision = origin
    try:
        return patience.wait_out(f"the Hub ({path})", lambda: ask(path, *arguments, revision=revision, **options))
    except OutageError:
        raise
    except Exception as error:  # of many types, and all say that there is no such model
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"there is no local folder {path!r}, and from the Hugging Face Hub it cannot be had{at}: "
            f"{reason_of(error)} Check the name and the revision (and HF_TOKEN if it is private)"
        ) from error


def _cached_commit(path: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(path, CONFIG_FILE, revision=revision)
    return Path(file).parent.name if isinstance(file, str) else revision


def content_digest(origin: Origin, patience: Patience = AT_START) -> str:
    """SHA-256 of what a model computes: the bytes of its weights' files, and its configuration.

    The same for a folder and for a copy of it elsewhere, the Hub included; of a model on the Hub nothing but its
    configuration is downloaded.

    Raises:
        InputError: there are no weights, or no configuration that can be read.
        OutageError: the Hub does not answer.
    """
    weights = _weights_on_disk(Path(origin.path)) if origin.is_local else _weights_on_hub(origin, patience)
    # A folder may have both kinds; transformers takes safetensors.
    kept = {name: digest for name, digest in weights.items() if name.endswith(_WEIGHTS[0])} or weights
    if not kept:
        raise InputError(f"{origin.path} has no weights; expected model.safetensors (or pytorch_model.bin)")
    return _digest([sorted(kept.items()), config_digest(origin, patience)])


def config_digest(origin: Origin, patience: Patience = AT_START) -> str:
    """SHA-256 of a model's configuration: a folder's or a Hub model's config.json, or a file of that kind.

    Raises:
        InputError: there is none that can be read.
        OutageError: the Hub does not answer.
    """
    path = Path(origin.path)
    if not origin.is_local:
        from huggingface_hub import hf_hub_download

        file = Path(_ask_hub(origin, patience, hf_hub_download, CONFIG_FILE))
    else:
        file = path if path.is_file() else path / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{origin.path} has no config.json that can be read: {reason_of(error)}") from error
    return _digest({key: value for key, value in config.items() if key not in _NOT_LEARNED})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _weights_on_disk(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights."""
    weights = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.name.endswith(_WEIGHTS):
            with file.open("rb") as content:
                weights[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return weights


def _weights_on_hub(origin: Origin, patience: Patience) -> dict[str, str]:
    """SHA-256 of each file of weights, as the Hub knows it."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return _weights_on_disk(Path(_ask_hub(origin, patience, snapshot_download, local_files_only=True)))
    info = _ask_hub(origin, patience, HfApi().model_info, files_metadata=True)
    return {
        # A mirror of the Hub may know no digests: then a commit is known by its name.
        file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id or info.sha)
        for file in info.siblings or ()
        if file.rfilename.endswith(_WEIGHTS) and "/" not in file.rfilename
    }
