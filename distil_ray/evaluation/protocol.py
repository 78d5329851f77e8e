"""How models are compared on tasks: the same for all of them."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from distil_ray.config import ConfigError, Section, load_settings, single_problems
from distil_ray.config.sections import Count, Positive, Probability, Weight


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


class Resources(Section):
    """What each fine-tuning takes of the cluster; as many run at a time as fit."""

    cpus: Count = 1
    """CPU slots and threads."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs; 0.25 lets four share one."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """Times that one is begun again after the loss of its process or node."""


class Protocol(Section):
    """The whole protocol of a comparison."""

    finetuning: Finetuning = Finetuning()
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
