"""The protocol of a comparison: how models are evaluated, the same way for all of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, Strict, model_validator

from distil_ray.config import Given, Section, load_settings, parse_section, shown
from distil_ray.config.sections import Count, LocalPathOrHubId, Positive, Probability, Text, Weight
from distil_ray.data.masking import num_masked_positions

if TYPE_CHECKING:  # transformers comes with it
    from distil_ray.evaluation.models import Model

Kind = Literal["classification", "regression", "span", "tokens", "similarity"]
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "exact_match", "precision", "recall"]
METRICS_OF: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman"),
    "span": ("exact_match", "f1"),
    "tokens": ("f1", "precision", "recall"),
    "similarity": ("pearson", "spearman"),
}


class Finetuning(Section):
    """Fine-tuning on a task; the defaults are among those that BERT's authors tried (arXiv 1810.04805)."""

    learning_rate: Positive | Annotated[tuple[Positive, ...], Field(min_length=1), Strict(False)] = 2e-5
    """Peak learning rate, at the end of the warm-up; linear decay to 0 follows. Of several, each model takes on each
    task the one that does best on a tenth of the training rows, which is set aside for these trials."""
    num_epochs: Count = 3
    """Passes over a task's training rows."""
    batch_size: Count = 32
    """Rows in a step."""
    max_seq_length: Annotated[int, Field(ge=8)] = 128
    """Pieces in a row; longer rows are cut, contexts of span tasks into windows."""
    warmup_fraction: Probability = 0.1
    """Share of the steps over which the learning rate rises from 0, linearly."""
    weight_decay: Weight = 0.01
    """AdamW's decay of weights other than biases and LayerNorms."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products, see `runtime.precision` of training. It changes rounding only, so that
    results in different ones are compared."""
    max_train_rows: Count | None = None
    """Training rows used, the same random ones each time, with the classes in their proportions; null: all."""
    early_stopping_patience: Count | None = None
    """Epochs without a better validation score after which training ends and returns to the best; null: all epochs.
    The score is then the highest of several, which favors all models alike."""

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rate, or those to choose from."""
        return self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)


class SecondStep(Section):
    """Distillation during fine-tuning (the paper's section 4.2), with `--second-step`."""

    temperature: Positive = 2.0
    """Softening of both distributions in the soft-target loss; unused for tasks that ask for a number."""
    alpha: Probability = 0.5
    """Weight of the fine-tuned teacher's soft targets; the labels have the rest."""


class OwnTask(Section):
    """A task in addition to GLUE's: text and labels from files, or from a data set of the Hub."""

    kind: Kind = "classification"
    """What is asked for: a class, a number, a span of the context (SQuAD's layout, 1.1 or 2.0), a tag of each word
    (tokens: named entities in IOB2, IOBES or IO), or, without fine-tuning, that the cosine of two texts' vectors goes
    with a number (similarity)."""
    hub: LocalPathOrHubId | None = None
    """Id of a data set of the Hub, or a local folder laid out like one; null: `train` and `validation` are files."""
    name: Text | None = None
    """Configuration (subset) of the Hub data set."""
    train: Text = "train"
    """Split of the Hub data set; or a file or glob: Parquet, CSV, TSV or JSON lines; for tokens also text in CoNLL's
    columns, the tag last, with a blank line between sentences. Similarity has none."""
    validation: Text = "validation"
    """What models are scored on, given like `train`."""
    text: Annotated[tuple[Text, ...], Field(min_length=1, max_length=2), Strict(False)] | None = None
    """Columns of the text or the two texts; null: text, or question and context, tokens, or sentence1 and sentence2."""
    label: Text | None = None
    """Column of the class, number, answers or tags; null: label, or answers, ner_tags, or score."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1), Strict(False)] | None = None
    """What the score is the mean of; null: accuracy, both correlations, exact match and F1, or the F1 of entities."""
    pooling: Literal["mean", "cls"] | None = None
    """How similarity makes a text's vector of the last hidden states: mean or cls (the first); null: as a
    SentenceTransformers model's folder says, the mean for others."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_tuned = self.kind != "similarity"
        files = ("train", "validation") if is_tuned else ("validation",)
        if self.hub is None and (idle := [key for key in files if key not in self.model_fields_set]):
            raise ValueError(f"given no hub and no {' and no '.join(idle)}, expected a Hub data set, or both as files")
        if self.hub is None and self.name is not None:
            raise ValueError(f"given name {shown(self.name)} without hub, expected no name for files")
        if not is_tuned and "train" in self.model_fields_set:
            raise ValueError(f"given train {shown(self.train)}, expected none: similarity is scored without training")
        if self.pooling is not None and is_tuned:
            raise ValueError(f"given pooling {shown(self.pooling)}, which only similarity has, expected none")
        columns = {"span": "question and context", "similarity": "two texts", "tokens": "words, one column"}
        if self.text is not None and self.kind in columns and len(self.text) != (1 if self.kind == "tokens" else 2):
            raise ValueError(f"given text {shown(self.text)}, expected the columns of {columns[self.kind]}")
        allowed = METRICS_OF[self.kind]
        if wrong := [name for name in self.metrics or () if name not in allowed]:
            raise ValueError(f"given metrics {shown(wrong)}, expected some of {', '.join(allowed)} for {self.kind}")
        return self


class HeldOutText(Section):
    """Evaluation by masked language modeling on text that no model was trained on, without fine-tuning."""

    max_seq_length: Annotated[int, Field(ge=8, le=2**15 - 1)] = 128
    """Pieces in a row, the two special ones at its ends included."""
    mlm_probability: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of a row's positions that are masked, special pieces excluded (BERT: 0.15)."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 56
    """Seed of the choice of rows and of the masks."""
    num_rows: Count | None = 1024
    """Rows used, from all over the text; null: all of it."""
    pseudo_perplexity_rows: Annotated[int, Field(ge=0)] = 16
    """Of these, rows for the pseudo-perplexity, each of which costs one row per piece; 0: none."""
    batch_size: Count = 32
    """Rows in a forward pass; changes speed and rounding only."""

    @property
    def num_masked(self) -> int:
        """K, masked positions per row."""
        return num_masked_positions(self.max_seq_length, self.mlm_probability)

    @model_validator(mode="after")
    def _check_masks(self) -> Self:
        if not self.num_masked:
            raise ValueError(
                f"given mlm_probability {self.mlm_probability:g} and max_seq_length {self.max_seq_length}, which masks "
                f"nothing; expected at least {1 / (self.max_seq_length - 2):.3g} of a row of that length"
            )
        return self


_GPU_SHARES = {30_000_000: 0.125, 150_000_000: 0.25, 400_000_000: 0.5}  # by the largest number of parameters


class Resources(Section):
    """What each fine-tuning, or process that evaluates text, takes of the cluster; as many run as fit."""

    cpus: Count = 1
    """CPU slots and threads."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    """GPUs; 0.25 lets four share one, auto as many as a model of that size leaves room for."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """How often one is started again after its process or node was lost."""

    def gpus_for(self, models: Iterable["Model"]) -> float:
        """GPUs for models that are there together. Small ones are bound by launches: several run side by side."""
        if self.gpus != "auto":
            return self.gpus
        num_parameters = sum(model.num_parameters for model in models)  # for which they are loaded
        return next((share for limit, share in _GPU_SHARES.items() if num_parameters <= limit), 1.0)

    def num_fitting(self, node: Mapping[str, float], gpus: float) -> int:
        """How many of them, of so many GPUs each, fit on a node with these Ray resources."""
        by_cpus = node.get("CPU", 0.0) // self.cpus
        by_gpus = node.get("GPU", 0.0) // gpus if gpus else math.inf
        return int(min(by_cpus, by_gpus))


class Protocol(Section):
    """The whole protocol of a comparison."""

    finetuning: Finetuning = Finetuning()
    second_step: SecondStep = SecondStep()
    text: HeldOutText = HeldOutText()
    resources: Resources = Resources()
    tasks: dict[str, OwnTask] = Field({}, description="Tasks in addition to GLUE's: {name: {keys of a task}}.")
    finetuning_of: dict[str, Finetuning] = Field(
        {},
        description="Values of `finetuning`'s keys for single tasks: {name: {keys}}; other keys are inherited.",
    )

    def finetuning_on(self, task: str) -> Finetuning:
        """The fine-tuning settings of a task."""
        return self.finetuning_of.get(task, self.finetuning)


def load_protocol(files: Sequence[Given], overrides: Sequence[str] = ()) -> Protocol:
    """Read a protocol from YAML files and dotted settings, like `load_config`.

    Raises:
        InputError: with one line per problem, all problems at once.
    """
    settings = load_settings(files, overrides)
    settings["finetuning_of"] = _inheriting(settings.get("finetuning_of", {}), settings.get("finetuning", {}))
    return parse_section(Protocol, settings)


def _inheriting(special: Any, general: Any) -> Any:
    """Settings by task: its own keys, and the general ones for the others."""
    if not isinstance(special, dict) or not isinstance(general, dict):
        return special
    return {task: {**general, **keys} if isinstance(keys, dict) else keys for task, keys in special.items()}
