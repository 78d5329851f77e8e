"""What models cost: figures that can be counted by hand, and a latency that tells large from small."""

from small_models import small_model

from distil_ray.comparison.cost import measure


def test_counts_parameters_and_tells_large_from_small():
    small = small_model("bert")
    large = small_model("bert", num_hidden_layers=24)
    costs = measure({"small": small, "large": large})

    assert costs["small"].num_parameters == sum(p.numel() for p in small.parameters())
    assert costs["small"].megabytes == costs["small"].num_parameters * 4 / 1e6
    assert 0 < costs["small"].latency_ms < costs["large"].latency_ms


def test_models_of_short_rows_are_measured_too():
    assert measure({"short": small_model("roberta", max_position_embeddings=18)})["short"].latency_ms > 0
