"""The exported folder: an ordinary Hugging Face model that knows nothing of this package."""

import json
import subprocess
import sys

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
import yaml
from small_models import WITH_HEAD, random_ids, small_model
from tokenizer_zoo import BERT_TOKENS, HOSTILE_TEXTS, ZOO, save_filed, wordpiece
from training_parts import B, save_model, small_config, small_pair, small_tokenizer
from transformers import AutoTokenizer

from distil_ray.config import parse_config
from distil_ray.models.loading import load_tokenizer
from distil_ray.runs.storage import RunFolder
from distil_ray.training.export import export_student, model_card

pytest_plugins = ("local_s3",)

SUMMARY = {
    "step": 12_345,
    "tokens": 12_345 * B,
    "eval/mlm_loss": 2.34567,
    "eval/mlm_accuracy": 0.56789,
    "eval/kl_to_teacher": 0.3,
    "eval/teacher_agreement": None,
}

# In a process of its own, where this package cannot be imported.
LOAD = """
import json, sys
sys.modules["distil_ray"] = None
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
model, info = AutoModelForMaskedLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model.eval()(**tokenizer("w3 w17 [MASK] w5", return_tensors="pt")).logits
print(json.dumps({
    "type": type(model).__name__,
    "logits": logits.tolist(),
    "wrong": [sorted(keys) for keys in info.values()],
    "dtypes": sorted({str(parameter.dtype) for parameter in model.parameters()}),
}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported student, and the folder of its run."""
    folder = RunFolder(str(tmp_path_factory.mktemp("export")), "small")
    _, student = small_pair()
    export_student(folder, student.train(), small_tokenizer(), small_config(), SUMMARY)
    return student.eval(), folder


def test_transformers_alone_loads_the_same_model(exported):
    student, folder = exported
    command = [sys.executable, "-W", "ignore", "-c", LOAD, folder.join("export")]
    loaded = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    with torch.no_grad():
        expected = student(**small_tokenizer()("w3 w17 [MASK] w5", return_tensors="pt")).logits
    assert expected.shape[1] == 6
    torch.testing.assert_close(torch.tensor(loaded["logits"]), expected, rtol=1e-5, atol=1e-5)
    assert loaded["type"] == "DistilBertForMaskedLM"
    assert not any(loaded["wrong"])
    assert loaded["dtypes"] == ["torch.float32"]


def test_the_folder_holds_safetensors_with_each_weight_once(exported):
    student, folder = exported
    names = RunFolder(folder.path, "export").names()
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    weights = safetensors.torch.load(folder.read_bytes("export/model.safetensors"))
    assert sum(weight.numel() for weight in weights.values()) == student.num_parameters()
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight


def test_the_tokenizer_truncates_to_what_the_student_takes(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    tokenizer = small_tokenizer()
    tokenizer.model_max_length = 512
    _, student = small_pair()
    export_student(folder, student, tokenizer, small_config(), SUMMARY)
    loaded = AutoTokenizer.from_pretrained(folder.join("export"))
    assert len(loaded("w1 " * 100, truncation=True)["input_ids"]) == student.config.max_position_embeddings


def test_the_configuration_is_that_of_the_model_alone(exported):
    _, folder = exported
    config = folder.read_json("export/config.json")
    assert config["architectures"] == ["DistilBertForMaskedLM"]
    assert not {"output_hidden_states", "output_attentions", "return_dict", "_name_or_path"} & config.keys()


@pytest.mark.parametrize("family", WITH_HEAD)
def test_every_family_comes_back(tmp_path, family):
    student = small_model(family)
    folder = RunFolder(str(tmp_path), "a")
    export_student(folder, student, small_tokenizer(), small_config(), SUMMARY)
    loaded = type(student).from_pretrained(folder.join("export")).eval()
    with torch.no_grad():
        assert torch.equal(loaded(random_ids(2, 8)).logits, student(random_ids(2, 8)).logits)
    earliest = "5.3" if family in ("modernbert", "eurobert") else "4.57"
    assert f"with transformers {earliest} or later:" in folder.read_bytes("export/README.md").decode()


def test_exports_to_s3(bucket):
    folder = RunFolder("s3://runs/below", "a")
    export_student(folder, small_pair()[1], small_tokenizer(), small_config(), SUMMARY)
    assert safetensors.torch.load(folder.read_bytes("export/model.safetensors"))
    assert 'AutoTokenizer.from_pretrained(".")' in folder.read_bytes("export/README.md").decode()


# The model card


def test_the_card_tells_what_the_model_is(exported):
    student, folder = exported
    card = folder.read_bytes("export/README.md").decode()
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(header)["pipeline_tag"] == "fill-mask"
    assert body.strip().startswith("# small\n")
    assert f"1 layers and {student.num_parameters():,} parameters, distilled from `unused` with" in body
    assert "| MLM loss (nats per masked token) | 2.3457 |" in body
    assert "| MLM accuracy | 0.5679 |" in body
    assert "| KL divergence from the teacher (nats) | 0.3000 |" in body
    assert "agreement" not in body.partition("```yaml")[0]  # there was no such figure
    assert "12,345 steps of 8 rows, 98,760 tokens of `unused`" in body
    settings = yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])
    assert (settings["teacher"]["path"], settings["run"]["storage_path"]) == ("unused", "unused")
    settings["teacher"]["path"] = settings["run"]["storage_path"] = settings["data"]["sources"][0]["path"] = "/unused"
    assert parse_config(settings) == small_config()


def test_the_cards_example_runs(exported, monkeypatch):
    _, folder = exported
    monkeypatch.chdir(folder.join("export"))
    example = folder.read_bytes("export/README.md").decode().partition("```python\n")[2].partition("```")[0]
    names = {}
    exec(example, names)
    assert names["model"].num_parameters() == exported[0].num_parameters()
    assert names["tokenizer"].mask_token == "[MASK]"


def header_of(card):
    return yaml.safe_load(card.removeprefix("---\n").partition("\n---\n")[0])


def test_the_card_names_every_kind_of_source_and_no_folder_of_this_machine(tmp_path):
    teacher = tmp_path / "secret" / "runs" / "big" / "export"
    save_model(teacher, small_model("bert"))
    (teacher / "README.md").write_text("---\nlicense: mit\nlanguage: [de, en]\nmetrics: [f1]\n---\n# Big\n")
    sources = [
        {"path": str(tmp_path / "secret" / "a.parquet")},
        {"path": str(tmp_path / "secret" / "wiki" / "*.parquet")},
        {"path": "s3://bucket/b.parquet"},
        {"path": "hf://datasets/org/texts@v1/data/**"},
        {"hub": "org/more"},
        {"docstrings": "installed"},
    ]
    config = small_config(data__sources=sources, teacher__path=str(teacher), run__storage_path=str(tmp_path / "secret"))
    card = model_card(small_pair()[1], config, SUMMARY)
    assert (
        "of `a.parquet`, `wiki/*.parquet`, `s3://bucket/b.parquet`, `hf://datasets/org/texts@v1/data/**`, `org/more`, "
        "`docstrings: installed`. Settings:"
    ) in card
    assert "distilled from `big/export`" in card
    assert str(tmp_path) not in card
    header = header_of(card)
    assert header.pop("model-index")[0]["results"][0]["dataset"] == {"name": "held-out text", "type": "text"}
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["distil_ray", "distillation"],
        "datasets": ["org/texts", "org/more"],
        "metrics": ["accuracy"],
        "language": ["de", "en"],
        "license": "mit",
    }


@pytest.mark.parametrize("card", ["", "no metadata", "---\n: {\n---\n", "---\n- a list\n---\n"])
def test_the_card_does_without_one_of_the_teacher(tmp_path, card):
    save_model(tmp_path / "teacher", small_model("bert"))
    (tmp_path / "teacher" / "README.md").write_text(card)
    config = small_config(teacher__path=str(tmp_path / "teacher"))
    assert {"license", "language", "base_model"}.isdisjoint(header_of(model_card(small_pair()[1], config, SUMMARY)))


def test_a_teacher_of_the_hub_is_the_base_model(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = small_config(teacher__path="org/teacher")
    assert header_of(model_card(small_pair()[1], config, SUMMARY))["base_model"] == "org/teacher"
    snapshot = tmp_path / "models--org--teacher" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlanguage: sw\n---\n")
    header = header_of(model_card(small_pair()[1], config, SUMMARY))
    assert (header["license"], header["license_name"], header["language"]) == ("other", "own", "sw")


def test_the_card_of_a_run_without_teacher_and_evaluation():
    config = small_config(
        teacher=None, student__path="/unused", distill={"alpha_ce": 0.0, "alpha_mlm": 1.0, "alpha_cos": 0.0}
    )
    card = model_card(small_model("bert"), config, {"step": 1, "tokens": 2})
    assert "trained by masked language modelling with distil_ray" in card
    assert "No text was held out." in card
    assert header_of(card) == {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["distil_ray"]}


# The tokenizer


@pytest.mark.parametrize(
    ("family", "num_types"), [("bert", 2), ("bert", 1), ("distilbert", 0), ("roberta", 1)], ids=str
)
def test_pairs_of_texts_go_through_plain_transformers(tmp_path, family, num_types):
    student = small_model(family, **({"type_vocab_size": num_types} if num_types else {}))
    folder = RunFolder(str(tmp_path), "run")
    export_student(folder, student, small_tokenizer(), small_config(), SUMMARY)
    encoded = AutoTokenizer.from_pretrained(folder.join("export"))([("w1", "w2 w3")], return_tensors="pt")
    assert ("token_type_ids" in encoded) == (num_types == 2)
    model = type(student).from_pretrained(folder.join("export"))
    assert model(**encoded).logits.shape == (1, 6, student.config.vocab_size)


@pytest.mark.parametrize("kind", ZOO)
def test_what_was_used_comes_back(tmp_path, kind):
    ZOO[kind](tmp_path / "original")
    tokenizer = load_tokenizer(str(tmp_path / "original"))
    folder = RunFolder(str(tmp_path), "run")
    export_student(folder, small_pair()[1], tokenizer, small_config(), SUMMARY)
    config = folder.read_json("export/tokenizer_config.json")
    assert config["tokenizer_class"] != "TokenizersBackend"  # which transformers 4 does not know
    assert "extra_special_tokens" not in config  # of which it expects a mapping
    assert not {"is_local", "local_files_only"} & config.keys()
    loaded = AutoTokenizer.from_pretrained(folder.join("export"))
    assert loaded.all_special_ids == tokenizer.all_special_ids
    for text in HOSTILE_TEXTS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_tokenizer_that_is_not_as_its_class_comes_back_as_it_was_used(tmp_path):
    small_model("roberta").config.save_pretrained(tmp_path / "original")
    save_filed(tmp_path / "original", wordpiece(), BERT_TOKENS)
    tokenizer = load_tokenizer(str(tmp_path / "original"))
    folder = RunFolder(str(tmp_path), "run")
    export_student(folder, small_model("roberta"), tokenizer, small_config(), SUMMARY)
    loaded = AutoTokenizer.from_pretrained(folder.join("export"))
    assert loaded.tokenize("The lazy fox") == ["the", "lazy", "fox"]
    assert "token_type_ids" not in loaded("the", "fox")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_both_names_of_an_untied_heads_bias_hold_what_is_in_use(tmp_path, family):
    student = small_model(family, tie_word_embeddings=False)
    folder = RunFolder(str(tmp_path), "run")
    export_student(folder, student, small_tokenizer(), small_config(), SUMMARY)
    weights = safetensors.torch.load(folder.read_bytes("export/model.safetensors"))
    (name,) = (name for name in weights if name.endswith(".decoder.bias"))
    assert torch.equal(weights[name], student.get_parameter(name))
    assert torch.equal(weights[name.replace(".decoder", "")], weights[name])


def test_the_card_says_what_was_skipped_of_the_text_and_warns():
    _, student = small_pair()
    counts = {"data/documents": 100, "data/skipped_documents": 20, "data/skipped_not_utf8": 20}
    counts |= {"data/pieces": 1000, "data/unknown_pieces": 100}
    card = model_card(student, small_config(), SUMMARY | counts)
    assert "Of the text, 20 of 100 documents skipped (20.0%): 20 not UTF-8; 10.00% of the pieces are [UNK]." in card
    assert "**Warning**: 20.0% of the documents that hold something cannot be used" in card
    assert "**Warning**: 10.0% of the pieces are [UNK]" in card
    assert "Warning" not in model_card(student, small_config(), SUMMARY)
