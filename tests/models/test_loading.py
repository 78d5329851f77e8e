"""Models: encoder and head apart give what transformers gives together; whatever cannot work is refused by name."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from small_models import NUM_LAYERS, VOCAB_SIZE, WITH_HEAD, random_ids, small_encoder, small_model
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from training_parts import save_model
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from distil_ray.errors import InputError
from distil_ray.models import loading
from distil_ray.models.families import FAMILIES

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def small_tokenizer(tokens: list[str] = TOKENS, **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **(special or SPECIAL))


@pytest.mark.parametrize("model_type", WITH_HEAD)
def test_encoder_and_head_apart_equal_the_whole_model(model_type: str) -> None:
    model = small_model(model_type)
    input_ids = random_ids(3, 17)
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        hidden = loading.encode(model, input_ids)
        logits = loading.predict(model, hidden.flatten(0, 1)).unflatten(0, (3, 17))
    assert hidden.shape == (3, 17, 32)
    assert expected.std() > 0.5  # a model with something to say
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_encoder_without_a_head_equals_transformers_own(model_type: str) -> None:
    model = small_encoder(model_type)
    input_ids = random_ids(3, 17)
    with torch.no_grad():
        expected = model(input_ids=input_ids).last_hidden_state
        torch.testing.assert_close(loading.encode(model, input_ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", [name for name in WITH_HEAD if FAMILIES[name].attention == "sdpa"])
def test_attention_gets_no_mask_but_that_of_its_window(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(model_type)
    attention, masks = torch.nn.functional.scaled_dot_product_attention, []

    def record_mask(*args: Any, attn_mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record_mask)
    loading.encode(model, random_ids(2, 9))
    kinds = getattr(model.config, "layer_types", ["full_attention"] * NUM_LAYERS)
    assert [mask is not None for mask in masks] == [kind == "sliding_attention" for kind in kinds]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_longest_row_is_the_last_that_has_positions(model_type: str) -> None:
    model = small_encoder(model_type)
    longest = loading.max_tokens(model)
    # RoBERTa's positions start after padding_idx, 1; MPNet's always at 2.
    assert longest == (22 if FAMILIES[model_type].first_position != 0 else 24)
    loading.encode(model, random_ids(1, longest))
    if model_type not in ("modernbert", "eurobert", "deberta-v2"):  # relative positions have no end
        with pytest.raises((IndexError, RuntimeError)):
            loading.encode(model, random_ids(1, longest + 1))


@pytest.mark.parametrize("model_type", WITH_HEAD)
def test_saved_model_loads_in_fp32_with_the_same_outputs(model_type: str, tmp_path: Path) -> None:
    model = small_model(model_type)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = loading.load_masked_lm(str(tmp_path))
    assert loaded.dtype == torch.float32
    assert loaded.config._attn_implementation == ("eager" if model_type == "mpnet" else "sdpa")
    assert not loaded.training
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.float(), rtol=0, atol=0)


def test_untied_model_keeps_its_own_head(tmp_path: Path) -> None:
    model = small_model("bert", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded = loading.load_masked_lm(str(tmp_path))
    ids = random_ids(2, 8)
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "ernie", "mpnet"])
@pytest.mark.parametrize("kept", ["", ".decoder"])
def test_untied_head_whose_bias_stands_under_one_of_its_names(family: str, kept: str, tmp_path: Path) -> None:
    """As transformers 4.57 saves it, which takes the two names for one weight."""
    model = small_model(family, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (name,) = (name for name in weights if name.endswith(".decoder.bias"))
    bias = weights.pop(name)
    weights[name.replace(".decoder", kept)] = bias
    if kept:
        del weights[name.replace(".decoder", "")]
    else:
        assert not torch.equal(model.get_parameter(name.replace(".decoder", "")), bias)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, ids = loading.load_masked_lm(str(tmp_path)), random_ids(2, 8)
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    loading.agree_twins(loaded)
    assert torch.equal(loaded.get_parameter(name.replace(".decoder", "")), bias)


def test_head_whose_bias_is_nowhere_is_refused(tmp_path: Path) -> None:
    small_model("bert", tie_word_embeddings=False).save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if name not in BIASES}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for cls\.predictions\.bias, cls\.predictions\.decoder\.bias"):
        loading.load_masked_lm(str(tmp_path))


BIASES = {"cls.predictions.bias", "cls.predictions.decoder.bias"}


def test_configured_extra_outputs_are_switched_off(tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    extra = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | extra))
    loaded = loading.load_masked_lm(str(tmp_path))
    assert loaded(input_ids=random_ids(1, 4)).hidden_states is None
    loaded.save_pretrained(tmp_path / "again")
    assert not extra.keys() & json.loads((tmp_path / "again" / "config.json").read_text()).keys()


def test_random_head_is_refused(tmp_path: Path) -> None:
    small_model("bert").base_model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no weights for cls\.predictions.*expected a whole model"):
        loading.load_masked_lm(str(tmp_path))


def test_other_family_is_refused_with_those_that_work(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"'gpt2'; the types that work are bert, distilbert, roberta, xlm-roberta"):
        loading.load_masked_lm(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_decoder": True}, "decoder"),
        ({"add_cross_attention": True}, "decoder"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute'"),
    ],
)
def test_other_kinds_of_bert_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        loading.load_masked_lm(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/at/all", "does not exist"),
        ("./nowhere", "does not exist"),
        (
            "s3://bucket/teacher",
            "cannot load a .*: s3://bucket/teacher does not exist; expected a local folder or a Hub id",
        ),
    ],
)
def test_missing_folder(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loading.load_masked_lm(path)
    with pytest.raises(InputError, match=message):
        loading.load_tokenizer(path)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        loading.load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("damage", ["config", "weights", "no weights"])
def test_damaged_model_folder(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small_model("bert").save_pretrained(tmp_path)
    capfd.readouterr()
    if damage == "config":
        (tmp_path / "config.json").write_text("{")
    elif damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"\x08" * 40)
    else:
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot load a masked language model from the folder"):
        loading.load_masked_lm(str(tmp_path))
    assert capfd.readouterr() == ("", "")


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_weights_of_other_shapes_are_named_with_both(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small_model("bert").save_pretrained(tmp_path)
    change_config(tmp_path, vocab_size=VOCAB_SIZE + 9)
    capfd.readouterr()
    message = rf"word_embeddings\.weight has the shape \[{VOCAB_SIZE}, 32\] in the file, and \[{VOCAB_SIZE + 9}, 32\]"
    for load in (loading.load_masked_lm, lambda path: loading.load_classifier(path, 2, 0)):
        with pytest.raises(InputError, match=message):
            load(str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_head_of_another_task_is_replaced(tmp_path: Path) -> None:
    save_model(tmp_path / "mlm", small_model("bert"))
    loading.load_classifier(str(tmp_path / "mlm"), 5, 0).save_pretrained(tmp_path / "five")
    assert loading.load_classifier(str(tmp_path / "five"), 2, 0).classifier.weight.shape == (2, 32)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 440449768\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointer_in_place_of_weights(name: str, tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(InputError, match=f"{name} is a Git LFS pointer and not the file itself; run `git lfs pull`"):
        loading.load_masked_lm(str(tmp_path))


def test_git_lfs_pointer_beside_weights_is_left_alone(tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text(POINTER)
    loading.load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("content", ["objects", "junk", "nothing", "cut"])
def test_pickle_that_is_not_tensors_alone_is_never_run(content: str, tmp_path: Path) -> None:
    model = small_model("bert")
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    if content == "objects":
        torch.save(model, file)
    elif content == "cut":
        torch.save(model.state_dict(), file)
        file.write_bytes(file.read_bytes()[:3000])
    else:
        file.write_bytes(b"junk" * 100 if content == "junk" else b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is damaged|failed") as caught:
        loading.load_masked_lm(str(tmp_path))
    assert "weights_only" not in str(caught.value)
    assert ("BertForMaskedLM" in str(caught.value)) == (content == "objects")


def test_cut_safetensors_say_so(tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"damaged or cut short \(.*\); copy or download the \.safetensors again"):
        loading.load_masked_lm(str(tmp_path))


def test_model_with_code_of_its_own(tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    change_config(tmp_path, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForMaskedLM": "own.OwnLM"})
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(
        InputError, match=r"needs Python code that comes with it \(auto_map\), and such code is never run"
    ):
        loading.load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    model = small_model("bert")
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.1.output.dense.weight")[3, 4] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"1 of 1,536 weights of bert\.encoder\.layer\.1\.output\.dense\.weight are not"
    ):
        loading.load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("family", WITH_HEAD)
def test_outputs_that_are_not_finite_are_refused(family: str) -> None:
    model = small_model(family)
    loading.check_finite_outputs(model, random_ids(3, 20), "teacher")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2e38)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    with pytest.raises(InputError, match=r"the teacher's outputs are not finite .*in torch\.float32; nothing can be"):
        loading.check_finite_outputs(model, random_ids(3, 20), "teacher")


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"no local folder 'someone/no-such-model', and the cache has nothing.*network"
    ):
        loading.load_masked_lm("someone/no-such-model")


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path)
    tokenizer = loading.load_tokenizer(str(tmp_path))
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(TOKENS)}
    assert tokenizer.mask_token_id == 4


def test_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    small_tokenizer(cls_token="[CLS]", sep_token="[SEP]").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no mask and no pad token"):
        loading.load_tokenizer(str(tmp_path))


def test_model_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    small_model("bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds no tokenizer"):
        loading.load_tokenizer(str(tmp_path))


def test_untrained_model_depends_on_the_seed_alone() -> None:
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    state = torch.random.get_rng_state()
    first, again, other = (loading.model_from_config(config, 30, 0, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "bert.embeddings.word_embeddings.weight"
    assert first[name].shape == (30, 16)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("as_file", [True, False])
def test_untrained_model_from_a_config_on_disk(as_file: bool, tmp_path: Path) -> None:
    small_model("roberta").config.save_pretrained(tmp_path)
    path = tmp_path / "config.json" if as_file else tmp_path
    config = loading.model_from_config(str(path), 77, 3, seed=0).config
    assert (config.model_type, config.vocab_size, config.pad_token_id) == ("roberta", 77, 3)
    assert config.hidden_size == 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type is None; the types that work are bert"),
        ({"model_type": "gpt2"}, "'gpt2'"),
        ({"model_type": "bert", "hiden_size": 8}, "'hiden_size'.*did you mean hidden_size"),
        ({"model_type": "bert", "hidden_size": "wide"}, "does not fit.*hidden_size"),
        ({"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}, "does not fit.*multiple"),
        ("/nowhere/config.json", "does not exist"),
    ],
)
def test_configuration_that_makes_no_model(config: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loading.model_from_config(config, 30, 0, seed=0)


def test_equal_vocabularies_pass() -> None:
    loading.check_vocabulary(small_tokenizer(), small_tokenizer())


def test_swapped_tokens_are_named_with_both_ids() -> None:
    swapped = [*TOKENS[:5], "b", "a", "c"]
    with pytest.raises(InputError, match=r"first in the token 'a': its id is 5 for the teacher, 6 for the student"):
        loading.check_vocabulary(small_tokenizer(), small_tokenizer(swapped))


def test_longer_vocabulary_is_named_with_both_sizes() -> None:
    message = r"teacher \(8 tokens\) and student \(9 tokens\).*'d': its id is none for the teacher, 8 for the student"
    with pytest.raises(InputError, match=message):
        loading.check_vocabulary(small_tokenizer(), small_tokenizer([*TOKENS, "d"]))


def test_tokenizer_must_fit_the_model() -> None:
    loading.check_vocabulary_fits(small_model("bert"), small_tokenizer())
    too_many = small_tokenizer([*TOKENS, *(f"t{i}" for i in range(VOCAB_SIZE))])
    with pytest.raises(InputError, match=f"tokenizer has ids for 69 tokens, the model only {VOCAB_SIZE}"):
        loading.check_vocabulary_fits(small_model("bert"), too_many)


@pytest.mark.parametrize(("family", "num_types"), [("bert", 2), ("bert", 1), ("distilbert", 0)])
def test_pairs_are_told_apart_only_by_models_that_can(tmp_path, family, num_types):
    fields = {"type_vocab_size": num_types} if num_types else {}
    folder = save_model(tmp_path, small_model(family, **fields))
    model = loading.load_classifier(folder, 2, 0)
    tokenizer = loading.load_tokenizer_of(model, folder)

    encoded = tokenizer([("w1", "w2 w3")], return_tensors="pt")
    assert ("token_type_ids" in encoded) == (num_types == 2)
    assert model(**encoded).logits.shape == (1, 2)
