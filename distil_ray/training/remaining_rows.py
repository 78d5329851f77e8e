"""What a run has left to do -> the pipeline of its rows. Imports little: Ray Train's controller builds it."""

from typing import Any

from distil_ray.config import Config
from distil_ray.data.pipeline import num_groups_ahead, train_dataset
from distil_ray.data.plan import DataPlan
from distil_ray.outages import Patience
from distil_ray.runs.events import EventQueue
from distil_ray.runs.storage import RunFolder
from distil_ray.training.checkpoint import TrainState, latest_checkpoint


def remaining_rows(config: Config, plan: DataPlan, events: EventQueue, overprovision: int) -> Any:
    """The pipeline that begins after the last checkpoint; ``overprovision``: see `num_groups_ahead`."""
    patience = Patience(config.runtime.outage_seconds, events.post_text)
    folder = RunFolder(config.run.storage_path, config.run.name, patience=patience)
    checkpoint, _ = latest_checkpoint(folder, verify_tensors=False)  # rank 0 of the workers does
    events.note("start", "checkpoint", checkpoint and checkpoint.name)
    state = TrainState() if checkpoint is None else checkpoint.state
    rows_left, steps_per_block = None, config.data.steps_per_block
    if config.optim.num_steps is not None:
        steps_left = config.optim.num_steps - state.step + state.steps_after
        rows_left = -(-steps_left // steps_per_block) * steps_per_block * config.optim.global_batch_size
    return train_dataset(
        plan,
        state.position,
        num_groups=num_groups_ahead(plan, state.position, rows_left, overprovision),
        block_rows=config.block_rows * steps_per_block,
        filler_blocks=config.runtime.max_workers,
        num_cpus=config.runtime.data_cpus,
        listener=events,
        outage_seconds=config.runtime.outage_seconds,
    )
