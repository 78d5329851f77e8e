"""A fine-tuned model -> ONNX, and int8 by dynamic quantization, each compared with the original and measured.

The files run on ONNX Runtime, without torch and transformers, on phones and servers. The packages are optional
(`PACKAGES`) and are imported where they are used.

Shapes: B rows of a batch, T tokens of its longest row, C labels.
"""

import copy
import inspect
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.errors import InputError, RunError
from distil_ray.evaluation.finetuning import finetuner_of
from distil_ray.evaluation.kinds import Labeling, encode_rows
from distil_ray.evaluation.nodes import Progress, completed, join, remote_task
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.results import FinetuneJob, Results, Stale, read_json, to_json
from distil_ray.evaluation.speed import Array, Contender, Run, Timing, as_function, measure_latency
from distil_ray.evaluation.tasks import Rows, Splits, Task, first_validation
from distil_ray.models.loading import load_tokenizer, max_tokens
from distil_ray.models.threads import using_threads
from distil_ray.models.tokenizer import save_tokenizer
from distil_ray.reporting.report import writing
from distil_ray.runs.storage import RunFolder

MODEL_FILE, INT8_FILE = "model.onnx", "model-int8.onnx"
FORMATS = {"PyTorch": "model.safetensors", "ONNX": MODEL_FILE, "ONNX int8": INT8_FILE}
"""The file of a fine-tuned model in each format."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")

# Rounding alone gave 1.2e-5 for a fine-tuned model of 4 layers and 5e-6 for one of 12 with random weights; two swapped
# inputs gave 3e-3 and more.
TOLERANCE = 1e-4
# Numbers count as equal when they are this close: a twentieth of STS-B's range.
NUMBER_TOLERANCE = 0.25
# A file that predicts something else for more than one row in ten is reported to the user.
LOW_AGREEMENT = 0.9

_MAX_BYTES = 2**31 - 1  # of a protobuf message, which an ONNX file is
_ERRORS_ONLY = 3  # of ONNX Runtime's levels of logging
_FIGURES_FILE = "figures.json"


class Checked(NamedTuple):
    """A format's answers to the rows that were checked, and how they differ from the original model's.

    Attributes:
        logits: [rows, C] float32.
        max_difference: the largest absolute difference of a logit.
        agreement: share of rows whose predicted class is the original's; whose number is within 0.25 of the
            original's where numbers are asked for.
    """

    logits: Array
    max_difference: float
    agreement: float


class OnnxModel:
    """An ONNX file as a function that runs on this machine's CPU."""

    def __init__(self, path: Path, num_threads: int) -> None:
        check_packages()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = _ERRORS_ONLY
        # Idle threads would keep spinning while the next model is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Return the model's outputs by name, such as "logits" [B, C] float32.

        Args:
            batch: the tokenizer's arrays [B, T] int64 by name; those that the model does not take are ignored.
        """
        outputs = self._session.run(self._outputs, {name: batch[name] for name in self._inputs})
        return dict(zip(self._outputs, outputs, strict=True))


def check_packages() -> None:
    """Raise InputError unless the packages for ONNX are installed. Imports none of them."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}, not installed here: pip install 'distil-ray[onnx]'")


def export_and_check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    folder: Path,
    max_seq_length: int,
    num_threads: int = 1,
) -> dict[str, Checked]:
    """Write a classifier as ONNX and as int8, and compare both with it on ``rows``; return a `Checked` by format.

    Raises:
        InputError: packages are missing, or the model is too large for one file.
        RunError: see `check`.
    """
    export_onnx(model, tokenizer, folder)
    quantize(folder)
    original = as_function(model, torch.device("cpu"))
    reference = logits_of(original, tokenizer, rows, max_seq_length)
    checked = {"PyTorch": Checked(reference, 0.0, 1.0)}
    for name, tolerance in (("ONNX", TOLERANCE), ("ONNX int8", None)):
        path = folder / FORMATS[name]
        logits = logits_of(OnnxModel(path, num_threads), tokenizer, rows, max_seq_length)
        checked[name] = check(path, reference, logits, tolerance)
    return checked


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write ``model.onnx``, weights included, its config.json and its tokenizer: a folder to ship.

    The file takes the tokenizer's arrays by name, [B, T] int64 for any B and any T that the model has positions for,
    and returns the model's outputs by name: "logits" of a classifier, "start_logits" and "end_logits" of a model
    that answers questions.

    Args:
        model: on the CPU, in fp32; it is put in eval mode.
        tokenizer: not changed; the folder's truncates texts to the model's length and returns the file's inputs.

    Raises:
        InputError: packages are missing, or the model is too large for one file.
    """
    check_packages()
    import onnx

    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if num_bytes > _MAX_BYTES:
        raise InputError(f"the model has {num_bytes / 1e9:.1f} GB of weights; an ONNX file holds 2.1 GB at most")
    taken = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in taken]
    # Two unequal rows of several tokens: sizes that are 1 or equal could be taken for constants.
    encoded: Any = tokenizer(["a b", "a"], padding=True, return_tensors="pt")
    example = {name: encoded[name] for name in names}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet(), torch.no_grad():
        # The older exporter is deprecated, and names the inputs in the order of `forward`.
        program: Any = torch.onnx.export(
            model.eval(),
            kwargs=example,
            output_names=list(model(**example)),
            dynamic_shapes=dict.fromkeys(names, axes),
            dynamo=True,
            verbose=False,
        )
        proto = program.model_proto
        for part in (*proto.graph.node, *proto.graph.value_info):
            del part.metadata_props[:]  # lines of source code with their paths on this machine
        onnx.save(proto, folder / MODEL_FILE)
        model.config.save_pretrained(folder)
        shipped = copy.deepcopy(tokenizer)
        shipped.model_max_length = min(shipped.model_max_length, max_tokens(model))
        shipped.model_input_names = shipped.init_kwargs["model_input_names"] = names  # is saved only if both are equal
        save_tokenizer(shipped, folder)
    return folder / MODEL_FILE


def quantize(folder: Path) -> Path:
    """Write ``model-int8.onnx`` from the folder's ``model.onnx``: dynamic quantization, which needs no data.

    Embeddings get 8 bits per weight and one scale per table; matrices 7 bits and a scale per column, as a sum of two
    products of 8 bits overflows on x86 without VNNI. Activations get 8 bits, with a scale for each batch.

    Raises:
        InputError: packages are missing.
    """
    check_packages()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / INT8_FILE
    with _quiet():
        quantize_dynamic(folder / MODEL_FILE, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    return path


def logits_of(run: Run, tokenizer: PreTrainedTokenizerBase, rows: Rows, max_seq_length: int) -> Array:
    """The logits [rows, C] of a classifier, run on one row at a time, as on a device.

    In a batch, int8 activations would share a scale, so that a row's logits would depend on the others.
    """
    encoded = encode_rows(tokenizer, rows, max_seq_length)
    batches = ({name: np.array([values], dtype=np.int64) for name, values in row.items()} for row in encoded)
    return np.concatenate([run(batch)["logits"] for batch in batches])


def check(path: Path, reference: Array, logits: Array, tolerance: float | None = None) -> Checked:
    """Compare a file's ``logits`` [rows, C] with the original model's.

    Args:
        tolerance: largest absolute difference that is allowed; None for int8, whose rounding has no bound: its
            difference and agreement are figures to report, not errors. (A model that has learned nothing has near
            ties, which any rounding breaks.)

    Raises:
        RunError: another shape, values that are not finite, or a difference above ``tolerance``.
    """
    if logits.shape != reference.shape:
        raise RunError(f"{path} returns logits of shape {logits.shape}, the original model {reference.shape}")
    if not np.isfinite(logits).all():
        raise RunError(f"{path} returns logits that are not finite")
    difference = float(np.abs(logits - reference).max())
    if tolerance is not None and not difference <= tolerance:
        raise RunError(
            f"{path} is not the model it was made from: a logit differs by {difference:.2g}, expected {tolerance:g} at "
            "most; other versions of torch and onnxscript may export it correctly"
        )
    if reference.shape[-1] == 1:
        is_equal = np.abs(logits - reference) <= NUMBER_TOLERANCE
    else:
        is_equal = logits.argmax(-1) == reference.argmax(-1)
    return Checked(logits, difference, float(is_equal.mean()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's and the quantizer's warnings and log lines, which are about their internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Figures(NamedTuple):
    """What a file scores on the task, in percent, and how its logits differ from the original's; see `Checked`."""

    score: float
    max_difference: float
    agreement: float


class Deployed(NamedTuple):
    """A fine-tuned model in one of `FORMATS`; ``latency_ms`` of one row on one thread."""

    format: str
    num_bytes: int
    latency_ms: Timing
    figures: Figures


def check_on_device(task: Task) -> None:
    """Raise InputError unless the packages are installed and the task is a classification or regression."""
    check_packages()
    if task.kind not in ("classification", "regression"):
        raise InputError(f"--on-device: given {task.name}, expected a task that asks for a class or a number")


def deploy_all(
    jobs: Sequence[FinetuneJob], results: Results, folder: Path, tell: Callable[[str], None]
) -> dict[str, list[Deployed]]:
    """Fine-tune models for one task and export them to ``folder/<model>``, unless done, and time them in turns.

    Raises:
        RunError: exports failed; says which and why. The others are kept.
    """
    protocol = results.protocol
    task, splits = results.tasks[jobs[0].task], results.data[jobs[0].task]
    open_jobs = [job for job in jobs if _figures(folder, job) is None]
    if open_jobs:
        tell(join([job.model for job in open_jobs], protocol.resources))
        with closing(Progress()) as progress:
            running = {}
            for job in open_jobs:
                remote = remote_task(_export, protocol.resources, job.model)
                running[remote.remote(job, task, splits, results.protocol_of(job), progress)] = job
            exports = completed(running, "exports for a device", lambda: tell(progress.line(running.values())))
            for job, files in exports:
                _keep(folder, job.row, files, results.made_with(job))
                tell(f"{job.row}: {task.name} for a device, in {folder / job.row}")
    rows = first_validation(splits)
    latency = _latency(jobs, task, folder, rows, protocol)
    found = {job.row: _deployed(job, folder, latency) for job in jobs}
    for model, files in found.items():
        for one in files:
            if one.figures.agreement < LOW_AGREEMENT:
                tell(f"{model}: {one.format} agrees with PyTorch on only {one.figures.agreement:.0%} of the rows")
    return found


def stale_files(jobs: Sequence[FinetuneJob], results: Results, folder: Path) -> list[Stale]:
    """Files of an earlier comparison that would now be made with something else."""
    known = [job for job in jobs if results.learning_rate(job) is not None]
    found = {job: figures for job in known if (figures := _figures(folder, job)) is not None}
    stale = [results.stale(folder / job.row / _FIGURES_FILE, figures, job) for job, figures in found.items()]
    return list(filter(None, stale))


def _figures(folder: Path, job: FinetuneJob) -> dict[str, Any] | None:
    """The recorded figures of a model's files; None if there are none or they are damaged."""
    found = read_json(folder / job.row / _FIGURES_FILE)
    return found if found is not None and {"formats", "made_with"} <= found.keys() else None


def _export(job: FinetuneJob, task: Task, splits: Splits, protocol: Protocol, progress: Progress) -> dict[str, bytes]:
    """Fine-tune and export a model; return its files by name. Runs on a node of the cluster."""
    finetuner = finetuner_of(job, task, protocol)
    finetuner.train(splits, tell=progress.teller(job))
    length = protocol.finetuning_on(task.name).max_seq_length
    rows = first_validation(splits)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = finetuner.model.cpu()
        checked = export_and_check(model, finetuner.tokenizer, rows, folder, length, protocol.resources.cpus)
        model.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    figures = {}
    for name, one in checked.items():
        score = fmean(Labeling(task).scores(rows, list(one.logits)).values())
        figures[name] = Figures(score, one.max_difference, one.agreement)._asdict()
    return files | {_FIGURES_FILE: json.dumps(figures).encode()}


def _keep(folder: Path, name: str, files: Mapping[str, bytes], made_with: Mapping[str, Any]) -> None:
    """Write a model's files to ``folder/name``. They count once the figures are there, which are written last."""
    figures = {"formats": json.loads(files[_FIGURES_FILE]), "made_with": made_with}
    with writing(folder / name), RunFolder.at(str(folder)).new_folder(name) as own:
        for file, content in files.items():
            if file != _FIGURES_FILE:
                (own / file).write_bytes(content)
        (own / _FIGURES_FILE).write_bytes(to_json(figures))


def _latency(
    jobs: Sequence[FinetuneJob], task: Task, folder: Path, rows: Rows, protocol: Protocol
) -> dict[tuple[str, str], Timing]:
    """Milliseconds per row on one thread, by row and format."""
    contenders: dict[tuple[str, str], Contender] = {}
    for job in jobs:
        own = folder / job.row
        tokenizer = load_tokenizer(str(own))
        for name in FORMATS:
            contenders[job.row, name] = Contender(_run(own, name, task), tokenizer)
    with using_threads(1):
        return measure_latency(contenders, rows, protocol.finetuning_on(task.name).max_seq_length)


def _run(folder: Path, format_name: str, task: Task) -> Run:
    if format_name == "PyTorch":
        return as_function(Labeling(task).load(str(folder), seed=0), torch.device("cpu"))
    return OnnxModel(folder / FORMATS[format_name], num_threads=1)


def _deployed(job: FinetuneJob, folder: Path, latency: Mapping[tuple[str, str], Timing]) -> list[Deployed]:
    noted = _figures(folder, job)
    assert noted is not None, f"{job} is not done"
    found = []
    for name, file in FORMATS.items():
        num_bytes = (folder / job.row / file).stat().st_size
        found.append(Deployed(name, num_bytes, latency[job.row, name], Figures(**noted["formats"][name])))
    return found
