"""A model's name -> where it comes from, pinned; its files in a local folder; what it is, known by content.

A name on the Hub may point to something else tomorrow. It is resolved to a commit once, by the driver; workers, resumes
and comparisons use that commit. Each file is fetched on its own and waited for: transformers takes the silence of a Hub
for the absence of a file that may be absent, and without tokenizer_config.json would load another tokenizer.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from distil_ray.data.hub import advice_on
from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.outages import AT_START, Patience
from distil_ray.shipped import shipped_path

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *VOCABULARY_FILES,
    CONFIG_FILE,
)
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")

_WEIGHTS_SUFFIXES = (".safetensors", ".bin")
_NOT_LEARNED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")  # of config.json

Result = TypeVar("Result")


class Origin(NamedTuple):
    """A local folder (``revision`` None), or a model on the Hub at a commit."""

    path: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return os.path.exists(os.path.expanduser(self.path))


def local_path(path: str, purpose: str = "") -> str | None:
    """Return the path of what is on this machine; None for an id on the Hub. A message begins with ``purpose``.

    Raises:
        InputError: there is no such folder, and it cannot be such an id.
    """
    location = os.path.expanduser(path)
    if os.path.exists(location):
        return location
    if (shipped := shipped_path(path)) is not None:
        return shipped
    if "://" in path or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise InputError(f"{purpose}{path} does not exist; expected a local folder or a Hub id")
    return None


def resolve(path: str, revision: str | None, patience: Patience = AT_START) -> Origin:
    """Pin a model: the absolute path of a folder, or the commit that a branch or tag of the Hub points to now.

    Without the Hub (HF_HUB_OFFLINE), the commit is that of the cached copy.

    Raises:
        InputError: neither folder nor Hub has it.
        OutageError: the Hub does not answer.
    """
    local = local_path(path)
    if local is not None:
        return Origin(os.path.abspath(local))
    if _is_commit(revision):
        return Origin(path, revision)
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE:
        file = try_to_load_from_cache(path, CONFIG_FILE, revision=revision)
        return Origin(path, Path(file).parent.name if isinstance(file, str) else revision)
    info = _ask_hub(Origin(path, revision), patience, lambda: HfApi().model_info(path, revision=revision))
    return Origin(path, info.sha)


def _is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _ask_hub(origin: Origin, patience: Patience, attempt: Callable[[], Result]) -> Result:
    """Return what ``attempt`` does, waiting for the Hub; or say that the Hub does not give the model."""
    from huggingface_hub.errors import GatedRepoError

    try:
        return patience.wait_out(f"the Hub ({origin.path})", attempt)
    except OutageError:
        raise
    except GatedRepoError as error:
        raise InputError(f"the Hugging Face Hub gives {origin.path!r} only to some:{advice_on(error)}") from error
    except Exception as error:  # of many types, and all say that there is no such model
        at = f" at revision {origin.revision!r}" if origin.revision else ""
        raise InputError(
            f"there is no local folder {origin.path!r}, and it cannot be had from the Hugging Face Hub{at}: "
            f"{reason_of(error)} Check the name, the revision and the network (and HF_TOKEN if it is private)"
        ) from error


# --------------------------------------------------------------------------------------------------- files


def fetch_files(origin: Origin, names: Sequence[str], *, weights: bool = False, patience: Patience = AT_START) -> str:
    """Fetch those of a Hub model's files that exist, all of one commit, and return their folder in the cache.

    Args:
        names: the files.
        weights: fetch the weights, too, safetensors rather than pickles.

    Raises:
        InputError: it has none of them, or cannot be had.
        OutageError: the Hub does not answer.
    """
    from huggingface_hub import constants

    folder: Path | None = None
    for name in names:
        file = _fetch(origin, name, patience)
        if file is not None:
            folder = file.parents[name.count("/")]
            origin = Origin(origin.path, folder.name)  # the branch may move in the meantime
    if folder is None and constants.HF_HUB_OFFLINE:
        raise InputError(
            f"there is no local folder {origin.path!r}, and the cache has nothing of that name from the Hugging Face "
            "Hub, which is not asked, as HF_HUB_OFFLINE is set. Check the name, or allow the network"
        )
    if folder is None:
        raise InputError(
            f"{origin.path!r} on the Hugging Face Hub has none of {', '.join(names)}; expected a model's repository"
        )
    if weights:
        _fetch_weights(origin, patience)
    return str(folder)


def _fetch_weights(origin: Origin, patience: Patience) -> None:
    for name in WEIGHTS_FILES:
        if _fetch(origin, name, patience) is not None:
            return
        index = _fetch(origin, f"{name}.index.json", patience)
        if index is not None:
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise InputError(f"{origin.path}: {name}.index.json cannot be read: {reason_of(error)}") from error
            for shard in sorted(shards):
                _fetch(origin, shard, patience)
            return


def _fetch(origin: Origin, name: str, patience: Patience) -> Path | None:
    """Return the cached copy of a file of the Hub; None if the Hub has no such file."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path, revision = origin
    if _is_commit(revision):
        known = try_to_load_from_cache(path, name, revision=revision)
        if known is not None and not isinstance(known, str):
            return None  # known to be absent, which the library asks for every time

    def attempt() -> Path | None:
        try:
            return Path(hf_hub_download(path, name, revision=revision))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
                raise  # what an outage becomes
            return None

    return _ask_hub(origin, patience, attempt)


def card_metadata(origin: Origin, patience: Patience = AT_START) -> dict[str, Any]:
    """The metadata in a model's card, which is fetched; empty if it has no card.

    Raises:
        InputError: the Hub does not give the model.
        OutageError: the Hub does not answer.
    """
    local = Path(os.path.expanduser(origin.path), CARD_FILE)
    file = local if origin.is_local else _fetch(origin, CARD_FILE, patience)
    return {} if file is None else read_card(file)


def read_card(file: Path) -> dict[str, Any]:
    """The metadata in a card; empty if there is no such file, or if it is not in the form of the Hub's."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        return metadata_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


# ------------------------------------------------------------------------------------------------- content


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
    kept = {name: digest for name, digest in weights.items() if name.endswith(_WEIGHTS_SUFFIXES[0])} or weights
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
        file = _fetch(origin, CONFIG_FILE, patience)
    else:
        file = path if path.is_file() else path / CONFIG_FILE
    if file is None:
        raise InputError(f"{origin.path} has no config.json; expected a model's repository")
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
        if file.name.endswith(_WEIGHTS_SUFFIXES):
            with file.open("rb") as content:
                weights[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return weights


def _weights_on_hub(origin: Origin, patience: Patience) -> dict[str, str]:
    """SHA-256 of each file of weights, as the Hub knows it."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        cached = partial(snapshot_download, origin.path, revision=origin.revision, local_files_only=True)
        return _weights_on_disk(Path(_ask_hub(origin, patience, cached)))
    listing = partial(HfApi().model_info, origin.path, revision=origin.revision, files_metadata=True)
    info = _ask_hub(origin, patience, listing)
    return {
        # A mirror of the Hub may know no digests: then a commit is known by its name.
        file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id or info.sha)
        for file in info.siblings or ()
        if file.rfilename.endswith(_WEIGHTS_SUFFIXES) and "/" not in file.rfilename
    }
