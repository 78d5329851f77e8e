"""What stands beside scores: rows used, what one answer for all rows scores, and how weights are stored."""

import numpy as np
import pytest
import torch
from glue_rows import write_glue
from small_models import small_model
from training_parts import save_model

from distil_ray.errors import InputError
from distil_ray.evaluation.facts import facts_of, stored_weights
from distil_ray.evaluation.protocol import Finetuning, OwnTask, load_protocol
from distil_ray.evaluation.tasks import TASKS, Answers, Rows, chosen_tasks, own_task, read_tasks
from distil_ray.models.origin import Origin


def test_facts_are_those_of_rows_and_protocol(tmp_path):
    protocol = load_protocol([], ["finetuning.max_train_rows=40", "finetuning_of.stsb.num_epochs=7"])
    tasks, data = read_tasks(chosen_tasks(["sst2", "stsb"], str(write_glue(tmp_path)), {}), protocol)
    sst2, stsb = (facts_of(task, data[task.name], protocol.finetuning_on(task.name)) for task in tasks)

    assert (sst2.num_train_rows, sst2.num_rows_there, sst2.num_validation_rows, sst2.num_epochs) == (40, 96, 96, 3)
    assert sst2.metrics == ("accuracy",)
    assert stsb.num_epochs == 7
    assert stsb.constant_score == 0.0  # a correlation with one number for all rows


def labelled(*labels):
    return Rows([("a",)] * len(labels), np.array(labels))


def test_the_constant_answer_is_the_commonest_class_of_the_training_rows():
    splits = {"train": labelled(0, 1, 1), "validation": labelled(1, 1, 1, 0)}
    accuracy, f1 = 75.0, 100 * 6 / 7
    assert facts_of(TASKS["mrpc"], splits, Finetuning()).constant_score == pytest.approx((accuracy + f1) / 2)
    both = {"train": labelled(2, 0, 0), "matched": labelled(0, 0), "mismatched": labelled(2, 1)}
    facts = facts_of(TASKS["mnli"], both, Finetuning())
    assert (facts.constant_score, facts.num_validation_rows) == (50.0, 4)


def test_the_constant_answer_to_questions_is_none():
    task = own_task("squad", OwnTask(kind="span", hub="x"))
    rows = Rows([("q", "blue")] * 4, [Answers(("blue",), (0,)), Answers((), ()), Answers((), ()), Answers((), ())])
    assert facts_of(task, {"train": rows, "validation": rows}, Finetuning()).constant_score == 75.0


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
    stored = stored_weights(Origin(str(tmp_path)))
    assert stored.dtype == name
    assert stored.num_bytes == (tmp_path / ("pytorch_model.bin" if as_bin else "model.safetensors")).stat().st_size


def test_where_both_are_there_the_safetensors_count(tmp_path):
    save_model(tmp_path, small_model("bert", num_hidden_layers=1))
    (tmp_path / "pytorch_model.bin").write_bytes(b"whatever")
    assert stored_weights(Origin(str(tmp_path))).num_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_model_of_the_hub_that_has_pytorch_model_bin_only(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--org--bert" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    torch.save(small_model("bert").state_dict(), snapshot / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    stored = stored_weights(Origin("org/bert", commit))
    assert stored == ((snapshot / "pytorch_model.bin").stat().st_size, "fp32")


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(InputError, match=r"has no weights; expected model.safetensors or pytorch_model.bin"):
        stored_weights(Origin(str(tmp_path)))
