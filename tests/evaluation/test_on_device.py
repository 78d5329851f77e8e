"""The exported files are the model: at any batch size and length, in every family; int8 nearly so."""

import copy
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from glue_rows import write_glue
from small_models import VOCAB_SIZE, small_model
from training_parts import CPU, T, save_model, small_tokenizer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from distil_ray.errors import InputError, RunError
from distil_ray.evaluation.deployment import (
    FORMATS,
    INT8_FILE,
    LOW_AGREEMENT,
    MODEL_FILE,
    TOLERANCE,
    OnnxModel,
    check,
    export_and_check,
    export_onnx,
    logits_of,
    quantize,
)
from distil_ray.evaluation.finetuning import Finetuner
from distil_ray.evaluation.protocol import Finetuning, Protocol
from distil_ray.evaluation.speed import as_function
from distil_ray.evaluation.tasks import chosen_tasks, read_tasks
from distil_ray.models.loading import load_classifier


def disturbed(model):
    """Every weight random, so that a mix-up of inputs, positions or biases shows in the logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def padded_batch(model, num_rows, num_tokens):
    """A full row, and others that end in padding; a type for each token where the family has several."""
    generator = np.random.default_rng(num_tokens)
    shape = (num_rows, num_tokens)
    lengths = np.maximum(num_tokens - np.arange(num_rows), 1)
    attention_mask = (np.arange(num_tokens) < lengths[:, None]).astype(np.int64)
    input_ids = np.where(attention_mask, generator.integers(2, VOCAB_SIZE, shape), model.config.pad_token_id)
    num_types = getattr(model.config, "type_vocab_size", 1)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": generator.integers(0, num_types, shape),
    }


def assert_same_at_any_size(model, path, names):
    run, exported = as_function(model, CPU), OnnxModel(path, num_threads=1)
    for num_rows, num_tokens in ((1, 1), (1, 9), (5, 2), (7, 20)):
        batch = padded_batch(model, num_rows, num_tokens)
        expected, found = run(batch), exported(batch)
        assert list(found) == list(expected) == names
        for name in names:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=TOLERANCE)
            assert np.ptp(expected[name]) > 100 * TOLERANCE or num_rows == 1


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_the_file_is_the_model_at_any_size(tmp_path, capfd, caplog, recwarn, family):
    model = disturbed(load_classifier(save_model(tmp_path, small_model(family, num_hidden_layers=1)), 3, 0))
    capfd.readouterr()
    path = export_onnx(model, small_tokenizer(), tmp_path / "onnx")
    quantize(tmp_path / "onnx")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert not recwarn.list
    assert_same_at_any_size(model, path, ["logits"])


def test_a_model_that_answers_questions(tmp_path):
    folder = save_model(tmp_path, small_model("distilbert", n_layers=1))
    model = disturbed(AutoModelForQuestionAnswering.from_pretrained(folder))
    path = export_onnx(model, small_tokenizer(), tmp_path / "onnx")
    assert_same_at_any_size(model, path, ["start_logits", "end_logits"])


# A DistilBERT that has learned made-up SST-2


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The model and its validation rows."""
    folder = tmp_path_factory.mktemp("tuned")
    ((task,), data) = read_tasks(chosen_tasks(["sst2"], str(write_glue(folder / "glue")), {}), Protocol())
    model = load_classifier(save_model(folder / "model", small_model("distilbert", n_layers=1)), 2, 0)
    protocol = Finetuning(learning_rate=3e-3, num_epochs=8, batch_size=16, max_seq_length=T)
    finetuner = Finetuner(model, small_tokenizer(), task, protocol, seed=1, device=CPU)
    finetuner.train(data["sst2"])
    validation = data["sst2"]["validation"]
    assert finetuner.score({"validation": validation})["score"] > 80
    return model, validation


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
    """Both files of the model, in a folder that was not there, and what was found of each format."""
    model, rows = tuned
    folder = tmp_path_factory.mktemp("on-device") / "a" / "b"
    checked = export_and_check(model, small_tokenizer(), rows, folder, T)
    return folder, checked


def test_a_fine_tuned_student_as_onnx_and_as_int8(tuned, exported):
    model, _ = tuned
    folder, checked = exported
    original, whole, int8 = checked.values()
    assert list(checked) == list(FORMATS)
    assert_same_at_any_size(model, folder / MODEL_FILE, ["logits"])
    num_bytes = (folder / MODEL_FILE).stat().st_size
    assert num_bytes > 4 * sum(p.numel() for p in model.parameters())
    assert (original.max_difference, original.agreement) == (0, 1)
    assert whole.max_difference < TOLERANCE
    assert whole.agreement == 1
    assert (folder / INT8_FILE).stat().st_size < 0.7 * num_bytes
    assert TOLERANCE < int8.max_difference < 1
    assert int8.agreement > 0.95
    assert min(whole.agreement, int8.agreement) >= LOW_AGREEMENT


def test_int8_holds_embeddings_and_matrices_in_a_byte(tuned, exported):
    import onnx

    model, _ = tuned
    weights = onnx.load(exported[0] / INT8_FILE).graph.initializer
    sizes = {
        kind: sum(np.prod(w.dims) for w in weights if w.data_type == kind) for kind in {w.data_type for w in weights}
    }
    num_matrix_weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert sizes[onnx.TensorProto.INT8] + sizes[onnx.TensorProto.UINT8] >= num_matrix_weights
    matrices = [
        onnx.numpy_helper.to_array(w) for w in weights if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2
    ]
    assert matrices
    assert all(np.abs(matrix).max() <= 64 for matrix in matrices)  # what x86 without VNNI multiplies without overflow


def test_the_folder_runs_without_torch_models(tuned, exported):
    import onnxruntime

    model, rows = tuned
    folder, _ = exported
    assert sorted(file.name for file in folder.iterdir()) == [
        *("config.json", "model-int8.onnx", "model.onnx", "tokenizer.json", "tokenizer_config.json"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([text for (text,) in rows.texts], padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert session.get_outputs()[0].shape == ["batch", 2]
    (logits,) = session.run(None, dict(batch))
    np.testing.assert_allclose(logits, logits_of(as_function(model, CPU), small_tokenizer(), rows, T), atol=TOLERANCE)


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(exported):
    for name in (MODEL_FILE, INT8_FILE):
        assert b".py" not in (exported[0] / name).read_bytes()


def test_another_model_than_the_files_is_refused(tuned, exported):
    model, rows = tuned
    folder, checked = exported
    path = folder / MODEL_FILE
    logits = logits_of(OnnxModel(path, 1), small_tokenizer(), rows, T)
    np.testing.assert_array_equal(logits, checked["ONNX"].logits)
    assert check(path, checked["PyTorch"].logits, logits, TOLERANCE)[1:] == checked["ONNX"][1:]
    other = as_function(disturbed(copy.deepcopy(model)), CPU)
    with pytest.raises(RunError, match=r"model.onnx is not the model it was made from: a logit differs by \d"):
        check(path, logits_of(other, small_tokenizer(), rows, T), logits, TOLERANCE)


# What counts as equal

FILE = Path("model.onnx")


def test_figures_of_a_comparison():
    reference = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.5, 0.4]])
    logits = np.array([[1.0, 2.0], [3.0, 0.5], [0.0, 1.0], [0.5, 0.75]])
    assert check(FILE, reference, logits)[1:] == (0.5, 0.75)
    numbers = np.array([[1.0], [2.0], [5.0], [4.0]])
    assert check(FILE, numbers, numbers + np.array([[0.0], [0.25], [-0.5], [0.125]]))[1:] == (0.5, 0.75)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((3, 1)), r"shape \(3, 1\), the original model \(3, 2\)"),  # which NumPy would stretch
        (np.full((3, 2), np.nan), "not finite"),
    ],
)
def test_what_is_no_comparison_is_an_error_for_int8_too(logits, message):
    with pytest.raises(RunError, match=message):
        check(FILE, np.zeros((3, 2)), logits)


# What cannot be exported


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tuned, exported, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what is not to be found
    folder, _ = exported
    for call in (
        lambda: export_onnx(tuned[0], small_tokenizer(), tmp_path / "onnx"),
        lambda: quantize(folder),
        lambda: OnnxModel(folder / MODEL_FILE, 1),
    ):
        with pytest.raises(InputError, match=rf"needs {package}, not .* pip install 'distil-ray\[onnx\]'"):
            call()
    assert not (tmp_path / "onnx").exists()


def test_a_model_too_large_for_one_file(tmp_path):
    with torch.device("meta"):  # weights without memory
        model = small_model("bert", vocab_size=2**25)
    with pytest.raises(InputError, match=r"has 4.4 GB of weights; an ONNX file holds 2.1 GB at most"):
        export_onnx(model, small_tokenizer(), tmp_path)
