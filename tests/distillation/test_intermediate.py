"""Relations and hidden states of real models, against what a plain forward pass of each returns."""

from typing import Any

import pytest
import torch
from small_models import random_ids, small_encoder, small_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from distil_ray.distillation.distiller import Distiller, Term
from distil_ray.distillation.intermediate import (
    HiddenLoss,
    HiddenStates,
    Relations,
    choose_hidden_states,
    choose_relations,
)
from distil_ray.distillation.relations import relation_loss
from distil_ray.errors import InputError
from distil_ray.models.families import FAMILIES as ALL_FAMILIES
from distil_ray.models.flops import flops_per_token
from distil_ray.models.loading import encode

B, T = 3, 10
ONE = torch.ones(())
MAP = (0, 3)
FAMILIES = ["bert", "distilbert", "roberta"]


def pair(family: str, student_width: int = 32) -> tuple[PreTrainedModel, PreTrainedModel]:
    teacher = small_model(family, seed=0)
    names = ("dim", "n_layers") if family == "distilbert" else ("hidden_size", "num_hidden_layers")
    return teacher.eval(), small_model(family, seed=7, **dict(zip(names, (student_width, 2), strict=True))).eval()


def distiller_of(
    teacher: PreTrainedModel, student: PreTrainedModel, loss: HiddenLoss = "mse", **weights: float
) -> Distiller:
    given: dict[Term, float] = weights or {"relations": 1.0, "hidden": 1.0}  # type: ignore[assignment]
    return Distiller(
        student,
        teacher,
        weights=given,
        temperature=1.0,
        ce_positions="masked",
        relations=Relations(layer=2, num_heads=4),
        hidden_states=HiddenStates(MAP, loss),
    ).eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    return random_ids(B, T), torch.tensor([[1, 4]] * B), torch.tensor([[5, 6]] * B)


def states(model: PreTrainedModel) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = model(input_ids=batch()[0], output_hidden_states=True).hidden_states
    return found


def projected(model: PreTrainedModel, layer: int) -> list[Tensor]:
    """Queries, keys and values, from the hidden states that the layer gets."""
    kind = model.config.model_type
    if kind == "distilbert":
        attention = model.distilbert.transformer.layer[layer].attention
        maps = attention.q_lin, attention.k_lin, attention.v_lin
    else:
        attention = getattr(model, kind).encoder.layer[layer].attention.self
        maps = attention.query, attention.key, attention.value
    return [one(states(model)[layer]) for one in maps]


def assert_equal_gradients(one: Tensor, other: Tensor, module: nn.Module) -> None:
    gradients = (torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True) for loss in (one, other))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_sums_are_those_of_plain_forward_passes(family: str, loss: HiddenLoss) -> None:
    teacher, student = pair(family)
    value, sums = distiller_of(teacher, student, loss)(*batch(), 2 * ONE)
    expected_relations = relation_loss(projected(student, 1), projected(teacher, 2), 4)
    others = states(teacher)
    pairs = list(zip(states(student), (others[0], *(others[layer + 1] for layer in MAP)), strict=True))
    distances = [
        (own - other).square().mean(-1).sum() if loss == "mse" else (1 - F.cosine_similarity(own, other, dim=-1)).sum()
        for own, other in pairs
    ]
    torch.testing.assert_close(sums["relations"], expected_relations.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums["hidden"], torch.stack(distances).mean().detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value.detach(), 2 * (sums["relations"] + sums["hidden"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_plain_forward_passes(family: str) -> None:
    teacher, student = pair(family)
    value, _ = distiller_of(teacher, student)(*batch(), ONE)
    others = states(teacher)
    plain = relation_loss(projected(student, 1), [one.detach() for one in projected(teacher, 2)], 4)
    for own, other in zip(states(student), (others[0], *(others[layer + 1] for layer in MAP)), strict=True):
        plain = plain + (own - other.detach()).square().mean(-1).sum() / 3
    assert_equal_gradients(value, plain, student)


def test_a_narrower_student_learns_maps_that_are_no_part_of_it() -> None:
    teacher, student = pair("bert", student_width=16)
    distiller = distiller_of(teacher, student)
    assert distiller.trained().keys() - dict(student.named_parameters()).keys() == {
        f"projections.{place}.weight" for place in range(3)
    }
    value, sums = distiller(*batch(), ONE)
    own, other = states(student)[0], states(teacher)[0]
    widened = torch.cat([own, torch.zeros_like(own)], dim=-1)  # they begin as the identity
    first = (widened - other).square().mean(-1).sum()
    assert sums["hidden"] > first / 3
    value.backward()
    assert all(parameter.grad is not None for name, parameter in distiller.trained().items() if "projections" in name)
    assert all(torch.isfinite(sums[term]) for term in sums)


def test_what_is_taken_is_not_kept_and_only_taken_when_asked_for() -> None:
    teacher, student = pair("bert")
    distiller = distiller_of(teacher, student, mlm=1.0)
    assert distiller(*batch(), ONE)[1].keys() == {"mlm"}
    encode(student, batch()[0])
    assert distiller.intermediate is not None
    assert all(not one._states and not one._vectors for one in distiller.intermediate._taps)
    with_both = distiller_of(*pair("bert"))(*batch(), ONE)[1]
    evaluated = distiller.compare(batch()[0]).sums
    assert {term: float(value) for term, value in evaluated.items()} == pytest.approx(
        {term: float(value) for term, value in with_both.items()}
    )
    assert all(not one._states and not one._vectors for one in distiller.intermediate._taps)


@pytest.mark.parametrize("width", [32, 16])
def test_compiles_as_one_graph(width: int) -> None:
    torch.compiler.reset()
    distiller = distiller_of(*pair("bert", width), relations=0.5, hidden=0.25, mlm=1.0)
    compiled = torch.compile(distiller, backend="aot_eager", fullgraph=True, dynamic=False)
    expected, sums = distiller(*batch(), ONE)
    for _ in range(2):
        value, found = compiled(*batch(), ONE)
        torch.testing.assert_close((value, found), (expected, sums), rtol=1e-5, atol=1e-6)
    assert_equal_gradients(value, expected, distiller)


def test_what_is_left_open_is_chosen() -> None:
    teacher, student = pair("bert", student_width=24)
    assert choose_relations(teacher, student, None, None) == Relations(layer=3, num_heads=8)  # of 32 and 24
    assert choose_relations(teacher, student, 1, 4) == Relations(layer=1, num_heads=4)
    assert choose_hidden_states(teacher, student, "uniform", "mse").layers == (1, 3)
    twelve, six, five = (small_model("bert", num_hidden_layers=count) for count in (12, 6, 5))
    assert choose_hidden_states(twelve, six, "uniform", "mse").layers == (1, 3, 5, 7, 9, 11)
    assert choose_hidden_states(twelve, five, "uniform", "mse").layers == (1, 4, 6, 9, 11)
    assert choose_hidden_states(twelve, twelve, "uniform", "mse").layers == tuple(range(12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relation_layer": 4}, r"relation_layer: given 4, but the teacher has 4 layers; expected 0 to 3"),
        ({"relation_heads": 5}, r"given 5, which does not .* widths 32 \(the teacher's\) and 24 .*one of 1, 2, 4, 8$"),
        ({"hidden_layers": (0, 1, 2)}, "given 3 layers, but the student has 2"),
        ({"hidden_layers": (0, 4)}, r"the teacher has no layers \[4\]; expected 0 to 3"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: dict[str, Any], message: str) -> None:
    teacher, student = pair("bert", student_width=24)
    layers = arguments.get("hidden_layers", "uniform")
    with pytest.raises(InputError, match=message):  # noqa: PT012
        choose_relations(teacher, student, arguments.get("relation_layer"), arguments.get("relation_heads"))
        choose_hidden_states(teacher, student, layers, "mse")
    with pytest.raises(InputError, match="more than the teacher's 4"):
        choose_hidden_states(teacher, small_model("bert", num_hidden_layers=5), "uniform", "mse")


@pytest.mark.parametrize("width", [32, 16])
@pytest.mark.parametrize("terms", [("relations", "mlm"), ("hidden", "mlm"), ("ce", "mlm", "relations", "hidden")])
def test_flops_are_what_the_counter_counts(terms: tuple[Term, ...], width: int) -> None:
    teacher, student = pair("bert", width)
    distiller = distiller_of(teacher, student, **dict.fromkeys(terms, 0.5))
    # The fused attention's backward pass computes the scores again, which the counter would count.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        distiller(*batch(), ONE)[0].backward()
    computed = flops_per_token(
        teacher.config, student.config, max_seq_length=T, num_masked=2, ce_positions="masked", terms=terms
    )
    assert computed == pytest.approx(counter.get_total_flops() / (B * T), rel=1e-9)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_teaches_without_a_head(family: str) -> None:
    teacher, student = small_encoder(family, seed=0), small_encoder(family, seed=7, num_hidden_layers=2)
    torch.compiler.reset()
    distiller = distiller_of(teacher, student)
    value, sums = distiller(*batch(), ONE)
    found = torch.compile(distiller, backend="eager", fullgraph=True, dynamic=False)(*batch(), ONE)[1]
    torch.testing.assert_close(found, sums, rtol=1e-4, atol=1e-5)
    assert all(1e-3 < float(one) < 1e5 for one in sums.values())
    value.backward()
    assert all(torch.isfinite(one.grad).all() for one in student.parameters() if one.grad is not None)


@pytest.mark.parametrize("family", ["eurobert", "modernbert"])
def test_flops_of_fused_and_of_shared_projections(family: str) -> None:
    teacher, student = small_encoder(family, seed=0), small_encoder(family, seed=7, num_hidden_layers=2)
    distiller = distiller_of(teacher, student)
    counted = []
    for weights in ({"cos": 1.0}, {"cos": 1.0, "relations": 1.0}):
        distiller.weights = weights  # type: ignore[assignment]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            distiller(*batch(), ONE)[0].backward()
        counted.append(counter.get_total_flops())
    size: dict[str, Any] = {"max_seq_length": T, "num_masked": 2, "ce_positions": "masked"}
    plain, more = (
        flops_per_token(teacher.config, student.config, terms=terms, **size)
        for terms in (["cos"], ["cos", "relations"])
    )
    assert (more - plain) * B * T == pytest.approx(counted[1] - counted[0], rel=1e-9)
