"""Models are timed in turns, in eval mode, on the cores that this process may use."""

import numpy as np
import pytest
from small_models import small_model
from training_parts import CPU, small_tokenizer

from distil_ray.evaluation import speed
from distil_ray.evaluation.speed import Timing, as_function, measure_costs, measure_speed
from distil_ray.evaluation.tasks import Rows
from distil_ray.evaluation.turns import time_in_turns

ROWS = Rows([("w1 w2 w3",), ("w4",)], np.array([0, 1]))


@pytest.mark.parametrize(
    ("names", "turns"),
    [("a", "a a a a"), ("ab", "ab ba ab ba"), ("abc", "abc bca cab abc")],
)
def test_each_round_begins_with_another_one_and_warmups_do_not_count(names, turns):
    calls = []
    functions = {name: lambda number, name=name: calls.append((number, name)) for name in names}
    seconds = time_in_turns(functions, num_rounds=3, num_warmups=1)

    assert calls == [(number, name) for number, turn in enumerate(turns.split()) for name in turn]
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(names, 3)
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_a_timing_has_median_and_quartiles():
    assert Timing.of([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0]) == (4.0, 2.0, 6.0)


def test_they_are_timed_as_they_answer():
    model = small_model("bert", num_hidden_layers=1, hidden_dropout_prob=0.5).train()
    run = as_function(model.base_model, CPU)
    first, second = (run({"input_ids": np.full((1, 8), 10)})["last_hidden_state"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    measure_costs({"model": model.train()})
    assert not model.training


def test_the_cores_are_those_that_this_process_may_use(monkeypatch):
    models = {"small": (small_model("bert", num_hidden_layers=1), small_tokenizer())}
    for usable, expected in ((1, ["1 thread"]), (2, ["1 thread", "2 threads"])):
        monkeypatch.setattr(speed, "usable_cpus", lambda usable=usable: usable)
        found = measure_speed(models, ROWS, 12)["small"]
        assert [one.where for one in found if "thread" in one.where] == expected


def test_counts_parameters_and_tells_large_from_small():
    small = small_model("bert")
    large = small_model("bert", num_hidden_layers=24)
    costs = measure_costs({"small": small, "large": large})

    assert costs["small"].num_parameters == sum(p.numel() for p in small.parameters())
    assert costs["small"].megabytes == costs["small"].num_parameters * 4 / 1e6
    assert 0 < costs["small"].latency_ms < costs["large"].latency_ms


def test_models_of_short_rows_are_measured_too():
    assert measure_costs({"short": small_model("roberta", max_position_embeddings=18)})["short"].latency_ms > 0
