"""The Distiller against the plain formulas over whole logits, and what it must not compute, keep or wait for."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import VOCAB_SIZE, random_ids, small_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from distil_ray.distillation import distiller as distiller_module
from distil_ray.distillation.distiller import CePositions, Distiller, Term, count_positions
from distil_ray.errors import InputError
from distil_ray.models import loading
from distil_ray.models.student import build_student

B, T, K = 4, 14, 3
TEMPERATURE = 2.0
POSITIONS: tuple[CePositions, ...] = ("masked", "all")
WEIGHTS: dict[Term, float] = {"ce": 0.5, "mlm": 0.3, "cos": 0.2}
ONE = torch.ones(())

Batch = tuple[Tensor, Tensor, Tensor]


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    positions = torch.rand(B, T, generator=generator).argsort(dim=1)[:, :K].sort(dim=1).values
    return random_ids(B, T), positions, torch.randint(VOCAB_SIZE, (B, K), generator=generator)


def small_distiller(ce_positions: CePositions = "masked", family: str = "bert", **fields: Any) -> Distiller:
    """A teacher, and a student that disagrees with it; in eval mode, so that dropout does not blur comparisons."""
    teacher, student = (small_model(family, seed=seed, **fields) for seed in (0, 7))
    student = build_student(student, layers=2, architecture="same", init="teacher", seed=0)
    return Distiller(student, teacher, weights=WEIGHTS, temperature=TEMPERATURE, ce_positions=ce_positions).eval()


def plain_sums(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, ce_positions: str
) -> dict[str, Tensor]:
    """Every loss from both models' logits at all positions."""
    input_ids, positions, labels = batch
    masked = torch.zeros(B, T, dtype=torch.bool).scatter(1, positions, True)
    student_out = student(input_ids=input_ids, output_hidden_states=True)
    with torch.no_grad():
        teacher_out = teacher(input_ids=input_ids, output_hidden_states=True)
    selected = masked if ce_positions == "masked" else torch.ones_like(masked)
    log_p = torch.log_softmax(student_out.logits[selected] / TEMPERATURE, dim=-1)
    log_q = torch.log_softmax(teacher_out.logits[selected] / TEMPERATURE, dim=-1)
    return {
        "ce": TEMPERATURE**2 * (log_q.exp() * (log_q - log_p)).sum(),
        "mlm": F.cross_entropy(student_out.logits[masked], labels.flatten(), reduction="sum"),
        "cos": (1 - F.cosine_similarity(student_out.hidden_states[-1], teacher_out.hidden_states[-1], dim=-1)).sum(),
    }


def weighted(sums: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[term] * value for term, value in sorted(sums.items())]).sum()


def gradients(loss: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True))


def in_chunks_of(num_positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distiller_module, "MAX_LOGITS_BYTES", num_positions * VOCAB_SIZE * 4)


@pytest.mark.parametrize("chunk", [1000, 5, 1])
@pytest.mark.parametrize("ce_positions", POSITIONS)
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "modernbert", "eurobert"])
def test_sums_and_gradients_are_those_of_the_plain_formula(
    family: str, ce_positions: CePositions, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(chunk, monkeypatch)
    distiller = small_distiller(ce_positions=ce_positions, family=family)
    teacher = small_model(family, seed=0)
    loss, sums = distiller(*batch(), 8 * ONE)
    expected = plain_sums(distiller.student, teacher, batch(), ce_positions)
    assert sums.keys() == expected.keys()
    for term, value in sums.items():
        assert (value.dtype, value.shape, value.requires_grad) == (torch.float32, (), False)
        assert value > 1  # the models disagree
        torch.testing.assert_close(value, expected[term], rtol=1e-5, atol=1e-5)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss, 8 * weighted(expected), rtol=1e-5, atol=1e-5)
    wanted = gradients(8 * weighted(expected), distiller.student)
    for name, gradient in gradients(loss, distiller.student).items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("ce_positions", POSITIONS)
def test_chunks_have_the_gradients_of_one_chunk(
    ce_positions: CePositions, is_tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, but for the losses' fp32."""
    distiller = small_distiller(ce_positions, tie_word_embeddings=is_tied).double()
    distiller._teacher[0].double()
    expected, _ = distiller(*batch(), ONE)
    in_chunks_of(2, monkeypatch)
    loss, _ = distiller(*batch(), ONE)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    wanted = gradients(expected, distiller.student)
    for name, gradient in gradients(loss, distiller.student).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1000, 5])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "eurobert"])
def test_a_padded_decoder_changes_nothing(family: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(chunk, monkeypatch)
    distiller = small_distiller("all", family)
    hidden = torch.randn(6, 32)
    width = distiller.student.get_output_embeddings().weight.shape[1]
    expected_logits = loading.predict(distiller.student, hidden)
    expected_loss, expected = distiller(*batch(), ONE)
    wanted = gradients(expected_loss, distiller.student)
    before = {name: weight.clone() for name, weight in distiller.student.state_dict().items()}
    assert loading._padding(distiller.student.get_output_embeddings().weight) == 0  # not on a processor
    monkeypatch.setattr(loading, "_padding", lambda weight: -len(weight) % 128)
    assert loading.decoder(distiller.student)[0].shape == (128, width)
    torch.testing.assert_close(loading.predict(distiller.student, hidden), expected_logits)
    loss, sums = distiller(*batch(), ONE)
    torch.testing.assert_close((loss, sums), (expected_loss, expected))
    for name, gradient in gradients(loss, distiller.student).items():
        torch.testing.assert_close(gradient, wanted[name])
    assert all(torch.equal(weight, before[name]) for name, weight in distiller.student.state_dict().items())


@pytest.mark.parametrize(
    ("device", "size", "expected"), [("cuda", 30522, 70), ("cuda", 50265, 39), ("cuda", 250_000, 0), ("cpu", 30522, 0)]
)
def test_only_vocabularies_that_a_gpu_multiplies_slowly_are_padded(device: str, size: int, expected: int) -> None:
    mode = FakeTensorMode()
    with mode:
        weight = FakeTensor(mode, torch.empty(size, 4, device="meta"), torch.device(device))
    assert loading._padding(weight) == expected


@pytest.mark.parametrize(("chunk", "num_products"), [(1000, 4), (B * T // 4, 16)])
def test_no_logits_are_computed_twice(chunk: int, num_products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per chunk: both models' logits, and the gradients of the student's hidden states and of its decoder."""
    in_chunks_of(chunk, monkeypatch)
    with Products() as products:
        small_distiller("all")(*batch(), ONE)[0].backward()
    assert products.num_with_vocabulary == num_products


class Products(TorchDispatchMode):
    """Counts matrix products of which one side is as long as the vocabulary."""

    num_with_vocabulary = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.num_with_vocabulary += any(VOCAB_SIZE in factor.shape for factor in args[-2:])
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("ce_positions", POSITIONS)
def test_two_half_batches_add_up_to_the_whole(ce_positions: CePositions) -> None:
    distiller = small_distiller(ce_positions)
    _, whole = distiller(*batch(), ONE)
    halves = [distiller(*(tensor[rows] for tensor in batch()), ONE)[1] for rows in (slice(2), slice(2, None))]
    for term, value in whole.items():
        torch.testing.assert_close(halves[0][term] + halves[1][term], value, rtol=1e-5, atol=1e-5)


def test_counts_are_the_positions_in_each_sum() -> None:
    every = {"cos": 140, "relations": 140, "hidden": 140}
    assert count_positions(10, T, K, "masked") == {"ce": 30, "mlm": 30} | every
    assert count_positions(10, T, K, "all") == {"ce": 140, "mlm": 30} | every


def test_teacher_is_frozen_and_not_part_of_the_state() -> None:
    distiller = small_distiller()
    (teacher,) = distiller._teacher
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    distiller.train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller(*batch(), ONE)[0].backward()
    optimizer.step()
    assert not teacher.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    student = distiller.student
    assert distiller.state_dict().keys() == {f"student.{name}" for name in student.state_dict()}
    assert {id(parameter) for parameter in distiller.parameters()} == {id(p) for p in student.parameters()}
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize(
    ("terms", "teacher_calls", "student_head_rows", "teacher_head_rows"),
    [
        (frozenset({"mlm"}), 0, B * K, None),
        (frozenset({"cos"}), 1, None, None),
        (frozenset({"mlm", "cos"}), 1, B * K, None),
        (frozenset({"ce"}), 1, B * T, B * T),
    ],
)
def test_what_no_term_needs_is_not_computed(
    terms: frozenset[Term], teacher_calls: int, student_head_rows: int | None, teacher_head_rows: int | None
) -> None:
    teacher, student = small_model("bert", seed=0), small_model("bert", seed=7)
    calls: list[tuple[str, int]] = []

    def record(name: str) -> Callable[..., None]:
        return lambda module, args, output: calls.append((name, len(args[0]) if args else 0))

    teacher.bert.encoder.layer[0].register_forward_hook(record("teacher"))
    teacher.cls.predictions.transform.register_forward_hook(record("teacher head"))
    student.cls.predictions.transform.register_forward_hook(record("student head"))
    weights = {term: WEIGHTS[term] for term in terms}
    _, sums = Distiller(student, teacher, weights=weights, temperature=1.0, ce_positions="all")(*batch(), ONE)
    assert sums.keys() == terms
    expected = [("teacher", B)] * teacher_calls
    expected += [("student head", student_head_rows)] if student_head_rows else []
    expected += [("teacher head", teacher_head_rows)] if teacher_head_rows else []
    assert calls == expected


def test_plain_pretraining_needs_no_teacher() -> None:
    student = small_model("bert")
    distiller = Distiller(student, None, weights={"mlm": 1.0}, temperature=1.0, ce_positions="masked")
    expected = plain_sums(student, student, batch(), "masked")["mlm"]
    for value in (distiller(*batch(), ONE)[0], distiller(*batch(), ONE)[1]["mlm"]):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1000, 5])
@pytest.mark.parametrize("ce_positions", POSITIONS)
@pytest.mark.parametrize("family", ["bert", "modernbert", "eurobert", "mpnet"])
def test_autocast_to_bf16_gives_finite_fp32_sums(
    family: str, ce_positions: CePositions, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(chunk, monkeypatch)
    distiller = small_distiller(ce_positions=ce_positions, family=family)
    _, exact = distiller(*batch(), ONE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, sums = distiller(*batch(), ONE)
    loss.backward()
    for term, value in sums.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[term], rtol=0.1, atol=0)
    assert all(torch.isfinite(parameter.grad).all() for parameter in distiller.parameters())


@pytest.mark.parametrize("ce_positions", POSITIONS)
def test_nothing_depends_on_the_data(ce_positions: CePositions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data cannot be waited for, and give no shape away: any .item() or boolean index raises."""
    in_chunks_of(5, monkeypatch)
    distiller = small_distiller(ce_positions=ce_positions).to("meta").train()
    distiller._teacher[0].to("meta")
    distiller(*(tensor.to("meta") for tensor in (*batch(), ONE)))[0].backward()
    assert distiller.student.get_input_embeddings().weight.grad is not None


@pytest.mark.parametrize("chunk", [1000, 5])
@pytest.mark.parametrize("ce_positions", POSITIONS)
def test_compiles_as_one_graph(ce_positions: CePositions, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(chunk, monkeypatch)
    torch.compiler.reset()
    distiller = one_layer_distiller(ce_positions)
    compiled = torch.compile(distiller, backend="aot_eager", fullgraph=True, dynamic=False)
    assert_same_training(distiller, compiled)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler")
def test_compiled_by_inductor_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest test here, since it builds C++ code; so one run, with several chunks."""
    in_chunks_of(B * T // 2, monkeypatch)
    torch.compiler.reset()
    distiller = one_layer_distiller("all")
    assert_same_training(distiller, torch.compile(distiller, fullgraph=True, dynamic=False))


def one_layer_distiller(ce_positions: CePositions) -> Distiller:
    """Layers are alike, and each takes as long to compile as the losses."""
    teacher, student = (small_model("bert", seed=seed, num_hidden_layers=1) for seed in (0, 7))
    return Distiller(student, teacher, weights=WEIGHTS, temperature=TEMPERATURE, ce_positions=ce_positions).eval()


def assert_same_training(distiller: Distiller, compiled: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> None:
    expected_loss, expected = distiller(*batch(), ONE)
    wanted = gradients(expected_loss, distiller.student)
    loss, sums = compiled(*batch(), ONE)
    for term, value in sums.items():
        torch.testing.assert_close(value, expected[term], rtol=1e-4, atol=1e-4)
    for name, gradient in gradients(loss, distiller.student).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {}}, "expected one or more of ce, mlm, cos"),
        ({"weights": {"kl": 1.0}}, r"\['kl'\]; expected one or more of ce, mlm, cos"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a positive number"),
        ({"teacher": None}, r"\['ce', 'cos'\] need a teacher"),
        ({"teacher": small_model("bert", vocab_size=50)}, "vocab_size is 50, the student's 61"),
        ({"teacher": small_model("bert", hidden_size=64)}, "hidden states are 64 wide, the student's 32"),
    ],
)
def test_what_cannot_be_distilled_is_refused(arguments: dict[str, Any], message: str) -> None:
    usual = {"teacher": small_model("bert"), "weights": WEIGHTS, "temperature": 1.0, "ce_positions": "masked"}
    with pytest.raises(InputError, match=message):
        Distiller(small_model("bert"), **(usual | arguments))
