"""The files of a model or a tokenizer -> a folder that libraries can load, or why they do not load."""

import importlib.util
import logging
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distil_ray.errors import InputError, OutageError, reason_of
from distil_ray.models.origin import CARD_FILE, CONFIG_FILE, Origin, fetch_files, local_path
from distil_ray.outages import AT_START, Patience

_LFS_POINTER = b"version https://git-lfs"


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
    with quiet():
        try:
            location = local or fetch_files(Origin(path, revision), files, weights=weights, patience=patience)
        except OutageError as error:
            raise OutageError(f"{error} If {path} is in the cache, HF_HUB_OFFLINE=1 uses it without asking") from error
        if needs is not None and not os.path.exists(os.path.join(location, needs)):
            raise InputError(f"cannot load {what}: {path} has no {needs}; expected a folder of save_pretrained")
        try:
            yield location
        except (InputError, OutageError):
            raise
        except Exception as error:  # the libraries raise a dozen types, and each of them says that the input is bad
            place = f"from the folder {path}" if local else f"{path!r} of the Hub"
            raise InputError(f"cannot load {what} {place}: {_why(error, Path(location))}") from error


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
    found = lfs_pointers(folder, names)
    if found:
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
    pointers = lfs_pointers(folder, names)
    if pointers:
        return f"{pointers[0]} is a Git LFS pointer and not the file itself; run `git lfs pull` in that folder"
    if isinstance(error, pickle.UnpicklingError) or (pickles and isinstance(error, LookupError | EOFError)):
        # What PyTorch advises would run any code that the file holds.
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
