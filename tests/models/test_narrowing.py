"""Students that are narrower than their teachers: what is kept, that it is what it was, and that it trains."""

import math
from pathlib import Path

import pytest
import torch
from small_models import WITH_HEAD, random_ids, small_encoder, small_model
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

import distil_ray
from distil_ray.distillation.distiller import Distiller, Term
from distil_ray.distillation.intermediate import HiddenStates, choose_hidden_states, choose_relations
from distil_ray.errors import InputError
from distil_ray.models.families import FAMILIES, family_of, has_head, head_width, layers_of, num_key_heads
from distil_ray.models.loading import encode, load_masked_lm, load_tokenizer
from distil_ray.models.narrowing import Sizes
from distil_ray.models.student import build_student

D, NUM_HEADS, NUM_NEURONS, NUM_KEPT = 32, 4, 48, 16
B, T = 3, 12
SHIPPED = str(Path(distil_ray.__file__).parent / "quickstart" / "teacher")
ROTARY = [name for name, family in FAMILIES.items() if family.is_rotary]
SMALLEST_EPS = {"layer_norm_eps": 1e-12, "norm_eps": 1e-12, "rms_norm_eps": 1e-12}


def teacher_of(family: str, **fields: object) -> PreTrainedModel:
    if family == "electra":
        fields = {"embedding_size": 8} | fields
    return small_model(family, **fields) if family in WITH_HEAD else small_encoder(family, **fields)


def student_of(teacher: PreTrainedModel, sizes: Sizes, **options: object) -> PreTrainedModel:
    head = None if has_head(teacher) else "none"
    given = {"layers": 4, "architecture": None, "init": "teacher", "seed": 0, "head": head} | options
    return build_student(teacher, sizes=sizes, **given).eval()  # type: ignore[arg-type]


def outputs(model: PreTrainedModel) -> Tensor:
    """Logits, or the last hidden states if it has no head."""
    with torch.no_grad():
        output = model(input_ids=random_ids(B, T))
    return output.logits if has_head(model) else output.last_hidden_state


def hidden(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return encode(model, random_ids(B, T))


# ------------------------------------------------------------------------------------------ what is dropped


@torch.no_grad()
def drop_neurons(teacher: PreTrainedModel, dropped: Tensor) -> None:
    family = family_of(teacher.config)
    for layer in layers_of(teacher):
        for path in family.feed_forward:
            for parameter in layer.get_submodule(path).parameters():
                for part in parameter.split(NUM_NEURONS):
                    part[dropped] = 0
        layer.get_submodule(family.feed_forward_output).weight[:, dropped] = 0


@torch.no_grad()
def drop_in_heads(teacher: PreTrainedModel, scores: Tensor, values: Tensor) -> None:
    """Zero what two masks, [G, d], say of queries and keys, and of values and what reads them."""
    family = family_of(teacher.config)
    masks = [scores, scores, values]
    paths = family.projections if len(family.projections) == 3 else family.projections * 3
    for layer in layers_of(teacher):
        for place, (path, mask) in enumerate(zip(paths, masks, strict=True)):
            for parameter in layer.get_submodule(path).parameters():
                part = parameter if len(family.projections) == 3 else parameter.chunk(3)[place]
                part[whole_groups(mask, len(part))] = 0
        for path, module in layer.named_modules():
            for parameter in module.parameters() if path in family.position_projections else ():
                parameter[scores.flatten()] = 0
        output = layer.get_submodule(family.attention_output).weight
        output[:, whole_groups(values, output.shape[1])] = 0


def whole_groups(mask: Tensor, length: int) -> Tensor:
    """Of grouped queries, those of a group lie side by side."""
    repeated = mask[:, None].expand(-1, length // mask.numel(), -1)
    return repeated.flatten()


@torch.no_grad()
def drop_dimensions(encoder: PreTrainedModel, dropped: Tensor) -> None:
    """Zero dimensions, and let the others have mean 0 wherever they are normalised: no mean depends on how many."""
    kept = torch.tensor([one for one in range(D) if one not in dropped.tolist()])
    family = family_of(encoder.config)
    reading = (*family.projections, *family.position_projections, *family.feed_forward)
    for name, module in encoder.named_modules():
        if name.endswith(reading):
            module.weight[:, dropped] = 0
        elif is_norm(module):
            module.weight.fill_(1.1)
        for parameter in module.parameters(recurse=False):
            written = parameter.T if isinstance(module, torch.nn.Embedding) else parameter
            if name.endswith(reading) or len(written) != D:
                continue
            if not is_norm(module) or parameter is not module.weight:
                written -= written[kept].mean(0)
            written[dropped] = 0


def is_norm(module: torch.nn.Module) -> bool:
    return type(module).__name__.endswith("Norm")


@torch.no_grad()
def scale_norms(student: PreTrainedModel) -> None:
    """Undo that a norm takes a mean over fewer dimensions, none of which is 0."""
    for module in student.modules():
        if is_norm(module) and len(module.weight) == NUM_KEPT:
            module.weight *= math.sqrt(D / NUM_KEPT)


def mask_of(num_groups: int, width: int, kept_groups: list[int], kept_places: list[int]) -> Tensor:
    """Of the places in groups of heads, those to drop."""
    mask = torch.ones(num_groups, width, dtype=torch.bool)
    for group in kept_groups:
        mask[group, kept_places] = False
    return mask


EVERY_THIRD = torch.arange(0, NUM_NEURONS, 3)
ODD = torch.arange(1, D, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_teachers_sizes_it_is_the_student_of_before(family: str) -> None:
    teacher = teacher_of(family)
    student = student_of(teacher, Sizes(D, NUM_HEADS, NUM_NEURONS), layers=[0, 2])
    plain = student_of(teacher, Sizes(), layers=[0, 2])
    assert student.config.to_dict() == plain.config.to_dict()
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(one, plain.state_dict()[name]) for name, one in student.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_without_weights_can_go(family: str) -> None:
    teacher = teacher_of(family)
    drop_neurons(teacher, EVERY_THIRD)
    student = student_of(teacher, Sizes(intermediate_size=NUM_NEURONS - len(EVERY_THIRD)))
    assert layers_of(student)[0].get_submodule(family_of(student.config).feed_forward_output).in_features == 32
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-5, atol=1e-5)


def test_heads_without_weights_can_go_where_their_width_is_a_setting() -> None:
    teacher = teacher_of("eurobert")
    mask = mask_of(2, 8, [1], [*range(8)])
    drop_in_heads(teacher, mask, mask)
    student = student_of(teacher, Sizes(num_heads=2))
    assert (student.config.num_key_value_heads, student.config.head_dim) == (1, 8)
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("are_narrower", [False, True])
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        *((family, {}) for family in FAMILIES if family != "electra"),
        ("electra", {"embedding_size": 8}),
        ("electra", {"embedding_size": D}),
        ("deberta-v2", {"share_att_key": False, "embedding_size": 8}),
    ],
)
def test_what_has_no_weights_can_go(family: str, fields: dict[str, object], are_narrower: bool) -> None:
    """Dimensions of the hidden states, heads or parts of them, neurons: all at once, in any place."""
    if are_narrower and family in ROTARY:
        pytest.skip("their heads cannot be narrower")
    own = {name: eps for name, eps in SMALLEST_EPS.items() if hasattr(small_encoder(family).config, name)}
    teacher = small_encoder(family, **own, **fields)
    num_groups, width = num_key_heads(teacher.config), head_width(teacher.config)
    kept_heads = [*range(num_groups)] if are_narrower else [1, 3] if num_groups == 4 else [1]
    all_places = [*range(width)]
    scores = mask_of(num_groups, width, kept_heads, [0, 2, 3, 7] if are_narrower else all_places)
    values = mask_of(num_groups, width, kept_heads, [1, 2, 5, 6] if are_narrower else all_places)
    drop_neurons(teacher, EVERY_THIRD)
    drop_in_heads(teacher, scores, values)
    drop_dimensions(teacher, ODD)
    num_heads = NUM_HEADS if are_narrower else NUM_HEADS // 2
    student = student_of(teacher, Sizes(NUM_KEPT, num_heads, NUM_NEURONS - len(EVERY_THIRD)))
    assert student.kept_dimensions.tolist() == [*range(0, D, 2)]
    scale_norms(student)
    expected = hidden(teacher)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(hidden(student), expected[..., ::2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{"conv_kernel_size": 3}, {"share_att_key": False}, {"embedding_size": 8}])
def test_other_parts_of_a_deberta(fields: dict[str, object], tmp_path: Path) -> None:
    teacher = teacher_of("deberta-v2", **fields)
    student = student_of(teacher, Sizes(NUM_KEPT, NUM_HEADS))
    student.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(hidden(again), hidden(student))
    assert again.config.pooler_hidden_size == NUM_KEPT  # of a head for classes
    if "conv_kernel_size" in fields:
        kept = student.kept_dimensions
        convolution = teacher.encoder.conv.conv.weight[kept][:, kept]
        assert torch.equal(student.encoder.conv.conv.weight, convolution)


@pytest.mark.parametrize("head", [None, "new", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_loads_it(family: str, head: str | None, tmp_path: Path) -> None:
    if head != "none" and family not in WITH_HEAD:
        pytest.skip("it has no head")
    student = student_of(teacher_of(family), Sizes(NUM_KEPT), layers=2, head=head)
    assert (student.config.hidden_size, student.config.num_attention_heads, student.config.num_hidden_layers) == (
        NUM_KEPT,
        2,
        2,
    )
    assert getattr(student.config, family_of(student.config).feed_forward_field) == NUM_NEURONS // 2
    student.save_pretrained(tmp_path)
    auto_class = AutoModel if head == "none" else AutoModelForMaskedLM
    again, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) or head == "none"
    torch.testing.assert_close(outputs(again.eval()), outputs(student), rtol=0, atol=0)


def test_the_head_keeps_the_same_dimensions_as_the_encoder() -> None:
    teacher = teacher_of("bert", tie_word_embeddings=False)
    student = student_of(teacher, Sizes(NUM_KEPT), architecture="distilbert")
    kept = student.kept_dimensions
    assert torch.equal(student.vocab_transform.weight, teacher.cls.predictions.transform.dense.weight[kept][:, kept])
    assert torch.equal(student.vocab_projector.weight, teacher.cls.predictions.decoder.weight[:, kept])
    embeddings = teacher.bert.embeddings.word_embeddings.weight[:, kept]
    assert torch.equal(student.distilbert.embeddings.word_embeddings.weight, embeddings)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_random_one_has_the_sizes_and_nothing_of_the_weights(family: str) -> None:
    teacher = teacher_of(family)
    narrow, again = (student_of(teacher, Sizes(NUM_KEPT, 4), init="random") for _ in range(2))
    assert (narrow.config.hidden_size, narrow.config.num_attention_heads) == (NUM_KEPT, 4)
    assert all(torch.equal(one, two) for one, two in zip(narrow.parameters(), again.parameters(), strict=True))
    assert not hasattr(narrow, "kept_dimensions")
    assert narrow.get_input_embeddings().weight.std() < 0.1  # the teacher's are larger


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("bert", Sizes(33), r"student\.hidden_size: given 33, more than the teacher's 32; expected at most that"),
        ("bert", Sizes(32, 8), r"student\.num_heads: given 8, more than the teacher's 4"),
        ("distilbert", Sizes(None, None, 64), r"student\.intermediate_size: given 64, more than the teacher's 48"),
        ("bert", Sizes(20), r"student\.hidden_size: given 20, which is no multiple of 8, .*or student\.num_heads, too"),
        ("bert", Sizes(20, 3), r"student\.num_heads: 3 heads do not divide the hidden size 20"),
        ("bert", Sizes(24, 2), r"2 heads are 12 wide, the teacher's 8 .*at most that, or student\.init random"),
        ("bert", Sizes(None, 2), r"2 heads are 16 wide, the teacher's 8"),
        ("modernbert", Sizes(16, 4), r"4 heads are 4 wide, the teacher's 8 .*rotary position embeddings of modernbert"),
        ("eurobert", Sizes(None, 3), r"given 3, but 2 of the teacher's heads share .*expected a multiple of 2"),
        ("electra", Sizes(8), r"given 8, the width of the teacher's embeddings, with which electra has no matrix"),
    ],
)
def test_what_cannot_be_kept_is_refused(family: str, sizes: Sizes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        student_of(teacher_of(family), sizes)


def test_convolutions_of_groups_are_refused() -> None:
    teacher = teacher_of("deberta-v2", conv_kernel_size=3, conv_groups=2)
    with pytest.raises(InputError, match=r"convolution has groups of dimensions \(conv_groups\)"):
        student_of(teacher, Sizes(NUM_KEPT))


# ------------------------------------------------------------------------------------------ training


def distiller_of(family: str, weights: dict[Term, float], head: str | None = None) -> Distiller:
    teacher = teacher_of(family)
    student = student_of(teacher, Sizes(NUM_KEPT), layers=2, head=head)
    is_inside = "hidden" in weights
    return Distiller(
        student,
        teacher,
        weights=weights,
        temperature=2.0,
        ce_positions="masked",
        relations=choose_relations(teacher, student, None, None) if is_inside else None,
        hidden_states=HiddenStates((1, 3), "mse") if is_inside else None,
    )


def batch() -> tuple[Tensor, ...]:
    return random_ids(B, T), torch.tensor([[1, 4]] * B), torch.tensor([[5, 6]] * B), torch.ones(())


def gradients(distiller: Distiller, losses: torch.nn.Module) -> dict[str, Tensor]:
    distiller.zero_grad()
    torch.manual_seed(0)
    losses(*batch())[0].backward()
    return {name: one.grad.clone() for name, one in distiller.trained().items() if one.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_from_what_is_inside_its_teacher(family: str) -> None:
    found = gradients(*[distiller_of(family, {"relations": 1.0, "hidden": 1.0}, head="none")] * 2)
    assert all(one.isfinite().all() for one in found.values())
    assert {f"projections.{place}.weight" for place in range(3)} < found.keys()


@pytest.mark.parametrize("family", WITH_HEAD)
def test_it_learns_from_its_teachers_predictions(family: str) -> None:
    distiller = distiller_of(family, {"ce": 1.0, "mlm": 1.0})
    found = gradients(distiller, distiller)
    assert all(one.isfinite().all() for one in found.values())
    assert any(one.abs().max() > 0.01 for one in found.values())


@pytest.mark.parametrize("family", ["bert", "modernbert", "mpnet"])
def test_compiles_as_one_graph(family: str) -> None:
    torch.compiler.reset()
    distiller = distiller_of(family, {"mlm": 1.0, "relations": 1.0, "hidden": 1.0}).train()
    plain = gradients(distiller, distiller)
    compiled = gradients(distiller, torch.compile(distiller, backend="eager", fullgraph=True, dynamic=False))
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_heads", [None, 4])
def test_what_is_kept_is_a_better_start_than_chance(num_heads: int | None) -> None:
    """Of a trained teacher, which random ones cannot stand for: at the first step, on text."""
    teacher, tokenizer = load_masked_lm(SHIPPED), load_tokenizer(SHIPPED)
    text = " ".join(str(getattr(torch, name).__doc__) for name in ("add", "cat", "gather", "matmul"))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][: 16 * 30]).view(16, 30)
    ids = torch.nn.functional.pad(ids, (1, 1), value=tokenizer.sep_token_id)
    positions = torch.arange(1, 31, 7).expand(16, -1)
    labels = ids.gather(1, positions)
    rows = ids.scatter(1, positions, tokenizer.mask_token_id)
    sums = {}
    for init in ("teacher", "random"):
        student = student_of(teacher, Sizes(128, num_heads), layers=2, init=init)
        hidden_states = choose_hidden_states(teacher, student, "uniform", "mse")
        weights: dict[Term, float] = {"mlm": 1.0, "hidden": 1.0}
        options = {"temperature": 1.0, "hidden_states": hidden_states}
        distiller = Distiller(student, teacher, weights=weights, ce_positions="masked", **options).eval()
        with torch.no_grad():
            sums[init] = distiller(rows, positions, labels, torch.ones(()))[1]
    assert sums["teacher"]["mlm"] < 0.8 * sums["random"]["mlm"]
    assert sums["teacher"]["hidden"] < 0.7 * sums["random"]["hidden"]


def test_maps_to_the_teachers_width_begin_with_the_dimensions_that_were_kept() -> None:
    distiller = distiller_of("bert", {"hidden": 1.0})
    assert distiller.intermediate is not None
    kept = distiller.student.kept_dimensions
    assert kept.tolist() != [*range(NUM_KEPT)]
    for layer in distiller.intermediate.projections:
        assert torch.equal(layer.weight[kept], torch.eye(NUM_KEPT))
        assert layer.weight.sum() == NUM_KEPT


def test_hidden_states_of_other_widths_have_no_cosine() -> None:
    with pytest.raises(InputError, match="32 wide, the student's 16; expected the same for loss_cos"):
        distiller_of("bert", {"cos": 1.0})
