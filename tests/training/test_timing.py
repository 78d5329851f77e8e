"""Timing a worker's step on small models: what is timed is the run's own update, and it leaves the rest alone."""

import pytest
import torch
from training_parts import B, T, random_rows, save_model, small_config, small_pair

from distil_ray.training import timing
from distil_ray.training.learner import Learner
from distil_ray.training.timing import prepare_timing, repeated


@pytest.fixture
def config(tmp_path):
    teacher, _ = small_pair()
    return small_config(
        teacher={"path": save_model(tmp_path / "teacher", teacher)},
        optim={"global_batch_size": 16 * B, "num_steps": 100},
        runtime={"num_workers": 2, "micro_batch_size": B},
    )


def test_the_parts_of_a_step_are_timed_on_the_rows_given(config, monkeypatch):
    updates = []
    update = Learner.update

    def counted(learner, rows, *others):
        updates.append([len(block.rows["row"]) for block in rows.blocks])
        return update(learner, rows, *others)

    monkeypatch.setattr(Learner, "update", counted)
    monkeypatch.setattr(timing, "_median_seconds", lambda call, _: call() or float(len(updates)))
    timed = prepare_timing(config, {"teacher": pin(config)}, random_rows(B), "fp32")()

    assert updates == [[B], [B], []]  # the first is to warm up
    assert (timed.row, timed.update, timed.evaluated_row) == ((2 - 3) / B, 3.0, 3 / B)
    assert timed.num_threads == torch.get_num_threads()


def pin(config):
    from distil_ray.training.identity import unpinned

    return unpinned(config)["teacher"]


def test_the_median_of_at_least_three_calls_counts(monkeypatch):
    clock = iter([0.0, 1.0, 1.0, 10.0, 10.0, 12.0])  # calls of 1, 9 and 2 s
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing._median_seconds(lambda: None, 0.5) == 2.0


def test_rows_are_repeated_where_they_are_few():
    rows = repeated(random_rows(3), 8)
    assert rows["row"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert rows["input_ids"].shape == (8, T)
    assert repeated(random_rows(8), 3)["row"].tolist() == [0, 1, 2]
