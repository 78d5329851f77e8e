"""Ray Train around the training loop: a worker's world, and the fit of one pass. The only module here that imports it.

Ray Train starts the workers again when one of them or its node is lost, and deals the pipeline's blocks out to them.
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.train import (
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer

from distil_ray.config import Config
from distil_ray.data.pipeline import execution_options
from distil_ray.errors import RunError, reason_of
from distil_ray.outages import Patience
from distil_ray.runs.cluster import worker_resources
from distil_ray.runs.events import EventQueue
from distil_ray.runs.lease import Claim
from distil_ray.runs.ray_internals import newest_preemption
from distil_ray.runs.storage import RunFolder
from distil_ray.training.all_reduce import AllReduce, measure
from distil_ray.training.job import Job, Outcome
from distil_ray.training.world import PreemptionWatch, World


def train_loop_per_worker(loop_config: dict[str, Any]) -> Outcome:
    """Train as one of Ray Train's workers."""
    # Late, for workers alone: Ray Train's controller reads this module, too, and the loop would bring transformers.
    from distil_ray.training.loop import train

    job: Job = loop_config["job"]
    events: EventQueue = loop_config["events"]
    claim: Claim = loop_config["claim"]
    run, context = job.config.run, ray.train.get_context()
    patience = Patience(job.config.runtime.outage_seconds, events.post_text)
    blocks = ray.train.get_dataset_shard("train")
    world = World(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        group=dist.new_group(backend="gloo") if job.config.runtime.use_gpu else None,
        folder=claim.guard(RunFolder(run.storage_path, run.name, patience=patience)),
        blocks=blocks.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2),
        events=events,
        report=ray.train.report,
        preemption=PreemptionWatch(newest_preemption),
    )
    return train(job, world)


def fit(
    job: Job,
    events: EventQueue,
    claim: Claim,
    folder: RunFolder,
    make_dataset: Callable[[], Any],
    callbacks: Sequence[UserCallback],
) -> Outcome:
    """Do one pass over a pipeline.

    Args:
        make_dataset: builds the pipeline; called by Ray Train's controller whenever a worker group starts.

    Raises:
        TrainingFailedError: workers failed too often.
        RayError: the controller was lost.
    """
    _set_patience()
    config = job.config
    loop: Any = train_loop_per_worker  # Ray passes on what it returns; its annotations do not say so
    num_workers: Any = config.runtime.num_workers  # nor do they know of (min, max)
    run_config: Any = RunConfig  # nor of the logging configuration
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job, "events": events, "claim": claim},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.runtime.use_gpu,
            resources_per_worker=worker_resources(config),
        ),
        run_config=run_config(
            name=config.run.name,
            storage_path=folder.storage_path,
            storage_filesystem=folder.arrow_filesystem,
            failure_config=FailureConfig(max_failures=config.runtime.max_failures),
            callbacks=[_ReportFailures(events), *callbacks],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
        datasets={"train": make_dataset},
        dataset_config=DataConfig(
            execution_options=execution_options(
                config.runtime.data_cpus,
                config.runtime.data_label,
                tokens_taken_at_once=config.data.steps_per_block * config.tokens_per_step,
            )
        ),
    )
    # In the main thread, Ray Train would handle Ctrl-C itself, and ends the process with the status of a failed run.
    result: Any = _in_thread(trainer.fit)
    assert isinstance(result.return_value, Outcome)
    return result.return_value


def _set_patience() -> None:
    """How long Ray Train's controller, which is given these variables, waits for what; what is set already stays."""
    # Seconds between two looks of Ray Train's controller at the workers: each takes one report, or notices the end.
    # The default of 2.0 is a good part of a short run; 0.5 costs one small call per worker.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Ray Train still counts on a node that is drained or has just died, and tries for this many seconds (default: 60).
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")


def time_all_reduce(config: Config, num_elements: int, folder: RunFolder) -> AllReduce:
    """Form the group of a run's workers (the fewest, if elastic), and have them add up a gradient some times.

    Args:
        folder: for Ray Train, which leaves a file there; all nodes must reach it.

    Raises:
        TimeoutError: there was no room for the workers within some seconds.
        RunError: they have not done it; says why.
    """
    _set_patience()
    loop: Any = _all_reduce_per_worker
    run_config: Any = RunConfig
    failure_config: Any = FailureConfig
    trainer = TorchTrainer(
        loop,
        train_loop_config={"num_elements": num_elements},
        torch_config=TorchConfig(timeout_s=_GROUP_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=config.runtime.min_workers,
            use_gpu=config.runtime.use_gpu,
            resources_per_worker=worker_resources(config),
        ),
        run_config=run_config(
            name=PurePath(folder.path).name,
            storage_path=folder.storage_path,
            storage_filesystem=folder.arrow_filesystem,
            failure_config=failure_config(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        result: Any = _in_thread(trainer.fit)
    except (TrainingFailedError, ray.exceptions.RayError) as error:
        failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
        failure = next(iter(failures.values()))
        if type(failure).__name__ == "WorkerGroupStartupTimeoutError":
            raise TimeoutError("Ray found no places for the workers, though enough is free in all") from error
        raise RunError(reason_of(failure)) from error
    assert isinstance(result.return_value, AllReduce)
    return result.return_value


_GROUP_SECONDS = 60  # to form a group of workers that cannot reach each other, or for one all-reduce


def _all_reduce_per_worker(loop_config: dict[str, Any]) -> AllReduce:
    node_rank = ray.train.get_context().get_node_rank()
    return measure(loop_config["num_elements"], node_rank, ray.train.torch.get_device())


def _in_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread and return its result, or raise what it raises. A signal interrupts the waiting."""
    results: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

    def call() -> None:
        try:
            results.put((function(), None))
        except BaseException as error:  # raised where it is waited for
            results.put((None, error))

    threading.Thread(target=call, name="fit", daemon=True).start()
    result, error = results.get()
    if error is not None:
        raise error
    return result


class _ReportFailures(UserCallback):
    """Says why workers are started again."""

    def __init__(self, events: EventQueue) -> None:
        self._events = events

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train's controller when workers have failed."""
        for rank, error in sorted(worker_exceptions.items()):
            self._events.post_text(f"worker {rank} failed: {reason_of(error)}")
