"""The FLOP formula against PyTorch's own counter and against the published figures."""

from typing import Any

import pytest
import torch
from small_models import WITH_HEAD, random_ids, small_encoder, small_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, DistilBertConfig

from distil_ray.distillation.distiller import CePositions, Distiller, Term
from distil_ray.models.flops import flops_per_token, peak_flops
from distil_ray.models.loading import encode
from distil_ray.models.student import build_student

B, T, K = 4, 16, 3
TERMS: list[frozenset[Term]] = [
    frozenset({"ce", "mlm", "cos"}),
    frozenset({"ce"}),
    frozenset({"cos"}),
    frozenset({"mlm"}),
]


@pytest.mark.parametrize("terms", TERMS, ids=lambda terms: "+".join(sorted(terms)))
@pytest.mark.parametrize("ce_positions", ["masked", "all"])
@pytest.mark.parametrize("family", WITH_HEAD)
def test_formula_is_what_the_counter_counts(family: str, ce_positions: CePositions, terms: frozenset[Term]) -> None:
    teacher = small_model(family)
    student = build_student(teacher, layers=2, architecture="same", init="teacher", seed=0)
    weights = dict.fromkeys(terms, 0.5)
    distiller = Distiller(student, teacher, weights=weights, temperature=1.0, ce_positions=ce_positions)
    positions, labels = torch.arange(K).expand(B, K), torch.full((B, K), 5)
    # The fused attention's backward pass computes the scores again, which the counter would count.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        distiller(random_ids(B, T), positions, labels, torch.ones(()))[0].backward()
    counted = counter.get_total_flops() / (B * T)
    computed = flops_per_token(
        teacher.config, student.config, max_seq_length=T, num_masked=K, ce_positions=ce_positions, terms=terms
    )
    assert computed == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("fields", [{}, {"share_att_key": False}, {"pos_att_type": ["c2p"]}, {"position_buckets": -1}])
def test_formula_of_a_deberta_leaves_out_its_relative_positions_once(fields: dict[str, Any]) -> None:
    teacher, student = small_encoder("deberta-v2", **fields), small_model("bert")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encode(teacher, random_ids(B, T))
    size = {"max_seq_length": T, "num_masked": K, "ce_positions": "masked", "terms": {"cos"}}
    computed = flops_per_token(teacher.config, student.config, **size)
    computed -= flops_per_token(None, student.config, **size)
    # In each layer, of each kind (both, where keys and queries are shared), 2 * span positions times D x D.
    span, width = (24 if fields.get("position_buckets") == -1 else 8), 32
    left_out = teacher.config.num_hidden_layers * 2 * 2 * (2 * span) * width**2
    assert computed * B * T + left_out == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize(
    ("max_seq_length", "num_masked", "ce_positions", "published"),
    [(128, 19, "all", 628.7e6), (128, 19, "masked", 465.3e6), (512, 77, "all", 664.1e6), (512, 77, "masked", 500.7e6)],
)
def test_figures_of_bert_base_into_six_layers(
    max_seq_length: int, num_masked: int, ce_positions: str, published: float
) -> None:
    computed = flops_per_token(
        BertConfig(),
        DistilBertConfig(),
        max_seq_length=max_seq_length,
        num_masked=num_masked,
        ce_positions=ce_positions,
        terms={"ce", "mlm", "cos"},
    )
    assert computed == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize(
    ("device_name", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_flops_by_device_name(device_name: str, flops: float | None) -> None:
    assert peak_flops(device_name) == flops
