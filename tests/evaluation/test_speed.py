"""Models are timed in turns, in eval mode, on the cores that this process may use."""

import numpy as np
from small_models import small_model
from training_parts import CPU, small_tokenizer

from distil_ray.evaluation import speed
from distil_ray.evaluation.speed import as_function, measure, measure_latency_of_one, measure_speed
from distil_ray.evaluation.tasks import Rows

ROWS = Rows([("w1 w2 w3",), ("w4",)], np.array([0, 1]))


def test_models_take_turns():
    turns = []
    runs = {name: lambda batch, name=name: turns.append((name, batch["input_ids"].shape)) or {} for name in "ab"}
    found = measure_latency_of_one(runs, {"input_ids": np.zeros((1, 8), dtype=np.int64)})

    assert turns == [("a", (1, 8)), ("b", (1, 8))] * (len(turns) // 2)
    assert len(turns) > 2 * 30
    assert all(low <= median <= high for median, low, high in found.values())


def test_they_are_timed_as_they_answer():
    model = small_model("bert", num_hidden_layers=1, hidden_dropout_prob=0.5).train()
    run = as_function(model.base_model, CPU)
    first, second = (run({"input_ids": np.full((1, 8), 10)})["last_hidden_state"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    measure({"model": model.train()})
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
    costs = measure({"small": small, "large": large})

    assert costs["small"].num_parameters == sum(p.numel() for p in small.parameters())
    assert costs["small"].megabytes == costs["small"].num_parameters * 4 / 1e6
    assert 0 < costs["small"].latency_ms < costs["large"].latency_ms


def test_models_of_short_rows_are_measured_too():
    assert measure({"short": small_model("roberta", max_position_embeddings=18)})["short"].latency_ms > 0
