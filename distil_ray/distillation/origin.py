"""Where a model comes from, pinned: a folder, or a commit on the Hub; and what it is, known by content.

A name on the Hub may point to something else tomorrow. It is resolved to a commit once, by the driver; workers, resumes
and comparisons use that commit.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from distil_ray.errors import InputError, reason_of
from distil_ray.outages import AT_START, Patience

_WEIGHTS = (".safetensors", ".bin")
_NOT_LEARNED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")  # of config.json
_COMMIT_LENGTH = 40


class Origin(NamedTuple):
    """A local folder (``revision`` None), or a model on the Hub at a commit."""

    path: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return os.path.exists(os.path.expanduser(self.path))


def resolve(path: str, revision: str | None, patience: Patience = AT_START) -> Origin:
    """Pin a model: the absolute path of a folder, or the commit that a branch or tag of the Hub points to now.

    Without the Hub (HF_HUB_OFFLINE), the commit is that of the cached copy.

    Raises:
        InputError: neither folder nor Hub has it.
        OutageError: the Hub does not answer.
    """
    if os.path.exists(os.path.expanduser(path)):
        return Origin(os.path.abspath(os.path.expanduser(path)))
    if revision is not None and len(revision) == _COMMIT_LENGTH and set(revision) <= set("0123456789abcdef"):
        return Origin(path, revision)
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return Origin(path, _cached_commit(path, revision))
    try:
        info = patience.wait_out(f"the Hub ({path})", lambda: HfApi().model_info(path, revision=revision))
    except Exception as error:  # of many types, and all say that there is no such model
        if isinstance(error, RuntimeError):  # an OutageError
            raise
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"there is no local folder {path!r}, and from the Hugging Face Hub it cannot be had{at}: "
            f"{reason_of(error)} Check the name and the revision (and HF_TOKEN if it is private)"
        ) from error
    return Origin(path, info.sha)


def _cached_commit(path: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else revision


def content_digest(origin: Origin, patience: Patience = AT_START) -> str:
    """SHA-256 of what a model computes: the bytes of its weights' files, and its configuration.

    The same for a folder and for a copy of it elsewhere, the Hub included; of a model on the Hub nothing but its
    configuration is downloaded.

    Raises:
        InputError: there are no weights.
        OutageError: the Hub does not answer.
    """
    weights, config = _on_disk(origin) if origin.is_local else _on_hub(origin, patience)
    # A folder may have both kinds; transformers takes safetensors.
    kept = {name: digest for name, digest in weights.items() if name.endswith(_WEIGHTS[0])} or weights
    if not kept:
        raise InputError(f"{origin.path} has no weights; expected model.safetensors (or pytorch_model.bin)")
    learned = {key: value for key, value in config.items() if key not in _NOT_LEARNED}
    return hashlib.sha256(json.dumps([sorted(kept.items()), learned], sort_keys=True).encode()).hexdigest()


def _on_disk(origin: Origin) -> tuple[dict[str, str], dict[str, Any]]:
    folder = Path(origin.path).expanduser()
    weights = {}
    for file in sorted(folder.iterdir()):
        if file.name.endswith(_WEIGHTS):
            with file.open("rb") as content:
                weights[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    config = folder / "config.json"
    return weights, json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}


def _on_hub(origin: Origin, patience: Patience) -> tuple[dict[str, str], dict[str, Any]]:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    if constants.HF_HUB_OFFLINE:
        folder = snapshot_download(origin.path, revision=origin.revision, local_files_only=True)
        return _on_disk(Origin(folder))
    where = f"the Hub ({origin.path})"
    info = patience.wait_out(
        where, lambda: HfApi().model_info(origin.path, revision=origin.revision, files_metadata=True)
    )
    weights = {
        # A mirror of the Hub may know no digests: then a commit is known by its name.
        file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id or info.sha)
        for file in info.siblings or ()
        if "/" not in file.rfilename and file.rfilename.endswith(_WEIGHTS)
    }
    config = patience.wait_out(where, lambda: hf_hub_download(origin.path, "config.json", revision=origin.revision))
    return weights, json.loads(Path(config).read_text(encoding="utf-8"))
