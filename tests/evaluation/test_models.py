"""What is known of a model without loading its weights, and what of it is sent to other processes."""

import pickle

import pytest
import torch
from small_models import small_model
from training_parts import save_model

from distil_ray.errors import InputError
from distil_ray.evaluation.models import Model
from distil_ray.models.origin import Origin


def test_only_name_and_place_are_sent_to_other_processes(tmp_path):
    model = Model("half", Origin(save_model(tmp_path, small_model("bert", num_hidden_layers=1))))
    assert model.tokenizer is model.tokenizer
    assert model.num_parameters == model.encoder.base_model.num_parameters()
    sent = pickle.loads(pickle.dumps(model))
    assert sent == model
    assert sent.__dict__.keys() == {"name", "origin"}
    assert sent.digests == model.digests


def test_half_of_the_layers_are_half_of_the_work_and_nothing_is_loaded_for_it(tmp_path):
    models = []
    for layers in (4, 2):
        save_model(tmp_path / str(layers), small_model("distilbert", num_hidden_layers=layers))
        models.append(Model("any", Origin(str(tmp_path / str(layers)))))
    assert models[0].work_per_token == 2 * models[1].work_per_token
    assert "encoder" not in models[0].__dict__


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")]
)
@pytest.mark.parametrize("as_bin", [False, True])
def test_bytes_and_format_of_stored_weights(tmp_path, dtype, name, as_bin):
    model = small_model("bert", num_hidden_layers=1).to(dtype)
    save_model(tmp_path, model)
    if as_bin:
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        torch.save({"lr": torch.zeros(10**6)}, tmp_path / "training_args.bin")  # what trainers leave beside it
    stored = Model("half", Origin(str(tmp_path))).stored
    assert stored.dtype == name
    assert stored.num_bytes == (tmp_path / ("pytorch_model.bin" if as_bin else "model.safetensors")).stat().st_size


def test_where_both_are_there_the_safetensors_count(tmp_path):
    save_model(tmp_path, small_model("bert", num_hidden_layers=1))
    (tmp_path / "pytorch_model.bin").write_bytes(b"whatever")
    assert Model("half", Origin(str(tmp_path))).stored.num_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_model_of_the_hub_that_has_pytorch_model_bin_only(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--org--bert" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    torch.save(small_model("bert").state_dict(), snapshot / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    stored = Model("bert", Origin("org/bert", commit)).stored
    assert stored == ((snapshot / "pytorch_model.bin").stat().st_size, "fp32")


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(InputError, match=r"has no weights; expected model.safetensors or pytorch_model.bin"):
        _ = Model("half", Origin(str(tmp_path))).stored
