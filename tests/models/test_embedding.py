"""A student's folder makes vectors in sentence-transformers as its teacher's does, of its own hidden states."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_folders import write_modules
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import CNN, Dense, LayerNorm, Normalize, Pooling, Transformer
from small_models import small_model
from training_parts import save_model, small_config, small_pair, small_tokenizer
from transformers import AutoModel

from distil_ray.errors import InputError
from distil_ray.models.embedding import NO_FILES, sentence_transformers_files
from distil_ray.models.origin import Origin
from distil_ray.runs.storage import RunFolder
from distil_ray.training.export import export_student

pytest_plugins = ("local_hub",)

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w3 w2"]
NARROW = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}

logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


@pytest.fixture
def teacher(tmp_path):
    return Path(save_model(tmp_path / "teacher", small_model("bert")))


def exported(tmp_path, student, files):
    folder = RunFolder(str(tmp_path), "run")
    export_student(folder, student, small_tokenizer(), small_config(), {"step": 1, "tokens": 2}, files)
    return Path(folder.join("export"))


def pooled(model, length=6):
    """The mean of the last hidden states of each text [N, D], cut to ``length`` pieces."""
    rows = []
    for text in TEXTS:
        encoded = small_tokenizer()(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            rows.append(model.eval().base_model(input_ids=encoded["input_ids"]).last_hidden_state[0].mean(0))
    return torch.stack(rows)


def normalized(vectors):
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


@pytest.mark.parametrize(
    "student",
    [
        pytest.param(lambda: small_model("bert", **NARROW), id="narrower"),
        pytest.param(lambda: small_model("bert", num_hidden_layers=2).base_model, id="without a head"),
        pytest.param(lambda: small_pair()[1], id="of another family"),
    ],
)
def test_an_export_makes_the_students_vectors(tmp_path, teacher, student):
    student = student()
    settings = {"__version__": {"sentence_transformers": "2.0.0"}, "prompts": {}, "similarity_fn_name": "cosine"}
    (write_modules(teacher) / "config_sentence_transformers.json").write_text(json.dumps(settings))
    files, omitted = sentence_transformers_files(Origin(str(teacher)), student)
    assert omitted == []
    assert set(files) == {
        *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    }
    if student.base_model is student:  # not what a run exports
        save_model(tmp_path / "export", student)
        for name, content in files.items():
            (tmp_path / "export" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "export" / name).write_bytes(content)
        folder = tmp_path / "export"
    else:
        folder = exported(tmp_path, student, files)
        assert 'SentenceTransformer(".")' in (folder / "README.md").read_text()
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert loaded.get_embedding_dimension() == student.config.hidden_size
    np.testing.assert_allclose(loaded.encode(TEXTS), normalized(pooled(student)), atol=1e-5)
    assert AutoModel.from_pretrained(folder).config.model_type == student.config.model_type


def test_lengths_are_those_that_the_student_has_positions_for(teacher):
    write_modules(teacher)
    (teacher / "sentence_bert_config.json").write_text('{"max_seq_length": 100, "do_lower_case": false}')
    files, _ = sentence_transformers_files(Origin(str(teacher)), small_model("bert"))
    assert json.loads(files["sentence_bert_config.json"]) == {"max_seq_length": 24, "do_lower_case": False}
    (teacher / "sentence_bert_config.json").unlink()
    assert "sentence_bert_config.json" not in sentence_transformers_files(Origin(str(teacher)), small_pair()[1]).files


@pytest.fixture
def projecting(tmp_path, teacher):
    """A folder as today's version writes it, with weights after the pooling."""
    torch.manual_seed(0)
    parts = [Transformer(str(teacher)), Pooling(32), LayerNorm(32), Dense(32, 8), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "projecting"))
    return tmp_path / "projecting", parts


def test_weights_for_the_students_width_are_copied(tmp_path, projecting):
    folder, (_, _, norm, dense, _) = projecting
    student = small_model("bert", num_hidden_layers=1)
    files, omitted = sentence_transformers_files(Origin(str(folder)), student)
    assert omitted == []
    assert {"2_LayerNorm/model.safetensors", "3_Dense/model.safetensors"} <= files.keys()
    found = SentenceTransformer(str(exported(tmp_path, student, files)), device="cpu").encode(TEXTS)
    with torch.no_grad():
        expected = torch.tanh(dense.linear(norm.norm(pooled(student, 12))))
    np.testing.assert_allclose(found, normalized(expected), atol=1e-5)


def test_weights_for_another_width_are_left_out_and_said(tmp_path, projecting):
    folder, _ = projecting
    student = small_model("bert", **NARROW)
    files, omitted = sentence_transformers_files(Origin(str(folder)), student)
    assert omitted == [
        f"export: {name} of {folder} is left out, as it takes vectors of 32, the student's have 16"
        for name in ("2_LayerNorm", "3_Dense")
    ]
    found = SentenceTransformer(str(exported(tmp_path, student, files)), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, normalized(pooled(student, 12)), atol=1e-5)


def test_other_modules_are_left_out_and_said(tmp_path, teacher):
    parts = [Transformer(str(teacher)), CNN(32, 4), Pooling(12)]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "other"))
    student = small_model("bert", num_hidden_layers=1)
    files, omitted = sentence_transformers_files(Origin(str(tmp_path / "other")), student)
    assert omitted == [f"export: 1_CNN of {tmp_path}/other is left out, as it is not supported"]
    found = SentenceTransformer(str(exported(tmp_path, student, files)), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, pooled(student, 12), atol=1e-5)


def test_other_teachers_have_no_such_files(tmp_path, teacher):
    assert sentence_transformers_files(Origin(str(teacher)), small_pair()[1]) == NO_FILES
    assert "SentenceTransformer" not in (exported(tmp_path, small_pair()[1], {}) / "README.md").read_text()


def test_a_teacher_of_the_hub_is_that_of_its_commit(local_hub, projecting):
    folder, _ = projecting
    content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    commit = local_hub.push("org/small", content, kind="models")
    local_hub.push("org/small", {"config.json": content["config.json"]}, kind="models")
    student = small_model("bert", num_hidden_layers=1)
    expected = sentence_transformers_files(Origin(str(folder)), student)
    assert sentence_transformers_files(Origin("org/small", commit), student) == expected
    assert sentence_transformers_files(Origin("org/small"), student) == NO_FILES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "modules.json cannot be read"),
        ('[{"idx": 0}]', "modules.json has an entry without type and path"),
        ('[{"type": "a.Dense", "path": "../x"}]', r"modules.json names \.\./x, expected a folder within the model's"),
        ('[{"type": "a.Pooling", "path": "1_P"}]', r"modules.json names 1_P, where there is no config\.json"),
        ('[{"type": "a.Dense", "path": "/x"}]', "modules.json names /x, expected a folder within the model's"),
    ],
)
def test_damaged_files(teacher, content, message):
    (teacher / "modules.json").write_text(content)
    with pytest.raises(InputError, match=message):
        sentence_transformers_files(Origin(str(teacher)), small_pair()[1])
