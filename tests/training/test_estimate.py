"""The arithmetic of an estimate: work, length, what each part takes, which one bounds the run."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_parts import B, K, random_rows, small_config, small_pair
from transformers import BertConfig, DistilBertConfig

from distil_ray.data.batch import to_device
from distil_ray.models.flops import flops_per_token
from distil_ray.training.estimate import (
    Estimate,
    Part,
    busy_warnings,
    computation_as_timed,
    computation_on_gpus,
    num_evaluations,
    other_parts,
    run_flops,
    run_length,
    start_seconds,
)
from distil_ray.training.heldout import figure_sums
from distil_ray.training.timing import Timing

PEAK = 312e12


def gpu_config(**settings):
    base = {"optim__global_batch_size": 4096, "data__max_seq_length": 512, "data__mlm_probability": 0.15}
    runtime = {"num_workers": 8, "use_gpu": True, "data_cpus": 32}
    return small_config(**{**base, "runtime": runtime, **settings})


@pytest.mark.parametrize(
    ("optim", "steps", "epochs"),
    [
        ({"num_steps": 100}, 100, 100 * B / 80),
        ({"num_epochs": 3}, 30, 3.0),
        ({"num_epochs": 3, "global_batch_size": 32}, 7, 3.0),  # the last rows make no whole step
    ],
)
def test_steps_and_epochs(optim, steps, epochs):
    config = small_config(optim={"global_batch_size": B} | optim, runtime={})
    length = run_length(config, rows_per_epoch=80)
    assert (length.num_steps, length.num_epochs) == (steps, epochs)


@pytest.mark.parametrize(("every", "steps", "count"), [(10, 100, 11), (30, 100, 5), (500, 100, 2)])
def test_evaluations_are_before_the_first_step_at_intervals_and_after_the_last(every, steps, count):
    assert num_evaluations(small_config(eval__every_steps=every), steps) == count


def test_flops_of_a_step_are_those_of_its_tokens():
    config = gpu_config()
    per_token = flops_per_token(
        BertConfig(),
        DistilBertConfig(),
        max_seq_length=512,
        num_masked=76,
        ce_positions="masked",
        terms={"ce", "mlm", "cos"},
    )
    assert run_flops(config, BertConfig(), DistilBertConfig(), 0).step == per_token * 512 * 4096
    assert per_token == pytest.approx(500.7e6, rel=5e-3)
    mlm = gpu_config(distill={"alpha_ce": 0.0, "alpha_cos": 0.0})
    assert run_flops(mlm, None, DistilBertConfig(), 0).step < 0.75 * per_token * 512 * 4096


def test_flops_of_an_evaluation_are_what_the_counter_counts():
    teacher, student = small_pair()
    batch = to_device(random_rows(B), 0, B, torch.device("cpu"))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        figure_sums([teacher, student], batch)
    assert batch.masked_positions.shape == (B, K)
    config = small_config(distill__ce_positions="all")  # an evaluation looks at masked positions in any case
    assert run_flops(config, teacher.config, student.config, B).evaluation == pytest.approx(counter.get_total_flops())


def test_hours_on_gpus_are_flops_over_peak_and_mfu():
    step_flops = 1.05e15
    part = computation_on_gpus(step_flops, 8, PEAK, 0.3)
    estimate = Estimate(1000, [part], evaluation_seconds=0.0)
    assert estimate.seconds / 3600 == pytest.approx(1000 * step_flops / (PEAK * 0.3 * 8) / 3600)
    assert computation_on_gpus(step_flops, 8, PEAK, 0.15).seconds == pytest.approx(2 * part.seconds)
    assert computation_on_gpus(step_flops, 16, PEAK, 0.3).seconds == pytest.approx(part.seconds / 2)


def test_a_timed_step_is_all_rows_of_a_worker_and_one_update_of_the_slowest():
    config = small_config(runtime={"num_workers": 2, "micro_batch_size": 2})
    timings = [Timing(0.5, 0.25, 0.1, 1, 0.9), Timing(0.75, 0.25, 0.1, 1, 0.8)]
    part = computation_as_timed(config, timings, num_timed=2, precision="fp32")
    assert part.seconds == B / 2 * 0.75 + 0.25
    assert "2 rows on 2 workers at once" in part.basis
    assert busy_warnings(config, timings) == []
    (warning,) = busy_warnings(config, [*timings, Timing(1.0, 0.25, 0.1, 1, 0.4)])
    assert "40% of their cores" in warning
    assert f"about {0.8 * 3.25:.3g} s" in warning  # of the worker whose core did most


@pytest.mark.parametrize(
    ("bound", "peak", "settings", "tokens_per_second", "checkpoint_bytes"),
    [
        ("the step's computation", PEAK, {}, 1e6, 1e9),
        ("the data plane", PEAK, {"runtime__data_cpus": 8}, 1e5, 1e9),
        ("the coordinator", 1000 * PEAK, {"runtime__num_workers": 512}, 1e7, 1e9),
        ("storage", PEAK, {"checkpoint__every_steps": 2}, 1e6, 1e9),
    ],
)
def test_what_bounds_a_run_is_named(bound, peak, settings, tokens_per_second, checkpoint_bytes):
    config = gpu_config(**settings)
    step = run_flops(config, BertConfig(), DistilBertConfig(), 0).step
    parts = [
        computation_on_gpus(step, config.runtime.max_workers, peak, 0.3),
        *other_parts(config, tokens_per_second, checkpoint_bytes, is_local=False),
    ]
    assert Estimate(10, parts, 0.0).bound.name == bound


def test_what_each_other_part_takes():
    config = gpu_config(checkpoint__every_steps=100)
    data, coordinator, storage = other_parts(config, 1e6, 1e9, is_local=False)
    assert data.seconds == pytest.approx(4096 * 512 / 32e6)
    assert coordinator.seconds == pytest.approx(8 / 110)
    assert storage.seconds == pytest.approx(1e9 / 100e6 / 100)
    assert other_parts(config, 1e6, 1e9, is_local=True)[2].seconds < storage.seconds

    config = gpu_config(data__steps_per_block=8, checkpoint__every_steps=None, checkpoint__every_minutes=10)
    _, coordinator, storage = other_parts(config, 1e6, 1e9, is_local=False)
    assert coordinator.seconds == pytest.approx(1 / 110)
    assert (storage.seconds, storage.basis) == (0.0, "1.00 GB every 10 minutes, assumed at 100 MB/s")


def test_an_epoch_has_whole_blocks_of_steps():
    config = gpu_config(optim__num_steps=None, optim__num_epochs=2, data__steps_per_block=8)
    assert run_length(config, 4096 * 12 - 1).num_steps == 16
    assert run_length(config, 4096 * 12).num_steps == 24


def test_evaluations_come_on_top_of_the_slowest_part():
    estimate = Estimate(10, [Part("a", 1.0, ""), Part("b", 2.0, "")], evaluation_seconds=5.0)
    assert (estimate.bound.name, estimate.seconds) == ("b", 25.0)


def test_a_start_takes_its_cpu_seconds_and_some_of_them_one_after_the_other():
    config = small_config(runtime={"num_workers": 2, "data_cpus": 1})
    assert start_seconds(config, num_cores=1) == pytest.approx(31 + 2 * 4.4 + 1.3)
    assert start_seconds(config, num_cores=2) == pytest.approx(start_seconds(config, num_cores=1) / 2)
    assert start_seconds(config, num_cores=64) == 15
