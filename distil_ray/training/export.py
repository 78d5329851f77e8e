"""The student as an ordinary Hugging Face folder: safetensors, configuration, tokenizer, model card."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray import __version__
from distil_ray.config import Config, Source, dump_yaml, to_settings
from distil_ray.data.tally import counts_of, describe_text, text_warnings
from distil_ray.models.families import family_of, has_head
from distil_ray.models.files import quiet
from distil_ray.models.loading import agree_twins, max_tokens
from distil_ray.models.origin import CARD_FILE, read_card
from distil_ray.models.tokenizer import fit_inputs, save_tokenizer
from distil_ray.runs.storage import EXPORT_FOLDER, RunFolder

_INHERITED = ("language", "license", "license_name", "license_link")

# What was measured of the student, and what the Hub calls it.
_FIGURES = {
    "eval/mlm_loss": ("MLM loss (nats per masked token)", "loss"),
    "eval/mlm_accuracy": ("MLM accuracy", "accuracy"),
    "eval/kl_to_teacher": ("KL divergence from the teacher (nats)", "kl_divergence"),
    "eval/teacher_agreement": ("top-1 agreement with the teacher", "agreement"),
    "eval/relation_loss": ("loss between attention relations (nats per token)", "relation_loss"),
    "eval/hidden_loss": ("loss between hidden states (per token)", "hidden_loss"),
}
_TEACHERS_FIGURES = {
    "eval/teacher_mlm_loss": "the teacher's MLM loss",
    "eval/teacher_mlm_accuracy": "the teacher's MLM accuracy",
}
_HELD_OUT = "held-out text"
_HERE = "In this folder, with transformers"


def export_student(
    folder: RunFolder,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    summary: Mapping[str, Any],
    embedding_files: Mapping[str, bytes] = MappingProxyType({}),
    *,
    name: str = EXPORT_FOLDER,
) -> None:
    """Write a folder called ``name``, which ``AutoModelForMaskedLM.from_pretrained``, or ``AutoModel`` for a student
    without a head, loads without this package.

    Args:
        embedding_files: what makes it a SentenceTransformers folder, too, by relative path.
    """
    with folder.new_folder(name) as local:
        # So that `truncation=True` cuts texts to what the student has positions for.
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens(student))
        agree_twins(student)
        with quiet():
            student.save_pretrained(local)
            save_tokenizer(fit_inputs(tokenizer, student.config), local)
        for file, content in embedding_files.items():
            (local / file).parent.mkdir(parents=True, exist_ok=True)
            (local / file).write_bytes(content)
        card = model_card(student, config, summary, makes_embeddings=bool(embedding_files))
        (local / CARD_FILE).write_text(card, encoding="utf-8")


_EMBEDDING_USE = (
    "",
    "With sentence-transformers, vectors of texts, which are made of the student's last hidden states as the teacher's "
    "are of its own:",
    "",
    "```python",
    "from sentence_transformers import SentenceTransformer",
    "",
    'vectors = SentenceTransformer(".").encode(["a text", "another"])',
    "```",
)


def model_card(
    student: PreTrainedModel, config: Config, summary: Mapping[str, Any], *, makes_embeddings: bool = False
) -> str:
    """Markdown with what the model is, its held-out figures and how to load it; nothing of the machine's own."""
    origin = (
        f"distilled from `{_shown(config.teacher.path)}`"
        if config.teacher is not None
        else "trained by masked language modelling"
    )
    kind, auto_class = (
        ("masked language model", "AutoModelForMaskedLM") if has_head(student) else ("encoder", "AutoModel")
    )
    has_inside = any(summary.get(f"eval/{name}") is not None for name in ("relation_loss", "hidden_loss"))
    of_masks = f"Masked tokens{' (losses between relations and hidden states: all tokens)' * has_inside}"
    counted = of_masks if has_head(student) else "All tokens"
    texts = {name: text for name, (text, _) in _FIGURES.items()} | _TEACHERS_FIGURES
    figures = [f"| {text} | {summary[name]:.4f} |" for name, text in texts.items() if summary.get(name) is not None]
    table = ["| held-out figure | value |", "|---|---|", *figures] if figures else ["No text was held out."]
    counts = counts_of(summary)
    limit = config.data.warn_skipped_fraction
    text = [f"Of the text, {'; '.join(describe_text(counts))}.", ""] if counts else []
    text += [part for line in text_warnings(counts, max_lost_fraction=limit) for part in (f"**Warning**: {line}.", "")]
    sources = ", ".join(f"`{_shown(str(source))}`" for source in config.data.sources)
    return "\n".join(
        [
            "---",
            _metadata(config, student, summary).to_yaml(),
            "---",
            "",
            f"# {config.run.name}",
            "",
            f"A {student.config.model_type} {kind} of {student.config.num_hidden_layers} layers and "
            f"{student.num_parameters():,} parameters, {origin} with distil_ray {__version__}.",
            "",
            "## Use",
            "",
            f"{_HERE} {family_of(student.config).transformers} or later:",
            "",
            "```python",
            f"from transformers import {auto_class}, AutoTokenizer",
            "",
            f'model = {auto_class}.from_pretrained(".")',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            "```",
            *(_EMBEDDING_USE if makes_embeddings else ()),
            "",
            "## Figures",
            "",
            *table,
            "",
            f"{counted} of held-out rows of {config.data.max_seq_length} tokens, fixed masks, temperature 1.",
            "",
            "## Training",
            "",
            *text,
            f"{summary['step']:,} steps of {config.optim.global_batch_size:,} rows, {summary['tokens']:,} tokens of "
            f"{sources}. Settings:",
            "",
            "```yaml",
            dump_yaml(_portable(to_settings(config))).rstrip(),
            "```",
            "",
        ]
    )


def card_for_hub(card: str, repo_id: str, revision: str | None, license_: Mapping[str, str]) -> str:
    """The card of an exported folder as it is to be in a repository: whoever loads the model names the repository.

    Args:
        license_: takes the place of the license in the metadata, if it is not empty.

    Raises:
        ValueError: the card's metadata cannot be read.
    """
    place = f'"{repo_id}"' + (f', revision="{revision}"' if revision else "")
    for loader in ("from_pretrained", "SentenceTransformer"):
        card = card.replace(f'{loader}(".")', f"{loader}({place})")
    card = card.replace(f"{_HERE} ", f"{_HERE.partition(', ')[2].capitalize()} ")
    if not license_:
        return card
    changed = ModelCard(card)
    for key in ("license", "license_name", "license_link"):
        changed.data[key] = license_.get(key)
    return str(changed)


def inherited(origin: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a student's card takes over from the ``metadata`` of its teacher's: language and license."""
    kept = {key: metadata[key] for key in _INHERITED if metadata.get(key)}
    link = kept.get("license_link")
    if link and "://" not in link:  # a file beside the teacher's card, which the student has not
        del kept["license_link"]
        if not os.path.isabs(origin):
            kept["license_link"] = f"https://huggingface.co/{origin}/blob/main/{link}"
    return kept


def _metadata(config: Config, student: PreTrainedModel, summary: Mapping[str, Any]) -> ModelCardData:
    """What the Hub reads: where the model comes from, how good it is, and what the teacher's card says of language and
    license.

    Of the relations that the Hub knows (adapter, finetune, merge, quantized), a student's is nearest to "finetune": its
    weights begin as the teacher's, and are trained further. The tag says what it is.
    """
    origin = config.teacher.path if config.teacher is not None else config.student.path
    is_on_hub = origin is not None and not os.path.isabs(origin)
    datasets = list(dict.fromkeys(filter(None, map(_dataset, config.data.sources))))
    heldout = {_dataset(source) for source in config.data.eval_sources or config.data.sources}
    dataset = (heldout.pop() if len(heldout) == 1 else None) or "text"  # the Hub wants a name
    task = "fill-mask" if has_head(student) else "feature-extraction"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=_HELD_OUT,
            metric_type=kind,
            metric_name=text,
            metric_value=round(summary[name], 4),
        )
        for name, (text, kind) in _FIGURES.items()
        if summary.get(name) is not None
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["distil_ray", *(["distillation"] if config.teacher is not None else [])],
        base_model=origin if is_on_hub else None,
        base_model_relation="finetune" if is_on_hub else None,
        datasets=datasets or None,
        metrics=["accuracy"] if any(one.metric_type == "accuracy" for one in results) else None,
        model_name=config.run.name if results else None,
        eval_results=results or None,
        **({} if origin is None else inherited(origin, _card_of(origin))),
    )


def _dataset(source: Source) -> str | None:
    """The id of a data set on the Hub."""
    if source.hub is not None:
        return None if os.path.isabs(source.hub) else source.hub
    match = re.match(r"hf://datasets/([^/@]+/[^/@]+)", source.path or "")
    return match[1] if match else None


def _card_of(path: str) -> dict[str, Any]:
    """The metadata in a model's card, if it has one: in its folder, or as it was fetched with the model."""
    cached = Path(constants.HF_HUB_CACHE, f"models--{path.replace('/', '--')}").glob(f"snapshots/*/{CARD_FILE}")
    cards = [Path(path, CARD_FILE)] if os.path.isabs(path) else sorted(cached, key=lambda file: file.stat().st_mtime)
    return read_card(cards[-1]) if cards else {}


def _portable(value: Any) -> Any:
    """Settings without the folders of this machine: absolute paths are replaced by their last parts."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(path: str) -> str:
    """The name of a local file or folder, with its parent's where it says little on its own."""
    if not os.path.isabs(path):
        return path
    names = Path(path).parts[1:]
    num_shown = 2 if names and (names[-1] == EXPORT_FOLDER or "*" in names[-1]) else 1
    return "/".join(names[-num_shown:])
