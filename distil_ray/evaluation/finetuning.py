"""A model and a task's rows -> a fine-tuned model and its scores on the validation rows, in a Ray task each.

Shapes: B features of a batch, T pieces of its longest, C outputs of a model for one, see `kinds`; N words of a batch.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distil_ray.distillation.losses import IGNORE_INDEX, soft_target_loss
from distil_ray.errors import InputError
from distil_ray.evaluation.kinds import Features, Logits, adapter_of
from distil_ray.evaluation.nodes import Progress, completed, join, num_at_a_time, remote_task
from distil_ray.evaluation.protocol import Finetuning, Protocol, SecondStep
from distil_ray.evaluation.results import FinetuneJob, Results
from distil_ray.evaluation.tasks import Rows, Splits, Task
from distil_ray.models.embedding import embedding_of
from distil_ray.models.host_memory import keep_freed_memory
from distil_ray.models.loading import load_tokenizer_of
from distil_ray.models.precision import Precision, autocast, fastest_precision
from distil_ray.models.processor import fast_on_processor
from distil_ray.runs.cluster import assigned_device
from distil_ray.runs.console import Console
from distil_ray.runs.figures import format_seconds
from distil_ray.training.optimizer import Optimizer, learning_rate_factor

_MAX_GRAD_NORM = 1.0
_BATCHES_PER_POOL = 32  # whose rows are sorted by length, so that there is little padding
_EVALUATION_ROWS = 64
_TRIAL_SHARE = 0.1  # of the training rows, on which learning rates are compared


class SoftTargets(NamedTuple):
    """A fine-tuned teacher's logits for each training feature, and how they are used."""

    logits: Logits
    step: SecondStep


class Finetuner:
    """Fine-tunes one model on one task, and scores it, which is all it does on a task of similarity.

    Attributes:
        precision: of the matrix products, as the protocol says or as is fastest on the device.

    Args:
        model: with a head for the task (`Adapter.load`); its weights are changed.
        seed: of the order of rows and of dropout; the head is already initialized.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        protocol: Finetuning,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        keep_freed_memory(device)
        self.model = model.to(device)  # type: ignore[arg-type]
        self.tokenizer, self._task, self._protocol = tokenizer, task, protocol
        self._adapter = adapter_of(task)
        self._seed, self._device = seed, device
        # On a GPU, shapes that recur, and that its kernels like; never beyond the longest row that is allowed.
        self._multiple = math.gcd(protocol.max_seq_length, 16) if device.type == "cuda" else None
        self.precision = fastest_precision(device) if protocol.precision == "auto" else protocol.precision

    def train(
        self,
        splits: Splits,
        soft_targets: SoftTargets | None = None,
        tell: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Train on ``splits["train"]``: AdamW with linear warm-up and decay, gradients clipped to norm 1 (as in arXiv
        1810.04805), no decay of biases and LayerNorms. With ``early_stopping_patience``, the weights are those of the
        epoch that is best on the other splits.

        Args:
            tell: takes the share of the steps that is done, after each.

        Raises:
            InputError: soft targets do not fit the rows.
        """
        torch.manual_seed(self._seed)
        protocol = self._protocol
        (learning_rate,) = protocol.learning_rates
        features = self._encode(splits["train"])
        _check_fit(features, soft_targets)
        num_steps = -(-len(features.inputs) // protocol.batch_size) * protocol.num_epochs
        optimizer = Optimizer(
            dict(self.model.named_parameters()),
            weight_decay=protocol.weight_decay,
            max_grad_norm=_MAX_GRAD_NORM,
            precision=self.precision,
        )
        generator = np.random.default_rng(self._seed)
        best, patience = _BestEpoch(self.model), protocol.early_stopping_patience
        steps = count(1)
        for _ in range(protocol.num_epochs):
            self.model.train()
            for indices in batches(features.lengths, protocol.batch_size, generator):
                optimizer.zero_grad()
                (self._loss(features, indices, soft_targets) * optimizer.loss_scale).backward()
                step = next(steps)
                factor = learning_rate_factor((step - 1) / num_steps, "linear", protocol.warmup_fraction)
                optimizer.step(learning_rate * factor)
                tell(step / num_steps)
            if patience and best.epochs_since(self.score(splits)["score"]) >= patience:
                break
        best.restore()

    def logits(self, rows: Rows) -> Logits:
        return self._outputs(self._encode(rows))

    def score(self, splits: Splits) -> dict[str, float]:
        """The official metrics in percent, by "split/metric", of all splits but "train"; and "score", their mean."""
        found: dict[str, float] = {}
        for split, rows in splits.items():
            if split == "train":
                continue
            features = self._encode(rows)
            scores = self._adapter.score(rows, features, self._outputs(features))
            found |= {f"{split}/{name}": value for name, value in scores.items()}
        return found | {"score": float(np.mean(list(found.values())))}

    def _encode(self, rows: Rows) -> Features:
        return self._adapter.encode(self.tokenizer, rows, self._protocol.max_seq_length)

    def _loss(self, features: Features, indices: npt.NDArray[np.int64], soft_targets: SoftTargets | None) -> Tensor:
        logits, targets = self._forward(features, indices), features.targets[indices].to(self._device)
        teacher_logits = None if soft_targets is None else _stack([soft_targets.logits[i] for i in indices], logits)
        if features.first_pieces:  # [B, C, T] -> [N, C]
            targets = targets[:, : logits.shape[-1]]
            has_tag = targets != IGNORE_INDEX
            logits, targets = logits.mT[has_tag], targets[has_tag]
            teacher_logits = None if teacher_logits is None else teacher_logits.mT[has_tag]
            if not len(targets):
                return logits.sum()  # 0
        loss = task_loss(logits, targets)
        if soft_targets is None or teacher_logits is None:
            return loss
        alpha, temperature = soft_targets.step.alpha, soft_targets.step.temperature
        if self._task.kind == "regression":
            soft = torch.nn.functional.mse_loss(logits, teacher_logits)
        else:
            soft = soft_target_loss(logits, teacher_logits, temperature) / logits[..., 0].numel()
        return alpha * soft + (1 - alpha) * loss

    @torch.inference_mode()
    def _outputs(self, features: Features) -> Logits:
        self.model.eval()
        lengths = features.lengths
        order = np.argsort(lengths, kind="stable")
        outputs: list[Any] = [None] * len(order)
        for start in range(0, len(order), _EVALUATION_ROWS):
            indices = order[start : start + _EVALUATION_ROWS]
            for index, logits in zip(indices, self._forward(features, indices).cpu().numpy(), strict=True):
                outputs[index] = logits[..., : lengths[index]] if features.has_outputs_of_pieces else logits
        return outputs

    def _forward(self, features: Features, indices: npt.NDArray[np.int64]) -> Tensor:
        inputs = [features.inputs[i] for i in indices]
        batch: Any = self.tokenizer.pad(inputs, pad_to_multiple_of=self._multiple, return_tensors="pt").to(self._device)
        with autocast(self._device, self.precision), fast_on_processor(self._device):
            outputs = self.model(**batch)
        return self._adapter.logits(outputs, batch["attention_mask"])


class _BestEpoch:
    """The weights with the highest score so far."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._score = -math.inf
        self._epochs_since = 0
        self._weights: dict[str, Tensor] | None = None

    def epochs_since(self, score: float) -> int:
        """Note an epoch's score and weights; return how many epochs have passed since the best."""
        self._epochs_since += 1
        if self._weights is None or score > self._score:
            self._score, self._epochs_since = score, 0
            self._weights = {name: weight.clone() for name, weight in self._model.state_dict().items()}
        return self._epochs_since

    def restore(self) -> None:
        """Load them into the model, if there are any."""
        if self._weights is not None:
            self._model.load_state_dict(self._weights)


def task_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of fp32 ``logits`` [..., C]: squared error for numbers [B], else cross-entropy."""
    if targets.is_floating_point():
        return torch.nn.functional.mse_loss(logits.squeeze(1), targets)
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def batches(lengths: list[int], batch_size: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the index of each row once, in batches of rows of similar length, in an order drawn by ``generator``."""
    order = generator.permutation(len(lengths))
    pool = batch_size * _BATCHES_PER_POOL
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort([lengths[i] for i in part], kind="stable")]
        cut = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        for index in generator.permutation(len(cut)):
            yield cut[index]


def _check_fit(features: Features, soft_targets: SoftTargets | None) -> None:
    if soft_targets is None:
        return
    lengths = [logits.shape[-1] for logits in soft_targets.logits]
    if len(lengths) != len(features.inputs) or (features.has_outputs_of_pieces and lengths != features.lengths):
        raise InputError(
            "the teacher splits the rows into other pieces than the student, so that its soft targets do not fit; "
            "expected a student with the teacher's tokenizer"
        )


def _stack(teacher_logits: Sequence[npt.NDArray[np.float32]], like: Tensor) -> Tensor:
    """The teacher's logits as a tensor of the student's shape; padding has the student's values."""
    stacked = like.detach().clone()
    for row, logits in zip(stacked, teacher_logits, strict=True):
        row[..., : logits.shape[-1]] = torch.from_numpy(logits)
    return stacked


class Tuned(NamedTuple):
    """The result of a fine-tuning: scores, how long it took, in what precision, and soft targets if they are kept."""

    scores: dict[str, float]
    seconds: float
    precision: Precision | None
    soft_targets: Logits | None


def fine_tune(jobs: Sequence[FinetuneJob], results: Results, console: Console) -> None:
    """Run the jobs that are not done yet, as many at a time as fit on the cluster; without any, joins no cluster.

    Raises:
        InputError: earlier results were made with something else.
        RunError: jobs failed, the others are done and kept; or scores cannot be written.
    """
    if trials := results.trials(jobs):
        _run(trials, results, console, what="trials of learning rates")
        for model, chosen in results.chosen_rates(jobs).items():
            console.line(f"learning rates of {model}: {', '.join(f'{task} {rate:g}' for task, rate in chosen.items())}")
    are_tuned = all(results.tasks[job.task].is_tuned for job in jobs)
    _run(jobs, results, console, what="fine-tunings" if are_tuned else "evaluations")


def _run(jobs: Sequence[FinetuneJob], results: Results, console: Console, what: str) -> None:
    if not jobs:
        return
    num_models, num_tasks = len({job.row for job in jobs}), len({job.task for job in jobs})
    # Where nothing is tuned, nothing is drawn.
    seeds = {job.seed for job in jobs if results.tasks[job.task].is_tuned and job.trial_rate is None}
    counts = {"models": num_models, "tasks": num_tasks} | ({"seeds": len(seeds)} if seeds else {})
    counted = (f"{count} {name[:-1] if count == 1 else name}" for name, count in counts.items())
    console.line(f"{len(jobs)} {what}: {', '.join(counted)}")
    done = set(results.done(jobs))
    open_jobs = [job for job in jobs if job not in done]
    if done:
        console.line(f"{len(done)} of {len(jobs)} {what} are already done")
    for remark in results.remarks(done):
        console.line(remark)
    if not open_jobs:
        return
    console.line(join([job.model for job in open_jobs], results.protocol.resources))
    with closing(Progress()) as progress:
        _follow(_start(open_jobs, results, progress), results, progress, console, what)


def _follow(running: dict[Any, FinetuneJob], results: Results, progress: Progress, console: Console, what: str) -> None:
    """Keep the results of Ray tasks as they end, and tell how far they are."""
    open_jobs = list(running.values())
    places = num_at_a_time({job.model for job in open_jobs}, results.protocol.resources)
    num_characters = {
        name: _num_characters(splits, results.protocol.finetuning_on(name).num_epochs)
        for name, splits in results.data.items()
    }
    work = {job: num_characters[job.task] * job.model.work_per_token for job in open_jobs}
    spent: list[tuple[float, float]] = []

    def time_left() -> str:
        return _time_left(spent, progress.shares(running.values()), list(running.values()), work, places)

    tuned: Tuned
    for job, tuned in completed(running, what, lambda: console.line(f"{progress.line(running.values())}{time_left()}")):
        if tuned.soft_targets is not None:
            results.put_soft_targets(job, tuned.soft_targets)
        results.put(job, tuned.scores, tuned.seconds, tuned.precision)
        num_done = len(open_jobs) - len(running)
        spent.append((work[job], tuned.seconds))
        ending = f"  {num_done} of {len(open_jobs)}{time_left()}" if running else ""
        of = f", seed {job.seed}" if results.tasks[job.task].is_tuned else ""
        of = of if job.trial_rate is None else f", learning rate {job.trial_rate:g}"
        console.line(f"{job.task:5} {job.row}{of}: {tuned.scores['score']:.1f}{ending}")


def _num_characters(splits: Splits, num_epochs: int) -> float:
    """Characters of a task that go forward through a model, those that also go back counted three times."""
    sizes = {split: sum(len(text) for texts in rows.texts for text in texts) for split, rows in splits.items()}
    return 3.0 * num_epochs * sizes.pop("train", 0) + sum(sizes.values())


def _time_left(
    spent: Sequence[tuple[float, float]],
    under_way: Mapping[FinetuneJob, tuple[float, float]],
    jobs: Collection[FinetuneJob],
    work: Mapping[FinetuneJob, float],
    places: int,
) -> str:
    """How long ``jobs`` take still, as the end of a line; empty as long as nothing is known.

    Args:
        spent: work and seconds of each job that has ended.
        under_way: share of the work and seconds of each of ``jobs`` that has begun.
        work: by job.
    """
    parts = [(share * work[job], seconds) for job, (share, seconds) in under_way.items()]
    if not spent and not parts:
        return ""
    ahead = [(1 - under_way[job][0] if job in under_way else 1) * work[job] for job in jobs]
    return f", {format_seconds(_seconds_left([*spent, *parts], ahead, places))} left"


def _seconds_left(spent: Sequence[tuple[float, float]], ahead: Sequence[float], places: int) -> float:
    """How long the work ``ahead`` takes.

    Args:
        spent: work that is done, and its seconds, of each job.
        ahead: work of each job that is not done.
        places: jobs that run at a time.
    """
    done, seconds = map(sum, zip(*spent, strict=True))
    return seconds / max(done, 1.0) * sum(ahead) / max(1, min(places, len(ahead)))


def _start(jobs: Sequence[FinetuneJob], results: Results, progress: Progress) -> dict[Any, FinetuneJob]:
    """Start all jobs, teachers before the students that learn from them; return each job by its task's reference."""
    splits = {name: ray.put(results.data[name]) for name in {job.task for job in jobs}}
    outcomes: dict[FinetuneJob, Any] = {}  # references to a `Tuned` each
    running = {}
    for job in sorted(jobs, key=lambda job: job.teacher is not None):
        if job.teacher is not None and job.teacher not in outcomes:
            outcomes[job.teacher] = ray.put(Tuned({}, 0.0, None, results.soft_targets(job.teacher)))
        teacher = None if job.teacher is None else outcomes[job.teacher]
        task = remote_task(_fine_tune, results.protocol.resources, job.model)
        settings = results.protocol_of(job)
        outcomes[job] = task.remote(job, results.tasks[job.task], splits[job.task], settings, progress, teacher)
        running[outcomes[job]] = job
    return running


def finetuner_of(job: FinetuneJob, task: Task, protocol: Protocol) -> Finetuner:
    """A job's model, on the device and the threads of the Ray task that this is called in."""
    torch.set_num_threads(protocol.resources.cpus)
    path, revision = job.model.origin
    model = adapter_of(task).load(path, job.seed, revision)
    tokenizer = load_tokenizer_of(model, path, revision)
    settings = protocol.finetuning_on(task.name)
    if task.kind == "similarity":  # nothing is trained, and little to be gained by another precision
        pooling, length, prompt = embedding_of(job.model.origin, model, tokenizer, task.pooling)
        task = replace(task, pooling=pooling, prompt=prompt)
        settings = settings.model_copy(update={"max_seq_length": length, "precision": "fp32"})
    return Finetuner(model, tokenizer, task, settings, seed=job.seed, device=assigned_device())


def _fine_tune(
    job: FinetuneJob, task: Task, splits: Splits, protocol: Protocol, progress: Progress, teacher: Tuned | None
) -> Tuned:
    began, tell = time.monotonic(), progress.teller(job)
    if job.trial_rate is not None:
        rest, aside = splits["train"].set_aside(_TRIAL_SHARE)
        splits = {"train": rest, "set aside": aside}
    finetuner = finetuner_of(job, task, protocol)
    targets = teacher.soft_targets if teacher else None
    if task.is_tuned:
        finetuner.train(splits, None if targets is None else SoftTargets(targets, protocol.second_step), tell)
    scores = finetuner.score(splits)
    soft_targets = [np.array(one) for one in finetuner.logits(splits["train"])] if job.teaches else None
    return Tuned(scores, time.monotonic() - began, finetuner.precision, soft_targets)
