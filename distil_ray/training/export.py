"""The student as an ordinary Hugging Face folder: safetensors, configuration, tokenizer, model card."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray import __version__
from distil_ray.config import Config, to_yaml
from distil_ray.data.tally import counts_of, describe_text, text_warnings
from distil_ray.distillation.models import max_tokens, quiet
from distil_ray.training.storage import RunFolder

EXPORT_FOLDER = "export"

_FIGURES = {
    "eval/mlm_loss": "MLM loss (nats a masked token)",
    "eval/mlm_accuracy": "MLM accuracy",
    "eval/kl_to_teacher": "KL divergence from the teacher (nats)",
    "eval/teacher_agreement": "top-1 agreement with the teacher",
    "eval/teacher_mlm_loss": "the teacher's MLM loss",
    "eval/teacher_mlm_accuracy": "the teacher's MLM accuracy",
}


def export_student(
    folder: RunFolder,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    summary: Mapping[str, Any],
) -> None:
    """Write ``export/``, which ``AutoModelForMaskedLM.from_pretrained`` loads without this package."""
    with folder.new_folder(EXPORT_FOLDER) as local:
        # So that `truncation=True` cuts texts to what the student has positions for.
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens(student))
        with quiet():
            student.save_pretrained(local)
            tokenizer.save_pretrained(local)
        location = str(local) if folder.is_local else EXPORT_FOLDER
        (local / "README.md").write_text(model_card(student, config, summary, location), encoding="utf-8")


def model_card(student: PreTrainedModel, config: Config, summary: Mapping[str, Any], location: str) -> str:
    """Markdown with what the model is, its held-out figures and how to load it."""
    origin = (
        f"distilled from `{config.teacher.path}`"
        if config.teacher is not None
        else "trained by masked language modelling"
    )
    figures = [f"| {text} | {summary[name]:.4f} |" for name, text in _FIGURES.items() if summary.get(name) is not None]
    table = ["| held-out figure | value |", "|---|---|", *figures] if figures else ["No text was held out."]
    counts = counts_of(summary)
    limit = config.data.warn_skipped_fraction
    text = [f"Of the text, {'; '.join(describe_text(counts))}.", ""] if counts else []
    text += [part for line in text_warnings(counts, max_lost_fraction=limit) for part in (f"**Warning**: {line}.", "")]
    sources = ", ".join(f"`{source}`" for source in config.data.sources)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: fill-mask",
            "tags: [distil_ray]",
            "---",
            "",
            f"# {config.run.name}",
            "",
            f"A {student.config.model_type} masked language model of {student.config.num_hidden_layers} layers and "
            f"{student.num_parameters():,} parameters, {origin} with distil_ray {__version__}.",
            "",
            "## Use",
            "",
            "```python",
            "from transformers import AutoModelForMaskedLM, AutoTokenizer",
            "",
            f'model = AutoModelForMaskedLM.from_pretrained("{location}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{location}")',
            "```",
            "",
            "## Figures",
            "",
            *table,
            "",
            f"Masked tokens of held-out rows of {config.data.max_seq_length} tokens, fixed masks, temperature 1.",
            "",
            "## Training",
            "",
            *text,
            f"{summary['step']:,} steps of {config.optim.global_batch_size:,} rows, {summary['tokens']:,} tokens of "
            f"{sources}. Settings:",
            "",
            "```yaml",
            to_yaml(config).rstrip(),
            "```",
            "",
        ]
    )
