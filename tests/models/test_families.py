"""What the families' table says, against models of each family: hooks, compiling, loading, and what is refused."""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import NUM_LAYERS, VOCAB_SIZE, WITH_HEAD, random_ids, small_encoder, small_model
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    DebertaV2ForMaskedLM,
    ElectraForPreTraining,
    PreTrainedModel,
)

from distil_ray.distillation.distiller import Distiller
from distil_ray.errors import InputError
from distil_ray.models import loading
from distil_ray.models.families import (
    FAMILIES,
    Family,
    first_position,
    head_width,
    layers_of,
    num_key_heads,
    own_fields,
    projections_of,
    split_projections,
)
from distil_ray.models.student import build_student

B, T, K = 2, 12, 3


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    positions = torch.arange(1, 1 + K).expand(B, K)
    return random_ids(B, T), positions, torch.full((B, K), 5), torch.ones(())


def small_distiller(family: str) -> Distiller:
    """Of two layers: the second of a ModernBERT has local attention."""
    teacher, other = (small_model(family, seed=seed, num_hidden_layers=2) for seed in (0, 7))
    student = build_student(other, layers=2, architecture="same", init="teacher", seed=0)
    weights = {"ce": 0.5, "mlm": 0.3, "cos": 0.2}
    return Distiller(student, teacher, weights=weights, temperature=2.0, ce_positions="masked").eval()


# ------------------------------------------------------------------------------------------------ calling


def once_a_family(names: Iterable[str]) -> list[Any]:
    """Names of which those with an entry of their own in the table come first; for the others, tests are slow ones."""
    seen: list[Family] = []
    return [
        pytest.param(name, marks=pytest.mark.slow) if FAMILIES[name] in seen else seen.append(FAMILIES[name]) or name
        for name in names
    ]


@pytest.mark.parametrize("family", once_a_family(WITH_HEAD))
def test_compiles_as_one_graph(family: str) -> None:
    torch.compiler.reset()
    distiller = small_distiller(family).train()
    check_compiled(distiller, torch.compile(distiller, backend="eager", fullgraph=True, dynamic=False))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("family", ["modernbert", "eurobert", "mpnet"])
def test_compiled_by_inductor_trains_the_same(family: str) -> None:
    torch.compiler.reset()
    distiller = small_distiller(family)
    check_compiled(distiller, torch.compile(distiller, fullgraph=True, dynamic=False))


def check_compiled(distiller: Distiller, compiled: nn.Module) -> None:
    gradients = []
    for losses in (distiller, compiled):
        distiller.zero_grad()
        torch.manual_seed(0)
        losses(*batch())[0].backward()
        gradients.append({name: weight.grad for name, weight in distiller.named_parameters()})
    assert any(gradient.abs().max() > 0.01 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", once_a_family(FAMILIES))
def test_queries_keys_and_values_can_be_had_from_a_compiled_encoder(family: str) -> None:
    torch.compiler.reset()
    model = small_encoder(family, num_hidden_layers=2)
    projected: dict[int, Tensor] = {}

    def keep_first(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            projected.setdefault(index, out)

        return hook

    for index, module in enumerate(projections_of(model, 1)):
        module.register_forward_hook(keep_first(index))

    def outputs(input_ids: Tensor) -> tuple[Tensor, ...]:
        projected.clear()
        hidden = loading.encode(model, input_ids)
        return hidden, *split_projections([projected[index] for index in sorted(projected)])

    with torch.no_grad():
        plain = outputs(random_ids(B, T))
        compiled = torch.compile(outputs, backend="eager", fullgraph=True)(random_ids(B, T))
    width = num_key_heads(model.config) * head_width(model.config)
    assert [tuple(tensor.shape) for tensor in plain] == [(B, T, 32), (B, T, 32), (B, T, width), (B, T, width)]
    assert width == (16 if family == "eurobert" else 32)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_fused_projection_is_split_as_the_model_splits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At position 0, rotary embeddings turn nothing: what SDPA gets there is what was projected."""
    model, seen, outputs = small_model("modernbert"), [], []
    attention = torch.nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        seen.append((query, key, value))
        return attention(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    projections_of(model, 1)[0].register_forward_hook(lambda module, args, out: outputs.append(out))
    loading.encode(model, random_ids(B, T))
    for split, used in zip(split_projections(outputs), seen[1], strict=True):
        torch.testing.assert_close(split[:, 0], used[:, :, 0].flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_depends_on_the_data(family: str) -> None:
    """Tensors without data cannot be waited for: a look at which of the ids are padding raises."""
    hidden = loading.encode(small_encoder(family).to("meta").train(), random_ids(B, T).to("meta"))
    assert hidden.shape == (B, T, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_in_a_row_counts_as_a_word(family: str) -> None:
    """As rows have none, nothing looks for it; positions do not depend on the ids."""
    model, ids = small_encoder(family), random_ids(1, T)
    seen: list[Tensor] = []
    names = [name for name, _ in model.named_modules() if name.endswith("position_embeddings")]
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loading.encode(model, ids)
    ids[0, 3] = model.config.pad_token_id
    loading.encode(model, ids)
    expected = torch.arange(T) + first_position(model.config)
    assert all(torch.equal(positions.flatten(), expected) for positions in seen)
    assert len(seen) == 2 * len(names)


def test_positions_of_mpnet_do_not_depend_on_the_padding_of_its_configuration() -> None:
    model, ids = small_encoder("mpnet", pad_token_id=0), random_ids(2, T)
    torch.testing.assert_close(loading.encode(model, ids), model(input_ids=ids).last_hidden_state)
    assert (first_position(model.config), loading.max_tokens(model)) == (2, 22)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_with_a_head_and_without(family: str) -> None:
    models = [small_encoder(family)] + ([small_model(family)] if family in WITH_HEAD else [])
    for model in models:
        layers = layers_of(model)
        assert len(layers) == NUM_LAYERS
        assert len({type(layer) for layer in layers}) == 1
        assert sum(p.numel() for p in layers.parameters()) > 0.5 * model.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_lists_of_the_configuration_are_known(family: str) -> None:
    """A list with an entry per layer that the table does not name would be kept at the teacher's length."""
    config = small_encoder(family, num_hidden_layers=7).config
    lists = {name: value for name in own_fields(type(config)) if isinstance(value := getattr(config, name, 0), list)}
    assert {name for name, value in lists.items() if len(value) == 7} == set(FAMILIES[family].per_layer_fields)


# ------------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_of_a_model_with_another_head_or_none(family: str, tmp_path: Path) -> None:
    encoder = small_encoder(family)
    encoder.save_pretrained(tmp_path / "bare")
    loading.load_classifier(str(tmp_path / "bare"), 3, seed=0).save_pretrained(tmp_path / "classifier")
    for folder in ("bare", "classifier"):
        loaded = loading.load_encoder(str(tmp_path / folder))
        assert getattr(loaded, "pooler", None) is None
        assert loaded.dtype == torch.float32
        assert not loaded.training
        assert loaded.config._attn_implementation == FAMILIES[family].attention
        ids = random_ids(2, 9)
        torch.testing.assert_close(loading.encode(loaded, ids), loading.encode(encoder, ids), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_outlines_have_the_shapes_of_what_is_loaded(family: str, tmp_path: Path) -> None:
    small_encoder(family).save_pretrained(tmp_path)
    with torch.device("meta"):
        outline = loading.outline_encoder(str(tmp_path))
    assert outline.device.type == "meta"
    assert shapes(outline) == shapes(loading.load_encoder(str(tmp_path)))


def shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}


def test_encoder_of_a_discriminator(tmp_path: Path) -> None:
    discriminator = AutoModelForPreTraining.from_config(small_model("electra").config)
    assert isinstance(discriminator, ElectraForPreTraining)
    discriminator.eval().save_pretrained(tmp_path)
    ids = random_ids(2, 9)
    expected = discriminator.electra(input_ids=ids).last_hidden_state
    torch.testing.assert_close(loading.encode(loading.load_encoder(str(tmp_path)), ids), expected)
    with pytest.raises(InputError, match=r"no weights for generator_lm_head.*expected a whole model with its masked-l"):
        loading.load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("load", [loading.load_masked_lm, loading.outline_masked_lm])
def test_heads_of_deberta_are_refused(load, tmp_path: Path) -> None:
    config = small_encoder("deberta-v2").config
    DebertaV2ForMaskedLM(config).save_pretrained(tmp_path)
    message = r"model_type 'deberta-v2', whose published models have no .* 22790\); expected a type with one \(bert, "
    with pytest.raises(InputError, match=message):
        load(str(tmp_path))
    for given in (str(tmp_path), {"model_type": "deberta-v2"}):
        with pytest.raises(InputError, match="whose published models have no"):
            loading.model_from_config(given, VOCAB_SIZE, 0, seed=0)


@pytest.mark.parametrize("damage", ["missing", "other shape", "not finite"])
def test_damaged_encoder_is_refused(damage: str, tmp_path: Path) -> None:
    encoder = copy.deepcopy(small_encoder("modernbert"))
    if damage == "not finite":
        with torch.no_grad():
            encoder.layers[1].mlp.Wo.weight[0, 0] = float("nan")
    encoder.save_pretrained(tmp_path)
    if damage != "not finite":
        changed = {"vocab_size": VOCAB_SIZE + 1} if damage == "other shape" else {"norm_bias": True}
        rewrite_config(tmp_path, lambda config: config | changed)
    message = {
        "missing": r"has no weights for .*norm\.bias, .*; expected a whole encoder \(an AutoModel\)",
        "other shape": r"tok_embeddings\.weight has the shape \[61, 32\] in the file, and \[62, 32\]",
        "not finite": r"weights of layers\.1\.mlp\.Wo\.weight are not finite",
    }[damage]
    with pytest.raises(InputError, match=message):
        loading.load_encoder(str(tmp_path))


@pytest.mark.parametrize("family", [name for name in WITH_HEAD if "is_decoder" in own_fields(CONFIG_MAPPING[name])])
def test_decoders_are_refused(family: str, tmp_path: Path) -> None:
    small_encoder(family).save_pretrained(tmp_path)
    rewrite_config(tmp_path, lambda config: config | {"is_decoder": True})
    for load in (loading.load_encoder, loading.load_masked_lm):
        with pytest.raises(InputError, match=r"set up as a decoder .*; expected an encoder"):
            load(str(tmp_path))


@pytest.mark.parametrize("family", [name for name in WITH_HEAD if FAMILIES[name].first_position is None])
def test_families_that_count_from_padding_need_it(family: str, tmp_path: Path) -> None:
    small_model(family).save_pretrained(tmp_path)
    rewrite_config(tmp_path, lambda config: config | {"pad_token_id": None})
    with pytest.raises(InputError, match=f"no pad_token_id, from which {family} counts its positions"):
        loading.load_masked_lm(str(tmp_path))


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(config)))


def test_modernbert_as_it_was_published(tmp_path: Path) -> None:
    """With transformers 4's fields: which layers are global by a number, and one base of positions for each kind."""
    types = ["full_attention", "sliding_attention"] * 2
    kinds = {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip(types, (5e3, 7e3), strict=False)
    }
    model = small_model("modernbert", layer_types=types, rope_parameters=kinds)
    model.save_pretrained(tmp_path)
    published = {"global_attn_every_n_layers": 2, "global_rope_theta": 5e3, "local_rope_theta": 7e3}
    published |= {"position_embedding_type": "absolute", "gradient_checkpointing": False, "reference_compile": True}
    today = {"layer_types", "rope_parameters"}
    rewrite_config(tmp_path, lambda config: {k: v for k, v in config.items() if k not in today} | published)
    teacher, ids = loading.load_masked_lm(str(tmp_path)), random_ids(2, 9)
    torch.testing.assert_close(teacher(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)
    student = build_student(teacher, layers=[0, 2, 3], architecture="same", init="teacher", seed=0)
    student.save_pretrained(tmp_path / "student")
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert reloaded.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert reloaded.config.rope_parameters == model.config.rope_parameters
    torch.testing.assert_close(reloaded(input_ids=ids).logits, student.eval()(input_ids=ids).logits, rtol=0, atol=0)


def test_code_that_comes_with_a_model_is_not_needed_where_transformers_has_its_class(tmp_path: Path) -> None:
    """As in the published EuroBERT."""
    model, ids = small_model("eurobert"), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    code = {"AutoConfig": "own.EuroBertConfig", "AutoModelForMaskedLM": "own.EuroBertForMaskedLM"}
    rewrite_config(tmp_path, lambda config: config | {"auto_map": code, "hidden_dropout": 0.0, "pad_token": "<eos>"})
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')")
    loaded = loading.load_masked_lm(str(tmp_path))
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ students


@pytest.mark.parametrize("family", WITH_HEAD)
def test_a_students_settings_are_its_teachers_but_for_its_layers(family: str, tmp_path: Path) -> None:
    teacher = small_model(family)
    student = build_student(teacher, layers=3, architecture="same", init="teacher", seed=0)
    student.save_pretrained(tmp_path)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path).config
    ours = {name: getattr(teacher.config, name) for name in own_fields(type(teacher.config))}
    changed = {name for name, value in ours.items() if getattr(reloaded, name) != value}
    assert changed - {"tie_word_embeddings"} == {
        type(teacher.config).attribute_map.get("num_hidden_layers", "num_hidden_layers"),
        *FAMILIES[family].per_layer_fields,
    }
    assert all(len(getattr(reloaded, name)) == 3 for name in FAMILIES[family].per_layer_fields)
