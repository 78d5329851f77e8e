"""Students: which layers they take over, and that they start from exactly what the teacher knows."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from small_models import NUM_LAYERS, WITH_HEAD, random_ids, small_model
from transformers import AutoModelForMaskedLM, PreTrainedModel

from distil_ray.errors import InputError
from distil_ray.models.families import FAMILIES, layers_of
from distil_ray.models.student import (
    Architecture,
    Init,
    build_student,
    evenly_spaced,
    select_layers,
    set_attention_dropout,
)

PAIRS: list[tuple[str, Architecture]] = [("bert", "distilbert"), *((family, "same") for family in WITH_HEAD)]


def logits(model: PreTrainedModel, *, is_training: bool = False) -> torch.Tensor:
    model.train(is_training)
    with torch.no_grad():
        return model(input_ids=random_ids(3, 15)).logits


def num_parameters(model: PreTrainedModel, part: str = "") -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if part in name)


def test_half_of_twelve_layers_are_those_of_distilbert() -> None:
    assert select_layers(12, None) == [0, 2, 4, 7, 9, 11]
    assert select_layers(12, 6) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize("total", range(1, 26))
def test_evenly_spaced_layers_include_both_ends_without_repeats(total: int) -> None:
    assert evenly_spaced(total, 1) == [0]
    assert evenly_spaced(total, total) == list(range(total))
    for kept in range(2, total + 1):
        layers = evenly_spaced(total, kept)
        assert (layers[0], layers[-1], len(layers)) == (0, total - 1, kept)
        steps = {after - before for before, after in itertools.pairwise(layers)}
        assert min(steps) >= 1
        assert max(steps) - min(steps) <= 1


def test_layers_given_as_a_list_are_kept_as_they_are() -> None:
    assert select_layers(12, [11, 0, 5]) == [11, 0, 5]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "asks for 0 layers; expected 1 to 4"),
        (5, "asks for 5 layers; expected 1 to 4"),
        ([], "empty"),
        ([0, 4, -1], r"teacher layers \[4, -1\] do not exist; expected 0 to 3"),
        ([1, 2, 1], "twice"),
    ],
)
def test_layers_that_cannot_be_taken_are_refused(layers: int | list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_layers(4, layers)


@pytest.mark.parametrize(("family", "architecture"), PAIRS)
def test_student_with_all_layers_equals_the_teacher(family: str, architecture: Architecture) -> None:
    teacher = small_model(family)
    student = build_student(teacher, layers=NUM_LAYERS, architecture=architecture, init="teacher", seed=0)
    assert student.config.model_type == ("distilbert" if architecture == "distilbert" else family)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "architecture"), PAIRS)
def test_student_equals_a_teacher_without_the_other_layers(family: str, architecture: Architecture) -> None:
    teacher = small_model(family)
    kept = [0, 2, 3] if FAMILIES[family].is_first_layer_special else [3, 1]
    student = build_student(teacher, layers=kept, architecture=architecture, init="teacher", seed=0)
    before, layers = logits(teacher), layers_of(teacher)
    for index, layer in enumerate([layers[index] for index in kept]):
        layers[index] = layer
    del layers[len(kept) :]
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)
    assert (logits(student) - before).abs().max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "architecture"), PAIRS)
def test_student_ties_its_head_as_the_teacher_does(family: str, architecture: Architecture, tied: bool) -> None:
    teacher = small_model(family, tie_word_embeddings=tied)
    student = build_student(teacher, layers=NUM_LAYERS, architecture=architecture, init="teacher", seed=0)
    assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) == tied
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


def test_head_untied_against_the_configuration_is_kept(tmp_path: Path) -> None:
    small_model("bert", tie_word_embeddings=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    teacher = AutoModelForMaskedLM.from_pretrained(tmp_path)
    student = build_student(teacher, layers=NUM_LAYERS, architecture="distilbert", init="teacher", seed=0)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "architecture"), PAIRS)
def test_student_has_its_own_weights(family: str, architecture: Architecture) -> None:
    teacher = small_model(family)
    before = logits(teacher)
    student = build_student(teacher, layers=2, architecture=architecture, init="teacher", seed=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(logits(teacher), before)


@pytest.mark.parametrize(("family", "architecture"), PAIRS)
def test_saved_student_is_plain_and_reloads(family: str, architecture: Architecture, tmp_path: Path) -> None:
    teacher = small_model(family)
    teacher.config.output_hidden_states = True
    student = build_student(teacher, layers=None, architecture=architecture, init="teacher", seed=0)
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"output_hidden_states", "output_attentions", "_name_or_path"} & config.keys()
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(reloaded) is type(student)
    torch.testing.assert_close(logits(reloaded), logits(student), rtol=0, atol=0)


def test_parameters_of_half_the_layers() -> None:
    teacher = small_model("bert")
    half_the_layers = num_parameters(teacher, "encoder.layer") // 2
    same = build_student(teacher, layers=None, architecture="same", init="teacher", seed=0)
    assert num_parameters(same) == num_parameters(teacher) - half_the_layers
    distilbert = build_student(teacher, layers=None, architecture="distilbert", init="teacher", seed=0)
    assert num_parameters(distilbert) == num_parameters(same) - num_parameters(teacher, "token_type_embeddings")


@pytest.mark.parametrize(("family", "architecture"), PAIRS)
def test_random_student_is_a_function_of_its_seed(family: str, architecture: Architecture) -> None:
    teacher = small_model(family)
    state = torch.random.get_rng_state()
    first, again, other = (
        build_student(teacher, layers=2, architecture=architecture, init="random", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    assert first.config.num_hidden_layers == 2
    word_embeddings = first.get_input_embeddings().weight
    assert (word_embeddings - teacher.get_input_embeddings().weight).abs().max() > 0.1


def test_settings_of_each_layer_go_with_it(tmp_path: Path) -> None:
    """Of six layers of a ModernBERT, the first and the fourth attend to all tokens."""
    teacher = small_model("modernbert", num_hidden_layers=6)
    build_student(teacher, layers=[0, 3, 5], architecture="same", init="teacher", seed=0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    assert len(teacher.config.layer_types) == 6


@pytest.mark.parametrize("init", ["teacher", "random"])
def test_a_first_layer_that_is_special_comes_first(init: Init) -> None:
    with pytest.raises(InputError, match=r"layers \[3, 0\] begin with 3; expected 0 first, .* of modernbert models"):
        build_student(small_model("modernbert"), layers=[3, 0], architecture="same", init=init, seed=0)


@pytest.mark.parametrize("family", WITH_HEAD)
def test_class_by_default(family: str) -> None:
    student = build_student(small_model(family), layers=1, architecture=None, init="random", seed=0)
    assert student.config.model_type == ("distilbert" if family == "bert" else family)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "modernbert"])
def test_others_cannot_become_distilbert(family: str) -> None:
    with pytest.raises(InputError, match=f"{family} teacher cannot become a DistilBERT student.*'same'"):
        build_student(small_model(family), layers=None, architecture="distilbert", init="teacher", seed=0)


def test_distilbert_teacher_stays_one_either_way() -> None:
    teacher = small_model("distilbert")
    student = build_student(teacher, layers=NUM_LAYERS, architecture="distilbert", init="teacher", seed=0)
    assert torch.equal(logits(student), logits(teacher))


def test_other_layer_norm_eps_cannot_become_distilbert() -> None:
    teacher = small_model("bert", layer_norm_eps=1e-5)
    with pytest.raises(InputError, match=r"layer_norm_eps is 1e-05, DistilBERT's is always 1e-12.*'same'"):
        build_student(teacher, layers=None, architecture="distilbert", init="teacher", seed=0)


def test_decoder_cannot_be_distilled() -> None:
    teacher = small_model("bert")
    teacher.config.is_decoder = True
    with pytest.raises(InputError, match="decoder"):
        build_student(teacher, layers=None, architecture="same", init="teacher", seed=0)


@pytest.mark.parametrize("family", [name for name in WITH_HEAD if FAMILIES[name].attention == "sdpa"])
def test_attention_dropout_reaches_every_layer_and_the_saved_configuration(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def record(*args: torch.Tensor, dropout_p: float, **kwargs: object) -> torch.Tensor:
        seen.append(dropout_p)
        return attention(*args, dropout_p=dropout_p, **kwargs)

    model = small_model(family).train()
    set_attention_dropout(model, 0.25)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    model(input_ids=random_ids(1, 5))
    model.save_pretrained(tmp_path)
    AutoModelForMaskedLM.from_pretrained(tmp_path).train()(input_ids=random_ids(1, 5))
    assert seen == [0.25] * 2 * NUM_LAYERS
    others = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} - {0.25}
    assert others <= {0.1}


@pytest.mark.parametrize("family", WITH_HEAD)
@pytest.mark.parametrize("probability", [0.0, 0.4])
def test_attention_dropout_is_what_a_saved_model_has(family: str, probability: float, tmp_path: Path) -> None:
    model = small_model(family)
    set_attention_dropout(model, probability)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation=FAMILIES[family].attention)
    outputs = {}
    for name, one in (("set", model), ("reloaded", reloaded)):
        for module in one.modules():
            if isinstance(module, torch.nn.Dropout) and module.p == 0.1:
                module.p = 0.0
        torch.manual_seed(0)
        outputs[name] = logits(one, is_training=True)
    assert torch.equal(outputs["set"], outputs["reloaded"])
    assert torch.allclose(outputs["set"], logits(model), atol=1e-4) == (probability == 0.0)
