"""What can be set: the sections of a configuration, their keys, types, limits, defaults, descriptions and rules."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    model_validator,
)

from distil_ray.errors import InputError
from distil_ray.outages import WHILE_TRAINING_SECONDS
from distil_ray.shipped import shipped_path


def shown(value: Any) -> str:
    """Return a value as YAML would have it, on one line and cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"


# --------------------------------------------------------------------------------------------- value types

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of a submitted job


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"given {shown(name)}, expected a name of up to 100 letters, digits, '.', '_' and '-' "
            "that begins with a letter or a digit"
        )
    return name


def _absolute(path: str) -> str:
    """Make a local path absolute, as workers run in another directory; leave a URL as it is."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def output_path(path: str) -> str:
    """Make the path that ``--output`` was given absolute.

    Raises:
        InputError: it is a URL, to which no command with that option can write; or it would be lost.
    """
    if "://" in path:
        raise InputError(
            f"--output: given {shown(path)}, a URL; expected a path on this machine, or of a folder that all nodes "
            "share: give one, and copy what is written there to the URL"
        )
    return _kept(path, "--output: ", "")


def _storage_path(path: str) -> str:
    return _kept(path, "", "a URL such as s3://bucket/prefix, or ")


def _kept(path: str, option: str, others: str) -> str:
    """Make the local path of an output absolute; leave a URL as it is.

    Args:
        option: what the path was given by, if that is not said elsewhere.
        others: what else is expected beside a local path.

    Raises:
        InputError: the path is relative, and the command is a submitted Ray job: those run in a folder that Ray has
            unpacked on one node, and that it removes.
    """
    if "://" not in path and not os.path.isabs(os.path.expanduser(path)) and _JOB_VARIABLE in os.environ:
        raise InputError(
            f"{option}given {shown(path)}, which in a Ray job is in the job's package, which Ray removes; "
            f"expected {others}the absolute path of a folder that all nodes share"
        )
    return _absolute(path)


def _absolute_if_there(path: str) -> str:
    """Make the path of an existing file or folder absolute, also of one in the package; leave a Hub id as it is."""
    return _absolute(path) if os.path.exists(os.path.expanduser(path)) else shipped_path(path) or path


def listed(sources: Any) -> Any:
    """Spell out the short forms of a list of sources: a path, a mapping, a list with paths in it."""
    if isinstance(sources, str | Mapping):
        sources = [sources]
    if not isinstance(sources, list | tuple):
        return sources
    return [{"path": source} if isinstance(source, str) else source for source in sources]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"given {shown(list(names))}, expected each once")
    return names


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
LocalPathOrUrl = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
OutputPathOrUrl = Annotated[str, Field(min_length=1), AfterValidator(_storage_path)]
LocalPathOrHubId = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_there)]


# ------------------------------------------------------------------------------------------------ sections


class Problem(NamedTuple):
    """Settings that are each valid but do not go together.

    Attributes:
        keys: all of them, dotted.
        line: what the user is told.
    """

    keys: tuple[str, ...]
    line: str


def problem(keys: tuple[str, ...], message: str) -> Problem:
    """Return a problem whose line begins with the first of its keys."""
    return Problem(keys, f"{keys[0]}: {message}")


class Section(BaseModel):
    """A frozen group of settings. The text below each field is its description in `--help`.

    A rule for one setting is part of its type; a rule for several is in `problems` of the section that it is about.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def problems(self, config: "Config") -> Iterable[Problem]:
        """Return the settings of this section that do not go together, or not with others of ``config``."""
        return ()


class Run(Section):
    """What the run is called and where its results go."""

    name: Annotated[str, AfterValidator(_file_name)]
    """Name of the run and of its folder; the same name resumes where that run stopped."""
    storage_path: OutputPathOrUrl = Field("runs", validate_default=True)
    """Folder or URL (s3://bucket/prefix, gs://bucket/prefix) that holds the run's folder."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 56
    """Seed of the split, shuffling, masks, dropout and random weights (DistilBERT's authors: 56)."""

    @property
    def folder(self) -> str:
        """Path or URL of the run's folder."""
        return f"{self.storage_path}/{self.name}"


class Teacher(Section):
    """The model to distil; null trains the student alone, by masked language modelling."""

    path: LocalPathOrHubId
    """Local folder or Hub id of a masked language model or a bare encoder, of a type that docs/teacher.md lists."""
    revision: Text | None = None
    """Branch, tag or commit on the Hub; null takes the newest."""
    head: Literal["none"] | None = None
    """none: it has no masked-language-modelling head, or none that is used; then expected distill.alpha_ce 0."""


class Student(Section):
    """The model to train: made from the teacher's layers, or read from `path`, or described by `config`."""

    layers: Count | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Strict(False)] | None = None
    """Teacher layers to copy: how many, evenly spaced, or which, counted from 0; null takes half of them."""
    hidden_size: Count | None = None
    """Width of a student made from the teacher, at most the teacher's; null: as wide. Expected distill.alpha_cos 0 if
    it is narrower; see docs/losses.md for what is kept of the teacher's weights."""
    num_heads: Count | None = None
    """Its heads of attention, at most the teacher's; null: as many as have room at the width of the teacher's."""
    intermediate_size: Count | None = None
    """Its feed-forward width, at most the teacher's; null keeps the teacher's ratio to the hidden width."""
    architecture: Literal["distilbert", "same"] | None = None
    """Class of a student made from the teacher: DistilBERT's, or the same as the teacher's; null takes DistilBERT's for
    a BERT teacher, and the same for any other."""
    init: Literal["teacher", "random"] = "teacher"
    """Weights of a student made from the teacher: copied from it, or drawn at random."""
    head: Literal["new", "none"] | None = None
    """Masked-language-modelling head: null copies the teacher's or keeps that of `path`, which must have one; new makes
    one from the embeddings; none leaves it out, for losses other than ce and mlm, and an encoder is exported."""
    path: LocalPathOrHubId | None = None
    """Local folder or Hub id of an existing student to train on; excludes `config`."""
    config: dict[str, Any] | LocalPathOrHubId | None = None
    """Model to train from random weights: Hugging Face config keys with `model_type`, or the place of a config.json."""
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of its attention probabilities; null keeps that of the teacher, `path` or `config`. On recent GPUs 0 and
    multiples of 1/16 are faster, as cuDNN's attention takes no others. ModernBERT's attention has it after its output,
    too."""
    tokenizer: LocalPathOrHubId | None = None
    """Local folder or Hub id of the tokenizer; null takes the one of the teacher or of `student.path`."""

    def problems(self, config: "Config") -> Iterator[Problem]:
        yield from self._head_problems(config)
        if self.path is not None and self.config is not None:
            yield problem(("student.config", "student.path"), "given beside student.path, expected only one of them")
        if isinstance(self.config, dict) and not isinstance(self.config.get("model_type"), str):
            yield problem(
                ("student.config",), "given a mapping without model_type, expected one such as {model_type: bert}"
            )
        origin = "path" if self.path is not None else "config" if self.config is not None else None
        if config.teacher is None and origin is None:
            yield problem(
                ("student", "teacher", "student.path", "student.config"),
                "given nothing to make it from; without a teacher, expected student.path, "
                "or student.config and student.tokenizer",
            )
        elif config.teacher is None and origin == "config" and self.tokenizer is None:
            yield problem(
                ("student.tokenizer", "teacher", "student.path", "student.config"),
                "missing; expected a local folder or Hub id, as there is no teacher to take a tokenizer from",
            )
        # The weights of a student that is described by its config are random in any case.
        made = ("layers", "hidden_size", "num_heads", "intermediate_size", "architecture")
        unused = {None: (), "path": (*made, "init"), "config": made}
        for name in unused[origin]:
            given = getattr(self, name)
            was_default = (name, given) == ("architecture", "distilbert")  # in configurations of earlier runs
            if given != Student.model_fields[name].default and not was_default:
                yield problem(
                    (f"student.{name}", f"student.{origin}"),
                    f"given {shown(given)}, which applies only to a student made from the teacher's layers; "
                    f"expected no such key beside student.{origin}",
                )

    def _head_problems(self, config: "Config") -> Iterator[Problem]:
        has_none = config.teacher is not None and config.teacher.head == "none"
        if has_none and self.head is None and self.path is None and self.config is None and self.init == "teacher":
            yield problem(
                ("student.head", "teacher.head"),
                "given null, which copies the teacher's, beside teacher.head none; expected new or none",
            )
        if self.head == "new" and self.config is not None:
            yield problem(
                ("student.head", "student.config"),
                "given new, but all of student.config is new; expected null or none",
            )


class Source(Section):
    """Text to read: files by `path`, a Hugging Face Hub data set by `hub`, or `docstrings`."""

    path: LocalPathOrUrl | None = None
    """File, folder or glob, local or as a URL (s3://, gs://, hf://); excludes `hub` and `docstrings`."""
    hub: LocalPathOrHubId | None = None
    """Hub id of a data set, or a local folder laid out like one; excludes `path` and `docstrings`."""
    docstrings: Literal["installed"] | None = None
    """Documentation strings of all packages installed on this machine; excludes `path` and `hub`."""
    name: Text | None = None
    """Configuration (subset) of the Hub data set; null takes its default one."""
    revision: Text | None = None
    """Branch, tag or commit of the Hub data set; null takes the newest."""
    split: Text = "train"
    """Split of the Hub data set; of documentation strings, train or heldout."""
    column: Text = "text"
    """Column (Parquet, Arrow) or JSON key that holds the text."""
    format: Literal["text", "jsonl", "parquet", "arrow"] | None = None
    """Format of the files at `path`; null infers it from their suffixes."""

    def __str__(self) -> str:
        """What stands for the source in a sentence."""
        return self.path or self.hub or f"docstrings: {self.docstrings}"

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        kinds = [name for name in _SELECTORS if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"given {' and '.join(kinds) or 'none of path, hub and docstrings'}, "
                f"expected exactly one of {', '.join(_SELECTORS)}"
            )
        unused = [
            f"{name} {shown(getattr(self, name))}"
            for name in sorted({*chain(*_SELECTORS.values())} - {*_SELECTORS[kinds[0]]})
            if getattr(self, name) != Source.model_fields[name].default
        ]
        if unused:
            raise ValueError(f"given {' and '.join(unused)}, expected no such key beside {kinds[0]}")
        if self.docstrings is not None and self.split not in DOCSTRING_SPLITS:
            raise ValueError(f"given split {shown(self.split)}, expected {' or '.join(DOCSTRING_SPLITS)}")
        return self


# What selects the text of a source, and the keys that go with each.
_SELECTORS = {
    "path": ("column", "format"),
    "hub": ("name", "revision", "split", "column"),
    "docstrings": ("split",),
}
DOCSTRING_SPLITS = ("train", "heldout")


_ListOfSources = Annotated[list[Text | Source], Field(min_length=1)]
Sources = Annotated[
    tuple[Source, ...],
    Field(min_length=1),
    Strict(False),
    BeforeValidator(listed, json_schema_input_type=Text | Source | _ListOfSources),
]


class Data(Section):
    """What is read, and how text becomes masked rows."""

    sources: Sources
    """Training text: a path, a mapping with the keys below, or a list of these."""
    eval_sources: Sources | None = None
    """Held-out text, given like `sources`; null holds out `eval_fraction` of them."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the sources' bytes to hold out; 0 means no evaluation; excludes `eval_sources`."""
    max_seq_length: Annotated[int, Field(ge=8, le=2**15 - 1)] = 512
    """Pieces in a row, the two special ones at its ends included."""
    mlm_probability: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of a row's positions that is masked, special pieces excluded (BERT: 0.15)."""
    mask_replace_prob: Probability = 0.8
    """Share of the masked positions that become [MASK] (BERT: 0.8)."""
    random_replace_prob: Probability = 0.1
    """Share of the masked positions that become a random piece; the rest stays as it is (BERT: 0.1)."""
    mlm_smoothing: Weight = 0.0
    """Masks rare pieces more often, by weights count^-x; 0 masks all alike (DistilBERT: 0.7)."""
    steps_per_block: Count = 1
    """Steps k that share blocks: each takes every k-th row of k batches, so that blocks are larger and fewer."""
    on_bad_file: Literal["error", "skip"] = "error"
    """What to do about a file that is damaged or not what its name says: end the run, or list it and continue."""
    warn_skipped_fraction: Probability = 0.01
    """Share of the documents that cannot be used (not UTF-8, no text under the key, …) above which to warn."""

    def problems(self, config: "Config") -> Iterator[Problem]:
        replaced = self.mask_replace_prob + self.random_replace_prob
        if replaced > 1 + 1e-9:
            yield problem(
                ("data.mask_replace_prob", "data.random_replace_prob"),
                f"given {self.mask_replace_prob:g}, which makes {replaced:g} with "
                f"data.random_replace_prob {self.random_replace_prob:g}; expected a sum of at most 1",
            )
        num_maskable = self.max_seq_length - 2
        if round(self.mlm_probability * num_maskable) < 1:
            yield problem(
                ("data.mlm_probability", "data.max_seq_length"),
                f"given {self.mlm_probability:g}, which masks none of the {num_maskable} positions of a row "
                f"(data.max_seq_length {self.max_seq_length}); expected at least {1 / num_maskable:.3g}",
            )
        if self.eval_sources is not None and "eval_fraction" in self.model_fields_set:
            yield problem(
                ("data.eval_fraction", "data.eval_sources"),
                f"given {self.eval_fraction:g} beside data.eval_sources, expected only one of them",
            )


class Distill(Section):
    """The losses and their weights, which count as shares of their sum."""

    temperature: Positive = 2.0
    """Softening of both distributions in the soft-target loss (DistilBERT: 2)."""
    alpha_ce: Weight = 5.0
    """Weight of the soft-target loss (DistilBERT: 5)."""
    alpha_mlm: Weight = 2.0
    """Weight of the masked-language-modelling loss (DistilBERT: 2)."""
    alpha_cos: Weight = 1.0
    """Weight of the cosine loss between last hidden states (DistilBERT: 1)."""
    alpha_relations: Weight = 0.0
    """Weight of the loss between relations of queries, keys and values in attention (MiniLMv2, arXiv 2012.15828)."""
    alpha_hidden: Weight = 0.0
    """Weight of the loss between hidden states of mapped layers and of the embeddings (TinyBERT, arXiv 1909.10351)."""
    ce_positions: Literal["masked", "all"] = "masked"
    """Positions of the soft-target loss: the masked ones, or all of them (slower)."""
    relation_layer: Annotated[int, Field(ge=0)] | None = None
    """Teacher's layer, from 0, that the student's last one learns its relations from; null: the last. For teachers of
    24 layers, 20 is better (MiniLMv2)."""
    relation_heads: Count | None = None
    """Heads into which relations are split, a divisor of both widths; null: the largest up to 48."""
    hidden_layers: Literal["uniform"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Strict(False)] = "uniform"
    """Teacher's layer, from 0, for each of the student's, in increasing order; uniform: the last of each M-th part."""
    hidden_loss: Literal["mse", "cosine"] = "mse"
    """Distance of hidden states: mean squared error, or 1 - cosine."""

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the losses, scaled to sum to 1."""
        alphas = {name.removeprefix("alpha_"): getattr(self, name) for name in LOSS_WEIGHTS}
        total = sum(alphas.values())
        return {name: alpha / total for name, alpha in alphas.items()}

    def problems(self, config: "Config") -> Iterator[Problem]:
        weights = {f"distill.{name}": getattr(self, name) for name in LOSS_WEIGHTS}
        of_teacher = {key: weight for key, weight in weights.items() if weight > 0 and key != "distill.alpha_mlm"}
        if config.teacher is None and of_teacher:
            first, *others = of_teacher
            given = ", and ".join([f"{of_teacher[first]:g}", *(f"{key} {of_teacher[key]:g}" for key in others)])
            yield problem((*of_teacher, "teacher"), f"given {given}, without a teacher; expected 0, or a teacher.path")
        if not any(weights.values()):
            yield problem(tuple(weights), f"given 0 like {', '.join([*weights][1:])}, expected one of them above 0")
        heads = {"student.head": config.student.head, "teacher.head": config.teacher and config.teacher.head}
        for term, needed in (("ce", ("teacher.head", "student.head")), ("mlm", ("student.head",))):
            lacking = [key for key in needed if heads[key] == "none"]
            if getattr(self, f"alpha_{term}") > 0 and lacking:
                yield problem(
                    (f"distill.alpha_{term}", *lacking),
                    f"given {getattr(self, f'alpha_{term}'):g} beside {lacking[0]} none, but this loss compares what a "
                    "head predicts; expected 0, or a model with a head",
                )
        if self.hidden_layers != "uniform" and any(a >= b for a, b in pairwise(self.hidden_layers)):
            yield problem(
                ("distill.hidden_layers",),
                f"given {shown(self.hidden_layers)}, expected layers of the teacher in increasing order, one for each "
                "of the student's",
            )


LOSS_WEIGHTS = ("alpha_ce", "alpha_mlm", "alpha_cos", "alpha_relations", "alpha_hidden")


class Optim(Section):
    """How the student is updated (AdamW); set exactly one of `num_steps` and `num_epochs`."""

    global_batch_size: Count = 256
    """Rows in a step, over all workers (DistilBERT: up to 4,096)."""
    num_steps: Annotated[int, Field(ge=0)] | None = None
    """Length of the run in steps, over as many epochs as that takes; 0 exports the student as it starts."""
    num_epochs: Count | None = None
    """Length of the run in passes over the training text (DistilBERT: 3)."""
    learning_rate: Positive = 5e-4
    """Peak learning rate, at the end of the warm-up (DistilBERT: 5e-4)."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up; linear and cosine end at 0."""
    warmup_fraction: Probability = 0.05
    """Share of the run over which the learning rate rises from 0, linearly (DistilBERT: 0.05)."""
    betas: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Strict(False)] = (
        0.9,
        0.98,
    )
    """AdamW's decay rates of the first and the second moment (DistilBERT: 0.9 and 0.98)."""
    eps: Positive = 1e-6
    """AdamW's epsilon (DistilBERT: 1e-6)."""
    weight_decay: Weight = 0.0
    """AdamW's decay of weights other than biases and LayerNorms (DistilBERT: 0)."""
    max_grad_norm: Positive = 5.0
    """L2 norm to which the whole gradient is clipped (DistilBERT: 5)."""
    max_skipped_updates: Count = 10
    """Consecutive updates skipped for a gradient norm that is not finite, after which the run ends."""

    def problems(self, config: "Config") -> Iterator[Problem]:
        if (self.num_steps is None) == (self.num_epochs is None):
            given = "neither it nor optim.num_epochs" if self.num_steps is None else "both it and optim.num_epochs"
            yield problem(("optim.num_steps", "optim.num_epochs"), f"given {given}, expected exactly one of them")


class Eval(Section):
    """Evaluation on the held-out text during the run."""

    every_steps: Count = 500
    """Steps between two evaluations."""
    num_rows: Count = 1024
    """Held-out rows used, the same ones each time."""
    relation_loss: bool = False
    """Whether the loss between relations is evaluated even if its weight is 0, for a comparison of runs."""
    hidden_loss: bool = False
    """Whether the loss between hidden states is evaluated even if its weight is 0."""

    def problems(self, config: "Config") -> Iterator[Problem]:
        for name in ("relation_loss", "hidden_loss"):
            if getattr(self, name) and config.teacher is None:
                yield problem(
                    (f"eval.{name}", "teacher"), "given true without a teacher; expected false, or a teacher.path"
                )


class Metrics(Section):
    """Training metrics, in `metrics.jsonl` and where else they are shown."""

    every_steps: Count = 10
    """Steps between two lines of metrics."""
    trackers: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], Strict(False), AfterValidator(_distinct)
    ] = ("tensorboard",)
    """Where metrics are shown, beside `metrics.jsonl`; all but tensorboard need the extra of that name."""


class Checkpoint(Section):
    """Checkpoints, from which an interrupted run resumes."""

    every_steps: Count | None = 500
    """Steps between two checkpoints; null saves by time alone."""
    every_minutes: Positive | None = None
    """Minutes after which another checkpoint is due, whatever the number of steps; null counts steps alone."""
    keep: Count = 2
    """Number of newest checkpoints to keep; with more than 1, a damaged one can be replaced by the one before."""

    def problems(self, config: "Config") -> Iterator[Problem]:
        if self.every_steps is None and self.every_minutes is None:
            yield problem(
                ("checkpoint.every_steps", "checkpoint.every_minutes"),
                "given null, like checkpoint.every_minutes; expected a number for one of them",
            )


# The most in a forward pass that is not given: with more, a processor is no faster. A GPU needs more to be busy.
_CPU_ROWS, _GPU_TOKENS = 32, 32_768


def divisors(number: int) -> list[int]:
    """Return all divisors, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _nearest(value: int, choices: Iterable[int]) -> str:
    """Return the choices just below and just above ``value``, as text."""
    choices = list(choices)
    below = [choice for choice in choices if choice < value][-1:]
    above = [choice for choice in choices if choice > value][:1]
    return " or ".join(map(str, below + above))


class Runtime(Section):
    """What the run computes on, and how fast; none of it changes what is learned."""

    num_workers: Count | Annotated[tuple[Count, Count], Strict(False)] = 1
    """Training workers: a number, or [min, max] to continue with fewer when nodes are lost."""
    use_gpu: bool = False
    """Whether each worker gets a GPU."""
    resources_per_worker: dict[str, Positive] | None = None
    """Ray resources of a worker, such as {CPU: 4}; null leaves it to Ray."""
    micro_batch_size: Count | None = None
    """Rows in a forward pass; null takes the largest divisor of a worker's rows in a step, up to 32 rows, or with
    `use_gpu` up to 32,768 tokens."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products; auto takes bf16 where it is faster than fp32 (fp16 on GPUs without bf16),
    and keeps on resuming what the run began with. The weights stay in fp32."""
    compile: bool = False
    """Whether torch.compile is applied to the models."""
    data_cpus: Count = 2
    """CPU slots for reading, tokenizing and masking, over the whole cluster."""
    data_label: dict[str, str] | None = None
    """Ray label {key: value} of the nodes that read and tokenize; null takes any node."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Failures of workers or nodes after which the run ends; -1 sets no limit."""
    outage_seconds: Weight = WHILE_TRAINING_SECONDS
    """Seconds that storage or a Hub may be out of reach while training before the run saves and ends."""

    @property
    def min_workers(self) -> int:
        """The fewest workers with which the run continues."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers, which is also the number of blocks that a step's rows are cut into."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    def problems(self, config: "Config") -> Iterator[Problem]:
        rows = config.optim.global_batch_size
        workers, micro_batch = self.max_workers, self.micro_batch_size
        if self.min_workers > workers:
            yield problem(
                ("runtime.num_workers",),
                f"given {shown(self.num_workers)}, expected [min, max] with min at most max",
            )
        elif rows % workers:
            yield problem(
                ("optim.global_batch_size", "runtime.num_workers"),
                f"given {rows}, which {workers} workers (runtime.num_workers) cannot share equally; expected "
                f"{_nearest(rows, range(workers, rows + 2 * workers, workers))}, "
                f"or {_nearest(workers, divisors(rows))} workers",
            )
        elif micro_batch is not None and config.block_rows % micro_batch:
            yield problem(
                ("runtime.micro_batch_size", "optim.global_batch_size", "runtime.num_workers"),
                f"given {micro_batch}, which does not divide a worker's {config.block_rows} rows "
                f"(optim.global_batch_size {rows} over {workers} workers); expected "
                f"{_nearest(micro_batch, divisors(config.block_rows))}",
            )


class Config(Section):
    """The whole configuration of a run, as `parse_config` makes it."""

    run: Run
    teacher: Teacher | None = None
    student: Student = Student()
    data: Data
    distill: Distill = Distill()
    optim: Optim
    eval: Eval = Eval()
    metrics: Metrics = Metrics()
    checkpoint: Checkpoint = Checkpoint()
    runtime: Runtime = Runtime()

    @property
    def block_rows(self) -> int:
        """Rows of a step in a block: one worker's part when all `runtime.max_workers` are there."""
        return self.optim.global_batch_size // self.runtime.max_workers

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, over all workers."""
        return self.optim.global_batch_size * self.data.max_seq_length

    @property
    def micro_batch_size(self) -> int:
        """Rows in a forward pass, chosen if `runtime.micro_batch_size` leaves it open."""
        max_rows = max(1, _GPU_TOKENS // self.data.max_seq_length) if self.runtime.use_gpu else _CPU_ROWS
        return self.runtime.micro_batch_size or max(d for d in divisors(self.block_rows) if d <= max_rows)
