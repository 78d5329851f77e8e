"""What the pipeline uses of Ray Data beyond its documented interface is still there, and is missed in a sentence."""

import dataclasses
from types import SimpleNamespace

import pytest
from ray.data import DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators.map_operator import MapBatches, StreamingRepartition

from distil_ray.data import pipeline
from distil_ray.data.pipeline import IdleThrottle, execution_options
from distil_ray.errors import RunError


def methods(kind):
    return {name for name in vars(kind) if not name.startswith("_")}


def test_ray_calls_no_other_methods_of_a_callback():
    assert methods(IdleThrottle) == methods(ExecutionCallback)
    context = DataContext()
    context.custom_execution_callback_classes.append(IdleThrottle)
    assert IdleThrottle in context.execution_callback_classes


def test_ray_tells_whether_its_consumer_is_idle():
    assert callable(StreamingExecutor._consumer_idling)


@pytest.mark.parametrize("kind", [StreamingRepartition, MapBatches])
def test_ray_keeps_the_options_of_an_operator_where_they_are_set(kind):
    assert "_logical_plan" in Dataset.__init__.__code__.co_names
    assert isinstance(LogicalPlan.dag, property)
    assert {"ray_remote_args", "compute"} <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("dataset", [SimpleNamespace(), SimpleNamespace(_logical_plan=SimpleNamespace(dag=object()))])
def test_another_ray_ends_in_a_sentence(dataset):
    with pytest.raises(RunError, match=r"builds its pipelines in another way than Ray 2\.60"):
        pipeline._last_operator(dataset)


def test_the_loop_pauses_only_while_a_block_waits(monkeypatch):
    pauses = []
    monkeypatch.setattr(pipeline.time, "sleep", pauses.append)
    IdleThrottle().on_execution_step(SimpleNamespace(_consumer_idling=lambda: True))
    IdleThrottle().on_execution_step(SimpleNamespace())
    assert pauses == []
    IdleThrottle().on_execution_step(SimpleNamespace(_consumer_idling=lambda: False))
    assert pauses == [pytest.approx(0.05)]


def test_a_pipeline_has_room_for_blocks_of_any_size():
    """Whatever the CPU slots: what the workers take at once, in blocks and in the rows to cut them from."""
    small, large = (
        execution_options(1, None, tokens_taken_at_once=tokens).resource_limits.object_store_memory
        for tokens in (0, 8 * 4096 * 512)
    )
    row_bytes = 512 * 2 + 77 * (2 + 2)
    assert large - small > 2 * 8 * 4096 * row_bytes
