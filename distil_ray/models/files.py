"""The files of a model or a tokenizer in a local folder, fetched from the Hub if need be; and why they do not load.

Each file is fetched on its own and waited for. transformers takes the silence of a Hub for the absence of a file that
may be absent: without tokenizer_config.json, for example, it would load another tokenizer.
"""

import importlib.util
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.outages import AT_START, Patience

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

_LFS_POINTER = b"version https://git-lfs"

Fetch = Callable[[str], Path | None]


def local_path(path: str, purpose: str = "") -> str | None:
    """Return the path of what is on this machine; None for an id on the Hub. A message begins with ``purpose``.

    Raises:
        InputError: there is no such folder, and it cannot be such an id.
    """
    location = os.path.expanduser(path)
    if os.path.exists(location):
        return location
    if "://" in path or path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise InputError(f"{purpose}{path} does not exist; expected a local folder or a Hub id")
    return None


def is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@contextmanager
def loading(
    what: str,
    path: str,
    revision: str | None = None,
    *,
    needs: str | None = None,
    files: Sequence[str] = (CONFIG_FILE, CARD_FILE),
    weights: bool = False,
    patience: Patience = AT_START,
) -> Iterator[str]:
    """Yield the folder (or file) to load ``path`` from; silence the libraries; turn what they raise into InputError.

    Args:
        what: what is loaded, for messages.
        path: of a local folder or file, or an id on the Hub.
        revision: of the Hub's: a branch, a tag or a commit.
        needs: a file that must be there.
        files: what to fetch from the Hub, as far as it is there.
        weights: fetch the weights, too, safetensors rather than pickles.
        patience: how long to wait for the Hub.

    Raises:
        InputError: there is nothing, or it cannot be loaded.
        OutageError: the Hub does not answer.
    """
    local = local_path(path, f"cannot load {what}: ")
    location = local or ""
    try:
        with quiet():
            if local is None:
                location = _fetched(path, revision, files, weights, patience)
            if needs is not None and not os.path.exists(os.path.join(location, needs)):
                raise InputError(f"cannot load {what}: {path} has no {needs}; expected a folder of save_pretrained")
            yield location
    except InputError:
        raise
    except OutageError as error:
        raise OutageError(f"{error} If {path} is in the cache, HF_HUB_OFFLINE=1 uses it without asking") from error
    except Exception as error:  # the libraries raise a dozen types, and each of them says that the input is bad
        if local is not None:
            raise InputError(f"cannot load {what} from the folder {path}: {_why(error, Path(location))}") from error
        if location:
            raise InputError(f"cannot load {what} {path!r} of the Hub: {_why(error, Path(location))}") from error
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"cannot load {what} from {path!r}{at}: there is no local folder of that name, and from the Hugging Face "
            f"Hub: {reason_of(error)} Check the name, the revision and the network (and HF_TOKEN if it is private)"
        ) from error


def _fetched(path: str, revision: str | None, files: Sequence[str], weights: bool, patience: Patience) -> str:
    """Fetch what there is of ``files`` at one commit, and return their folder in the cache."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder: Path | None = None

    def fetch(name: str) -> Path | None:
        nonlocal folder
        commit = revision if folder is None else folder.name  # the branch may move in the meantime
        if is_commit(commit):
            known = try_to_load_from_cache(path, name, revision=commit)
            if known is not None and not isinstance(known, str):
                return None  # known to be absent, which the library asks for every time
        try:
            file = patience.wait_out(f"the Hub ({path})", lambda: hf_hub_download(path, name, revision=commit))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
                raise
            return None
        folder = Path(file).parent
        return Path(file)

    for name in files:
        fetch(name)
    if weights:
        _fetch_weights(fetch)
    if folder is not None:
        return str(folder)
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"there is no local folder {path!r}, and the cache has nothing of that name from the Hugging Face Hub, "
            "which is not asked, as HF_HUB_OFFLINE is set. Check the name, or allow the network"
        )
    raise InputError(f"{path!r} on the Hugging Face Hub has none of {', '.join(files)}; expected a model's repository")


def _fetch_weights(fetch: Fetch) -> None:
    for name in WEIGHTS_FILES:
        if fetch(name) is not None:
            return
        if (index := fetch(f"{name}.index.json")) is not None:
            for shard in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
                fetch(shard)
            return


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines and progress bars of transformers and huggingface_hub."""
    from transformers.utils import logging as transformers_logging  # late: names are resolved without it

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_progress_bar = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_progress_bar:
            transformers_logging.enable_progress_bar()


# ------------------------------------------------------------------------------------------------- reasons


def lfs_pointers(folder: Path, names: Sequence[str]) -> list[str]:
    """Which of the files are Git LFS pointers: three lines of text in place of the file itself."""
    return [name for name in names if (folder / name).is_file() and _begins_as_pointer(folder / name)]


def check_no_pointers(folder: Path, names: Sequence[str]) -> None:
    """Raise InputError if one of the files is a Git LFS pointer."""
    if found := lfs_pointers(folder, names):
        raise InputError(
            f"{folder / found[0]} is a Git LFS pointer and not the file itself; run `git lfs pull` in that folder"
        )


def _begins_as_pointer(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(_LFS_POINTER)) == _LFS_POINTER


def _why(error: Exception, folder: Path) -> str:
    """What the libraries say, unless they advise what is of no use here, or say less than the files do."""
    text = reason_of(error)
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(".bin")]
    if found := lfs_pointers(folder, names):
        return f"{found[0]} is a Git LFS pointer and not the file itself; run `git lfs pull` in that folder"
    if isinstance(error, pickle.UnpicklingError) or (pickles and isinstance(error, LookupError | EOFError)):
        # What PyTorch advises would run whatever code the file holds.
        held = re.search(r"Unsupported global: GLOBAL (\S+)", text)
        detail = f"({held[1]}) " if held else ""
        return (
            f"{pickles[0] if pickles else 'a file'} is damaged, or holds Python objects {detail}besides tensors, which "
            "are never loaded; expected safetensors, or a .bin that holds tensors alone"
        )
    if "custom code" in text or "trust_remote_code" in text:
        return "it needs Python code that comes with it (auto_map), and such code is never run"
    if "tiktoken" in text or "sentencepiece" in text.lower():
        model = next((name for name in names if name.endswith(".model")), "a .model file")
        if importlib.util.find_spec("sentencepiece") is None:
            return (
                f"its vocabulary is a SentencePiece file, {model}, without a tokenizer.json; run `pip install "
                "sentencepiece` on every machine, or add a tokenizer.json (save the tokenizer where it loads)"
            )
        return f"{model} is damaged, or is no SentencePiece file"
    if type(error).__name__ == "SafetensorError":
        return f"its weights are damaged or cut short ({text}); copy or download the .safetensors again"
    return f"{type(error).__name__} {text}" if isinstance(error, LookupError) else text
