"""Which number format is taken, and what it is applied to."""

import pytest
import torch

from distil_ray.models import precision
from distil_ray.models.precision import autocast, common_precision, fastest_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("speedup", "expected"), [(0.5, "fp32"), (1.1, "fp32"), (2.0, "bf16")])
def test_a_processor_takes_bf16_if_that_is_faster(monkeypatch, speedup, expected):
    monkeypatch.setattr(precision, "_speedup", lambda dtype: speedup if dtype is torch.bfloat16 else 99)
    assert fastest_precision(CPU) == expected


def test_a_processor_is_tried():
    assert 0.001 < precision._speedup(torch.bfloat16) < 100
    assert 0.1 < precision._speedup(torch.float64) < 0.9  # twice as many bits take about twice as long


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_bf16_if_it_has_it(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert fastest_precision(CUDA) == expected


def test_other_devices_take_fp32():
    assert fastest_precision(torch.device("meta")) == "fp32"


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [(["bf16", "bf16"], "bf16"), (["bf16", "fp16"], "fp16"), (["bf16", "fp32"], "fp32"), (["fp16"], "fp16")],
)
def test_workers_take_what_all_of_them_can(precisions, expected):
    assert common_precision(precisions) == expected


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_concerns_products(name, dtype):
    with autocast(CPU, name):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
