"""How models are compared on tasks: the same for all of them."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from distil_ray.config import ConfigError, Section, load_settings, single_problems
from distil_ray.config.sections import Count, Positive, Probability, Weight
from distil_ray.data.masking import num_masked_positions


class Finetuning(Section):
    """Fine-tuning on a task; the defaults are among those that BERT's authors tried (arXiv 1810.04805)."""

    learning_rate: Positive = 2e-5
    """Peak learning rate, at the end of the warm-up; linear decay to 0 follows."""
    num_epochs: Count = 3
    """Passes over a task's training rows."""
    batch_size: Count = 32
    """Rows in a step."""
    max_seq_length: Annotated[int, Field(ge=8)] = 128
    """Pieces in a row; longer ones are cut."""
    warmup_fraction: Probability = 0.1
    """Share of the steps over which the learning rate rises from 0, linearly."""
    weight_decay: Weight = 0.01
    """AdamW's decay of all weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the matrix products; the weights stay in fp32."""
    max_train_rows: Count | None = None
    """Training rows used, the first ones; null takes all (the paper's way)."""


class Text(Section):
    """Evaluation on text that no model was trained on, by masked language modelling, without fine-tuning."""

    max_seq_length: Annotated[int, Field(ge=8, le=2**15 - 1)] = 128
    """Pieces in a row, the two special ones at its ends included."""
    mlm_probability: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of a row's positions that is masked, special pieces excluded (BERT: 0.15)."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 56
    """Seed of the choice of rows and of the masks."""
    num_rows: Count | None = 1024
    """Rows used, from all over the text; null takes all of it."""
    pseudo_perplexity_rows: Annotated[int, Field(ge=0)] = 16
    """Rows of these for the pseudo-perplexity, each at the cost of as many as it has pieces; 0 leaves it out."""
    batch_size: Count = 32
    """Rows in a forward pass; changes speed and rounding only."""

    @property
    def num_masked(self) -> int:
        """K, masked positions a row."""
        return num_masked_positions(self.max_seq_length, self.mlm_probability)

    @model_validator(mode="after")
    def _check_masks(self) -> Self:
        if not self.num_masked:
            raise ValueError(
                f"given mlm_probability {self.mlm_probability:g} and max_seq_length {self.max_seq_length}, which masks "
                f"nothing; expected at least {1 / (self.max_seq_length - 2):.3g} of a row of that length"
            )
        return self


class Resources(Section):
    """What each fine-tuning, or process that evaluates text, takes of the cluster; as many run at a time as fit."""

    cpus: Count = 1
    """CPU slots and threads."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs; 0.25 lets four share one."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Times that one is begun again after the loss of its process or node."""


class Protocol(Section):
    """The whole protocol of a comparison."""

    finetuning: Finetuning = Finetuning()
    text: Text = Text()
    resources: Resources = Resources()


def load_protocol(files: list[str], overrides: list[str]) -> Protocol:
    """Read a protocol from YAML files and dotted settings, as `load_config` reads a run's.

    Raises:
        InputError: with one line a problem, all problems at once.
    """
    settings = load_settings(files, overrides)
    try:
        return Protocol.model_validate(settings)
    except ValidationError as error:
        raise ConfigError([found.line for found in single_problems(error, settings, Protocol)]) from None
