"""The configuration of a run: what can be set, how it is read, and which settings decide what is learned.

A configuration comes from YAML files and then from dotted `section.key=value` settings, later ones winning
(`load_config`), or from a plain mapping (`parse_config`). Either way all problems are reported at once, in
one `InputError` with one line a problem. What comes out is frozen and complete; nothing rewrites it later.

This module imports neither torch nor Ray, so that `--help` and a mistyped key answer at once.
"""

import copy
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distil_ray.errors import InputError

# --------------------------------------------------------------------------------------------- value types


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"given {_shown(name)}, expected a name of up to 100 letters, digits, '.', '_' and '-' "
            "that begins with a letter or a digit"
        )
    return name


def _absolute(path: str) -> str:
    """Make a local path absolute; leave a URL as it is. (Workers run in another directory.)"""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_if_there(path: str) -> str:
    """Make the path of an existing local file or folder absolute; leave a Hub id as it is."""
    return _absolute(path) if os.path.exists(os.path.expanduser(path)) else path


def _listed(sources: Any) -> Any:
    """Spell out the short forms of a list of sources: a path, a mapping, a list with paths in it."""
    if isinstance(sources, str | Mapping):
        sources = [sources]
    if not isinstance(sources, list | tuple):
        return sources
    return [{"path": source} if isinstance(source, str) else source for source in sources]


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
LocalPathOrUrl = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
LocalPathOrHubId = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_there)]


# ------------------------------------------------------------------------------------------------ sections


class Section(BaseModel):
    """A frozen group of settings. The text below each field is its description in `--help`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Run(Section):
    """What the run is called and where its results go."""

    name: Annotated[str, AfterValidator(_file_name)]
    """Name of the run and of its folder; the same name goes on where that run stopped."""
    storage_path: LocalPathOrUrl = Field("runs", validate_default=True)
    """Folder or URL (s3://bucket/prefix, gs://bucket/prefix) below which the run's folder lies."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 56
    """Seed of the split, shuffling, masks, dropout and random weights (DistilBERT's authors: 56)."""


class Teacher(Section):
    """The model to distil; null trains the student alone, by masked language modelling."""

    path: LocalPathOrHubId
    """Local folder or Hub id of a BERT, DistilBERT, RoBERTa or XLM-R masked language model."""
    revision: Text | None = None
    """Branch, tag or commit on the Hub; null takes the newest."""


class Student(Section):
    """The model to train: made from the teacher's layers, or read from `path`, or described by `config`."""

    layers: Count | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Strict(False)] | None = None
    """Teacher layers to copy: how many, evenly spaced, or which, counted from 0; null takes half of them."""
    architecture: Literal["distilbert", "same"] = "distilbert"
    """Class of a student made from the teacher: DistilBERT's, or the same as the teacher's."""
    init: Literal["teacher", "random"] = "teacher"
    """Weights of a student made from the teacher: copied from it, or drawn at random."""
    path: LocalPathOrHubId | None = None
    """Local folder or Hub id of an existing student to train on; excludes `config`."""
    config: dict[str, Any] | LocalPathOrHubId | None = None
    """Model to train from random weights: Hugging Face config keys with `model_type`, or where they lie."""
    tokenizer: LocalPathOrHubId | None = None
    """Local folder or Hub id of the tokenizer; null takes the one of the teacher or of `student.path`."""


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
    """Parquet column or JSON key that holds the text."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        kinds = [name for name in _SELECTORS if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"given {' and '.join(kinds) or 'none of path, hub and docstrings'}, "
                f"expected exactly one of {', '.join(_SELECTORS)}"
            )
        idle = [
            f"{name} {_shown(getattr(self, name))}"
            for name in {name for names in _SELECTORS.values() for name in names} - {*_SELECTORS[kinds[0]]}
            if getattr(self, name) != Source.model_fields[name].default
        ]
        if idle:
            raise ValueError(f"given {' and '.join(sorted(idle))}, expected no such key beside {kinds[0]}")
        if self.docstrings is not None and self.split not in DOCSTRING_SPLITS:
            raise ValueError(f"given split {_shown(self.split)}, expected {' or '.join(DOCSTRING_SPLITS)}")
        return self


# What selects the text of a source, and the keys that go with each.
_SELECTORS = {
    "path": ("column",),
    "hub": ("name", "revision", "split", "column"),
    "docstrings": ("split",),
}
DOCSTRING_SPLITS = ("train", "heldout")


Sources = Annotated[tuple[Source, ...], Field(min_length=1), Strict(False), BeforeValidator(_listed)]


class Data(Section):
    """What is read, and how text becomes masked rows."""

    sources: Sources
    """Training text: a path, a mapping with the keys below, or a list of these."""
    eval_sources: Sources | None = None
    """Held-out text, given like `sources`; null holds out `eval_fraction` of them."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the sources' bytes to hold out; 0 goes without evaluation; excludes `eval_sources`."""
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
    on_bad_file: Literal["error", "skip"] = "error"
    """What to do about a file that cannot be read as what it is: end the run, or list it and go on."""


class Distill(Section):
    """The three losses (DistilBERT, arXiv 1910.01108, section 3) and their weights."""

    temperature: Positive = 2.0
    """Softening of both distributions in the soft-target loss (DistilBERT: 2)."""
    alpha_ce: Weight = 5.0
    """Weight of the soft-target loss; weights count as shares of their sum (DistilBERT: 5)."""
    alpha_mlm: Weight = 2.0
    """Weight of the masked-language-modelling loss (DistilBERT: 2)."""
    alpha_cos: Weight = 1.0
    """Weight of the cosine loss between last hidden states (DistilBERT: 1)."""
    ce_positions: Literal["masked", "all"] = "masked"
    """Positions of the soft-target loss: the masked ones, or all of them (slower)."""

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the losses, scaled to sum to 1."""
        alphas = {"ce": self.alpha_ce, "mlm": self.alpha_mlm, "cos": self.alpha_cos}
        total = sum(alphas.values())
        return {name: alpha / total for name, alpha in alphas.items()}


class Optim(Section):
    """How the student is updated (AdamW); set exactly one of `num_steps` and `num_epochs`."""

    global_batch_size: Count = 256
    """Rows in a step, over all workers (DistilBERT: up to 4,096)."""
    num_steps: Count | None = None
    """Length of the run in steps, over as many epochs as that takes."""
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
    """Updates in a row skipped for a gradient norm that is not finite, after which the run ends."""


class Eval(Section):
    """Evaluation on the held-out text during the run."""

    every_steps: Count = 500
    """Steps between two evaluations."""
    num_rows: Count = 1024
    """Held-out rows used, the same ones each time."""


class Metrics(Section):
    """Training metrics, in `metrics.jsonl` and TensorBoard."""

    every_steps: Count = 10
    """Steps between two lines of metrics."""


class Checkpoint(Section):
    """Checkpoints, from which an interrupted run goes on."""

    every_steps: Count = 500
    """Steps between two checkpoints."""
    keep: Count = 2
    """Newest checkpoints that are kept; with more than 1, a damaged one can be replaced by the one before."""


class Runtime(Section):
    """On what the run computes and how fast; nothing in here changes what is learned."""

    num_workers: Count | Annotated[tuple[Count, Count], Strict(False)] = 1
    """Training workers: a number, or [min, max] to go on with fewer when nodes are lost."""
    use_gpu: bool = False
    """Whether each worker gets a GPU."""
    resources_per_worker: dict[str, Positive] | None = None
    """Ray resources of a worker, such as {CPU: 4}; null leaves it to Ray."""
    micro_batch_size: Count | None = None
    """Rows in a forward pass; null takes the largest divisor of a worker's rows in a step, up to 32."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the matrix products; the weights stay in fp32."""
    compile: bool = False
    """Whether torch.compile is applied to the models."""
    data_cpus: Count = 2
    """CPU slots for reading, tokenizing and masking, over the whole cluster."""
    data_label: dict[str, str] | None = None
    """Ray label {key: value} of the nodes that read and tokenize; null takes any node."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Failures of workers or nodes after which the run ends; -1 sets no limit."""

    @property
    def min_workers(self) -> int:
        """The fewest workers with which the run goes on."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers, which is also the number of blocks into which a step's rows are cut."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class Config(Section):
    """The whole configuration of a run, checked and complete."""

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
        """Rows in a block: one worker's part of a step when all `runtime.max_workers` are there."""
        return self.optim.global_batch_size // self.runtime.max_workers

    @property
    def micro_batch_size(self) -> int:
        """Rows in a forward pass, chosen if `runtime.micro_batch_size` leaves it open."""
        return self.runtime.micro_batch_size or max(d for d in _divisors(self.block_rows) if d <= 32)

    @model_validator(mode="after")
    def _check_across(self) -> Self:
        problems = [
            *_data_problems(self.data),
            *_student_problems(self),
            *_distill_problems(self),
            *_optim_problems(self.optim),
            *_runtime_problems(self),
        ]
        if problems:
            raise _Inconsistent(problems)
        return self


# ------------------------------------------------------------------------------ checks across settings


class _Problem(NamedTuple):
    keys: tuple[str, ...]  # the settings at fault
    line: str


def _problem(keys: tuple[str, ...], message: str) -> _Problem:
    return _Problem(keys, f"{keys[0]}: {message}")


class _Inconsistent(ValueError):
    """Settings that are valid each by itself and do not go together."""

    def __init__(self, problems: Sequence[_Problem]) -> None:
        super().__init__("; ".join(problem.line for problem in problems))
        self.problems = tuple(problems)


def _data_problems(data: Data) -> Iterator[_Problem]:
    replaced = data.mask_replace_prob + data.random_replace_prob
    if replaced > 1 + 1e-9:
        yield _problem(
            ("data.mask_replace_prob", "data.random_replace_prob"),
            f"given {data.mask_replace_prob:g}, which makes {replaced:g} with "
            f"data.random_replace_prob {data.random_replace_prob:g}; expected a sum of at most 1",
        )
    num_maskable = data.max_seq_length - 2
    if round(data.mlm_probability * num_maskable) < 1:
        yield _problem(
            ("data.mlm_probability", "data.max_seq_length"),
            f"given {data.mlm_probability:g}, which masks none of the {num_maskable} positions of a row "
            f"(data.max_seq_length {data.max_seq_length}); expected at least {1 / num_maskable:.3g}",
        )
    if data.eval_sources is not None and "eval_fraction" in data.model_fields_set:
        yield _problem(
            ("data.eval_fraction", "data.eval_sources"),
            f"given {data.eval_fraction:g} beside data.eval_sources, expected only one of them",
        )


def _student_problems(config: Config) -> Iterator[_Problem]:
    student = config.student
    if student.path is not None and student.config is not None:
        yield _problem(("student.config", "student.path"), "given beside student.path, expected only one of them")
    if isinstance(student.config, dict) and not isinstance(student.config.get("model_type"), str):
        yield _problem(
            ("student.config",), "given a mapping without model_type, expected one such as {model_type: bert}"
        )
    made_from_teacher = student.path is None and student.config is None
    if config.teacher is None and made_from_teacher:
        yield _problem(
            ("student", "teacher", "student.path", "student.config"),
            "given nothing to make it from; without a teacher, expected student.path, "
            "or student.config and student.tokenizer",
        )
    elif config.teacher is None and student.path is None and student.tokenizer is None:
        yield _problem(
            ("student.tokenizer", "teacher", "student.path", "student.config"),
            "missing; expected a local folder or Hub id, as there is no teacher to take a tokenizer from",
        )
    idle = () if made_from_teacher else ("layers", "architecture", "init")
    for name in idle:
        given = getattr(student, name)
        if given == Student.model_fields[name].default or (name == "init" and student.path is None):
            continue  # weights of a student that is described by its config are random in any case
        origin = "student.path" if student.path is not None else "student.config"
        yield _problem(
            (f"student.{name}", origin),
            f"given {_shown(given)}, which applies only to a student made from the teacher's layers; "
            f"expected no such key beside {origin}",
        )


def _distill_problems(config: Config) -> Iterator[_Problem]:
    distill = config.distill
    alphas = ("distill.alpha_ce", "distill.alpha_mlm", "distill.alpha_cos")
    if config.teacher is None and (distill.alpha_ce > 0 or distill.alpha_cos > 0):
        yield _problem(
            (alphas[0], alphas[2], "teacher"),
            f"given {distill.alpha_ce:g}, and distill.alpha_cos {distill.alpha_cos:g}, without a teacher; "
            "expected both set to 0, or a teacher.path",
        )
    if distill.alpha_ce == distill.alpha_mlm == distill.alpha_cos == 0:
        yield _problem(
            alphas, "given 0 like distill.alpha_mlm and distill.alpha_cos, expected one of the three above 0"
        )


def _optim_problems(optim: Optim) -> Iterator[_Problem]:
    if (optim.num_steps is None) == (optim.num_epochs is None):
        given = "neither it nor optim.num_epochs" if optim.num_steps is None else "both it and optim.num_epochs"
        yield _problem(("optim.num_steps", "optim.num_epochs"), f"given {given}, expected exactly one of them")


def _runtime_problems(config: Config) -> Iterator[_Problem]:
    runtime, rows = config.runtime, config.optim.global_batch_size
    workers = runtime.max_workers
    if runtime.min_workers > workers:
        yield _problem(
            ("runtime.num_workers",),
            f"given {_shown(runtime.num_workers)}, expected [min, max] with min at most max",
        )
    elif rows % workers:
        yield _problem(
            ("optim.global_batch_size", "runtime.num_workers"),
            f"given {rows}, which {workers} workers (runtime.num_workers) cannot share equally; expected "
            f"{_nearest(rows, range(workers, rows + 2 * workers, workers))}, "
            f"or {_nearest(workers, _divisors(rows))} workers",
        )
    elif runtime.micro_batch_size is not None and config.block_rows % runtime.micro_batch_size:
        yield _problem(
            ("runtime.micro_batch_size", "optim.global_batch_size", "runtime.num_workers"),
            f"given {runtime.micro_batch_size}, which does not divide a worker's {config.block_rows} rows "
            f"(optim.global_batch_size {rows} over {workers} workers); expected "
            f"{_nearest(runtime.micro_batch_size, _divisors(config.block_rows))}",
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _nearest(value: int, choices: Iterable[int]) -> str:
    """Return the choices just below and just above ``value``, as text."""
    choices = list(choices)
    below = [choice for choice in choices if choice < value][-1:]
    above = [choice for choice in choices if choice > value][:1]
    return " or ".join(map(str, below + above))


# ------------------------------------------------------------------------------------------------- reading


def load_config(files: Sequence[str], overrides: Sequence[str]) -> Config:
    """Read a configuration from YAML files and dotted settings.

    Args:
        files: paths of YAML files. Mappings of later files are merged into those of earlier ones, key by key;
            anything else that a later file gives replaces what was there.
        overrides: settings such as ``optim.learning_rate=1e-4``. Each counts like one more file with that one
            line; a value that is not YAML, such as ``*.parquet``, is taken as text.

    Raises:
        InputError: with one line a problem, all problems at once.
    """
    settings: dict[str, Any] = {}
    problems: list[str] = []
    readers = [(_read_file, file) for file in files] + [(_read_override, override) for override in overrides]
    for read, given in readers:
        try:
            _merge(settings, read(given))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise _report(problems)
    return parse_config(settings)


def parse_yaml(text: str, name: str) -> Config:
    """Check a configuration given as the text of one YAML file, which messages call ``name``.

    Raises:
        InputError: with one line a problem, all problems at once.
    """
    return parse_config(_parse_mapping(text, name))


def parse_sources(given: Sequence[str]) -> tuple[Source, ...]:
    """Read sources as a command line gives them: paths, or YAML mappings like ``{docstrings: installed}``.

    Raises:
        InputError: with one line a problem.
    """
    sources, problems = [], []
    for text in given:
        try:
            value = yaml.load(text, _Loader) if text.lstrip().startswith("{") else {"path": text}
            sources.append(Source.model_validate(value))
        except yaml.YAMLError as error:
            problems.append(f"{text}{_yaml_fault(error)}")
        except ValidationError as error:
            problems += [
                f"{text}: {'.'.join(map(str, detail['loc']))} {detail['msg']}".replace(": Value error,", ":")
                for detail in error.errors(include_url=False)
            ]
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} problem(s) with the sources:", *problems]))
    return tuple(sources)


def parse_config(settings: Mapping[str, Any]) -> Config:
    """Check a configuration given as a mapping of sections, and complete it with the defaults.

    Raises:
        InputError: with one line a problem, all problems at once.
    """
    # A section that stands there empty reads as null and means its defaults.
    given: dict[str, Any] = {section: {} for section in _SECTIONS if section != "teacher"}
    given |= {key: value for key, value in settings.items() if value is not None or key not in given}
    try:
        return Config.model_validate(given)
    except ValidationError as error:
        problems = _across_problems(error)
        if not problems:
            problems = _single_problems(error, given)
            problems += _problems_of_the_rest(given, problems)
    raise _report([problem.line for problem in problems])


_SECTIONS = tuple(Config.model_fields)
_LISTS_OF_SOURCES = ("data.sources", "data.eval_sources")
_STAND_INS = {"run.name": "x", "teacher.path": "x", "data.sources": "x"}  # for what must be there

# YAML 1.2's floats: YAML 1.1, which PyYAML reads, takes 5e-4 for text.
_FLOAT_TAG, _TIMESTAMP_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_FLOAT = re.compile(
    r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Reads floats like YAML 1.2 and dates as text, and refuses a mapping that has a key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way to set a loader up)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT_TAG, _TIMESTAMP_TAG)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(name or id(key))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would read as a float."""


for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))


def _read_file(file: str) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}), expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start}), expected a YAML file") from None
    return _parse_mapping(text, file)


def _parse_mapping(text: str, name: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{name}{_yaml_fault(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{name}: given {_shown(content)}, expected a mapping of sections ({', '.join(_SECTIONS)})")
    return content


def _read_override(override: str) -> dict[str, Any]:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"{override}: expected section.key=value, such as optim.learning_rate=1e-4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise InputError(f"{override}{_yaml_fault(error)}") from None
    except yaml.YAMLError:
        value = text
    for key in reversed(keys):
        value = {key: value}
    settings: dict[str, Any] = value
    return settings


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Return where the fault is and what it is, to stand behind the name of what was read."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f", line {error.problem_mark.line + 1}: {error.problem}"
    return f": {' '.join(str(error).split())}"


def _merge(into: dict[str, Any], settings: Mapping[str, Any], prefix: str = "") -> None:
    """Merge ``settings`` into ``into``: mappings key by key, the rest by replacing what was there."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict) and name not in _LISTS_OF_SOURCES:
            _merge(into[key], value, f"{name}.")
        elif not (value is None and name in _SECTIONS and name != "teacher"):
            into[key] = copy.deepcopy(value)


# --------------------------------------------------------------------------------------- reporting problems


def _report(problems: Sequence[str]) -> InputError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InputError("\n  ".join([f"the configuration has {count}:", *problems]))


def _across_problems(error: ValidationError) -> list[_Problem]:
    """Return what `Config` found across settings; nothing if some setting is at fault by itself."""
    causes = [detail.get("ctx", {}).get("error") for detail in error.errors(include_url=False)]
    return [problem for cause in causes if isinstance(cause, _Inconsistent) for problem in cause.problems]


def _single_problems(error: ValidationError, given: Mapping[str, Any]) -> list[_Problem]:
    """Put pydantic's findings in the words of the configuration, one problem a setting."""
    found: dict[str, _Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _field_problem(detail, given)
        found.setdefault(problem.keys[0], problem)  # a union reports each of its members
    # A list whose items are faulty is also reported as too short.
    lists = {key.partition("[")[0] for key in found if "[" in key}
    return [problem for key, problem in found.items() if key not in lists]


def _problems_of_the_rest(given: Mapping[str, Any], problems: Sequence[_Problem]) -> list[_Problem]:
    """Look across the settings that are not at fault: pydantic does so only if each is valid by itself."""
    at_fault = [key for problem in problems for key in problem.keys]
    try:
        Config.model_validate(_without(given, at_fault))
    except ValidationError as error:
        return [
            problem
            for problem in _across_problems(error)
            if not any(_touches(key, fault) for key in problem.keys for fault in at_fault)
        ]
    return []


def _field_problem(detail: ErrorDetails, given: Mapping[str, Any]) -> _Problem:
    location = detail["loc"]
    if detail["type"] == "invalid_key":  # a number, for example
        location = (*location[:-1], str(location[-1]))
    section: type[Section] = Config
    key, expected, description = "", "mapping", None
    value: Any = given
    for part in location:
        if isinstance(part, int):
            key, value, expected = f"{key}[{part}]", _listed(value)[part], _type_text(section)
            continue
        if part not in section.model_fields:
            return _unknown_key(key, part, section)
        field = section.model_fields[part]
        key, value = f"{key}.{part}" if key else part, value.get(part)
        expected, description = _type_text(field.annotation, field.metadata), field.description
        nested = _section_of(field.annotation)
        if nested is None:
            break  # what follows tells the members of a union and the items of a list apart
        section = nested
    if detail["type"] == "value_error":
        return _problem((key,), str(detail["ctx"]["error"]))
    if detail["type"] == "missing":
        return _problem((key,), f"missing, expected {expected}. {description}")
    hint = " (put it in quotes)" if isinstance(value, int | float) and "text" in expected else ""
    return _problem((key,), f"given {_shown(value)}, expected {expected}{hint}")


def _unknown_key(prefix: str, name: str, section: type[Section]) -> _Problem:
    """Name the valid key of the most similar spelling: of the same section if there is one, else of any."""
    key = f"{prefix}.{name}" if prefix else name
    siblings = {sibling: f"{prefix}.{sibling}" if prefix else sibling for sibling in section.model_fields}
    others = {other.rpartition(".")[2]: other for other, _ in _fields()}
    for candidates in (siblings, others):
        for nearest in difflib.get_close_matches(name, candidates, n=1):
            suggestion = candidates[nearest]
            return _Problem((key, suggestion), f"unknown key {key}, did you mean {suggestion}?")
    return _Problem((key,), f"unknown key {key}, expected one of {', '.join(siblings.values())}")


def _without(given: Mapping[str, Any], at_fault: Sequence[str]) -> dict[str, Any]:
    """Return the settings without those at fault, with stand-ins for those that must be there."""
    settings = {section: dict(keys) if isinstance(keys, Mapping) else keys for section, keys in given.items()}
    for key in at_fault:
        section, _, name = key.partition(".")
        name = re.split(r"[.\[]", name)[0]
        if isinstance(settings.get(section), dict) and name:
            settings[section].pop(name, None)
        else:
            settings.pop(section, None)
    for key, stand_in in _STAND_INS.items():
        section, _, name = key.partition(".")
        if section != "teacher" or settings.get(section) is not None:
            settings.setdefault(section, {}).setdefault(name, stand_in)
    settings.setdefault("optim", {})
    return settings


def _touches(key: str, fault: str) -> bool:
    return key == fault or key.startswith((f"{fault}.", f"{fault}["))


# ------------------------------------------------------------------------------------- describing and showing


def describe_keys() -> str:
    """Return every key with its type, default and description, as text for ``--help``."""
    lines = []
    section = ""
    for key, field in _fields():
        name, _, rest = key.partition(".")
        if name != section:
            section = name
            lines += [
                "",
                f"{section}: {(_section_of(Config.model_fields[section].annotation) or Config).__doc__}",
            ]
        default = "required" if field.is_required() else f"default {_shown(_plain(field.default))}"
        lines += [
            f"  {section}.{rest}  ({_type_text(field.annotation, field.metadata)}; {default})",
            f"      {field.description}",
        ]
    return "\n".join(lines[1:])


def _fields(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key and its field; those of a source once, below `data.sources`."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        nested = _section_of(field.annotation)
        if section is not Config:
            yield key, field
        if nested is not None and key != "data.eval_sources":
            yield from _fields(nested, f"{key}[]." if nested is Source else f"{key}.")


def _section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a type is, or that it holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)


def _type_text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Put a type and its limits in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return ", or ".join(_type_text(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(arguments)
    limits = list(_limits(metadata))
    if origin is tuple and arguments[-1] is Ellipsis:
        return " ".join([*limits, f"list of ({_type_text(arguments[0])})"])
    if origin is tuple:
        return f"[{', '.join(_type_text(argument) for argument in arguments)}]"
    if origin is dict:
        return "mapping" if Any in arguments else f"mapping of {' to '.join(map(_type_text, arguments))}"
    words = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        NoneType: "null",
        Source: "path or mapping",
    }
    word = words.get(annotation, "mapping")
    return " ".join([*limits, word] if annotation is str else [word, " and ".join(limits)]).strip()


def _limits(metadata: Iterable[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _limits(item.metadata)
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (limit := getattr(item, name, None)) is not None:
                yield f"{sign} {limit}"
        if getattr(item, "min_length", None):
            yield "non-empty"


def _shown(value: Any) -> str:
    """Return a value as it would stand in YAML, on one line and cut to a length that can be read."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def to_yaml(config: Config) -> str:
    """Return the whole configuration as YAML, which reads back as an equal one."""
    unused = {"data": {"eval_fraction"}} if config.data.eval_sources is not None else None
    settings = config.model_dump(mode="json", exclude=unused)
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# ------------------------------------------------------------------------------------------ what is learned


def learned(config: Config) -> dict[str, Any]:
    """Return the settings that decide what is learned, by dotted key; equal ones teach the same.

    Loss weights stand there as shares. Where the text lies is left out: the corpus has its own fingerprint.
    So is what decides only whether and how a run goes on: bad files, skipped updates, all of `runtime`. The
    values survive JSON unchanged.
    """
    settings = config.model_dump(mode="json", include={"teacher", "student", "data", "distill", "optim"})
    data, distill, optim = settings["data"], settings["distill"], settings["optim"]
    del data["on_bad_file"], optim["max_skipped_updates"]
    del distill["alpha_ce"], distill["alpha_mlm"], distill["alpha_cos"]
    distill["shares"] = {name: round(share, 12) for name, share in config.distill.shares.items()}
    data["sources"] = {"columns": sorted({source.column for source in config.data.sources})}
    if data.pop("eval_sources") is not None:
        data["eval_fraction"] = 0.0  # nothing is held out of the training text
    return dict(_flat({"run": {"seed": config.run.seed}, **settings}))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what differs between two results of `learned`, one line a setting."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        was, now = (_shown(settings[key]) if key in settings else "not set" for settings in (old, new))
        if was != now:
            lines.append(f"{key}: was {was}, now {now}")
    return lines


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
