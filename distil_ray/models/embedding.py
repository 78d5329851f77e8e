"""SentenceTransformers folders: how a model makes a vector of a text, and the same for its student.

Such a folder is a model's with a modules.json beside it: what works on a text one after the other. "Transformer" is the
model itself; "Pooling" and what follows, such as "Normalize" or "Dense", have folders of their own.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.errors import InputError, reason_of
from distil_ray.models.loading import max_tokens
from distil_ray.models.origin import CONFIG_FILE, WEIGHTS_FILES, Origin, fetch_files, local_path
from distil_ray.models.tokenizer import lowercases

Pooling = Literal["mean", "cls"]

MODULES_FILE = "modules.json"
_LENGTH_FILE = "sentence_bert_config.json"  # of the Transformer, whatever the model's family
_SETTINGS_FILE = "config_sentence_transformers.json"
_SAME_DIRECTION = ("Normalize", "Dropout")  # change no cosine, and fit every width
_INPUT_WIDTH = {"Dense": "in_features", "LayerNorm": "dimension"}


class Embedding(NamedTuple):
    """How a vector is made of a text.

    Attributes:
        pooling: of the last hidden states: their mean over the attention mask, or the first one.
        max_seq_length: pieces of a text, special ones included; longer texts are cut.
        prompt: what is put before a text.
    """

    pooling: Pooling
    max_seq_length: int
    prompt: str


class _Module(NamedTuple):
    """An entry of modules.json: the last part of its ``type``, its folder and the content of its config.json."""

    kind: str
    path: str
    config: dict[str, Any]
    entry: dict[str, Any]

    @property
    def pooling_modes(self) -> list[str]:
        """Of a Pooling: what it concatenates. Before version 6, its configuration had a flag for each."""
        modes = self.config.get("pooling_mode")
        if modes is None:
            flags = [name for name, is_on in self.config.items() if name.startswith("pooling_mode_") and is_on]
            modes = [re.sub("^pooling_mode_|_tokens?$", "", flag) for flag in flags]
        return [modes] if isinstance(modes, str) else modes or ["mean"]


def embedding_of(
    origin: Origin, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling | None = None
) -> Embedding:
    """How a model makes a vector of a text: as its SentenceTransformers folder says, or the mean if it is none.

    Args:
        pooling: in place of what the folder's modules do with the last hidden states.

    Raises:
        InputError: its modules do something else than `Embedding` describes, texts would have to be lowercased before
            the tokenizer, or a file is damaged.
        OutageError: the Hub does not answer.
    """
    folder, modules = _read(origin)
    settings, transformer = _settings(folder, _SETTINGS_FILE), _settings(folder, _LENGTH_FILE)
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name")) or ""
    if transformer.get("do_lower_case") and not lowercases(tokenizer):
        raise InputError(
            f"{origin.path}: its {_LENGTH_FILE} has texts lowercased before its tokenizer, which tells apart upper and "
            "lower case, sees them; expected a tokenizer that lowercases by itself, and no do_lower_case there"
        )
    longest = transformer.get("max_seq_length") or tokenizer.model_max_length
    return Embedding(pooling or _supported_pooling(origin, modules, prompt), min(longest, max_tokens(model)), prompt)


def _supported_pooling(origin: Origin, modules: list[_Module], prompt: str) -> Pooling:
    rest = [module for module in modules if module.kind not in ("Transformer", *_SAME_DIRECTION)]
    how = [mode for module in rest for mode in (module.pooling_modes if module.kind == "Pooling" else [module.kind])]
    if prompt and not all(module.config.get("include_prompt", True) for module in rest):
        how.append("leaving out the prompt")
    if not modules or how == ["mean"]:
        return "mean"
    if how == ["cls"]:
        return "cls"
    raise InputError(
        f"{origin.path}: its {MODULES_FILE} makes vectors by {', '.join(how) or 'no Pooling'}; expected mean or cls. A "
        "task with pooling: mean or cls compares last hidden states, without what follows in that file"
    )


class StudentFiles(NamedTuple):
    """What a student's folder gets from its teacher's: contents by relative path, and a line on each part left out."""

    files: dict[str, bytes]
    omitted: list[str]


NO_FILES = StudentFiles({}, [])


def sentence_transformers_files(teacher: Origin, student: PreTrainedModel) -> StudentFiles:
    """The files with which ``SentenceTransformer(folder)`` loads a student; none if the teacher has none.

    Widths and lengths in them are the student's. A module whose weights are for vectors of another width than it would
    get from the student is left out.

    Args:
        teacher: a folder, or a model of the Hub at its commit.
        student: a masked language model or a bare encoder.

    Raises:
        InputError: a file is damaged.
        OutageError: the Hub does not answer.
    """
    folder, modules = _read(teacher)
    if not modules:
        return NO_FILES
    files: dict[str, bytes] = {}
    kept, omitted = [], []
    width = int(student.config.hidden_size)
    for module in modules:
        config = dict(module.config)
        expected = config.get(_INPUT_WIDTH.get(module.kind, ""))
        if module.kind == "Transformer":
            kept.append(module.entry | {"path": ""})
            continue
        if module.kind == "Pooling":
            for name in config.keys() & {"embedding_dimension", "word_embedding_dimension"}:
                config[name] = width
            width *= len(module.pooling_modes)
        elif module.kind not in _SAME_DIRECTION and expected != width:
            why = f"it takes vectors of {expected}, the student's have {width}" if expected else "it is not supported"
            omitted.append(f"export: {module.path or module.kind} of {teacher.path} is left out, as {why}")
            continue
        kept.append(module.entry)
        width = config.get("out_features", width)
        for name in WEIGHTS_FILES:
            if (folder / module.path / name).is_file():
                files[f"{module.path}/{name}"] = (folder / module.path / name).read_bytes()
        if config:
            files[f"{module.path}/{CONFIG_FILE}"] = _to_json(config)
    files[MODULES_FILE] = _to_json(kept)
    if lengths := _settings(folder, _LENGTH_FILE):
        if lengths.get("max_seq_length"):
            lengths["max_seq_length"] = min(lengths["max_seq_length"], max_tokens(student))
        files[_LENGTH_FILE] = _to_json(lengths)
    if settings := _settings(folder, _SETTINGS_FILE):
        files[_SETTINGS_FILE] = _to_json(settings)
    return StudentFiles(files, omitted)


def _read(origin: Origin) -> tuple[Path, list[_Module]]:
    """The folder of a model's files, in the cache if it is on the Hub, and its modules; none if it has no such file."""
    local = local_path(origin.path)
    folder = Path(local or fetch_files(origin, (CONFIG_FILE, MODULES_FILE)))
    entries = _settings(folder, MODULES_FILE) or []
    try:
        named = [(str(entry["type"]).rpartition(".")[2], str(entry["path"]), entry) for entry in entries]
    except (LookupError, TypeError) as error:
        raise InputError(f"{origin.path}: its {MODULES_FILE} has an entry without type and path") from error
    if outside := [path for _, path, _ in named if Path(path).is_absolute() or ".." in Path(path).parts]:
        raise InputError(f"{origin.path}: its {MODULES_FILE} names {outside[0]}, expected a folder within the model's")
    if named and not local:
        own = [f"{path}/{name}" for _, path, _ in named if path for name in (CONFIG_FILE, *WEIGHTS_FILES)]
        fetch_files(Origin(origin.path, folder.name), (CONFIG_FILE, _LENGTH_FILE, _SETTINGS_FILE, *own))
    modules = [
        _Module(kind, path, _settings(folder / path, CONFIG_FILE) if path else {}, entry) for kind, path, entry in named
    ]
    if lacking := [module.path for module in modules if module.kind == "Pooling" and not module.config]:
        raise InputError(f"{origin.path}: its {MODULES_FILE} names {lacking[0]}, where there is no {CONFIG_FILE}")
    return folder, modules


def _settings(folder: Path, name: str) -> Any:
    """The content of a JSON file; {} if there is none."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name} cannot be read: {reason_of(error)}") from error


def _to_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
