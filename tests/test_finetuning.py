"""Fine-tuning learns, repeats itself, and takes every row once an epoch."""

import numpy as np
import pytest
import torch
from glue_rows import write_glue
from small_models import small_model
from training_parts import save_model

from distil_ray.distillation.models import load_classifier, load_tokenizer
from distil_ray.errors import InputError
from distil_ray.evaluation.finetuning import batches, finetune, task_loss
from distil_ray.evaluation.glue import TASKS, read_split
from distil_ray.evaluation.protocol import Finetuning

QUICK = Finetuning(learning_rate=3e-3, num_epochs=12, batch_size=16, max_seq_length=12)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), small_model("bert"))


def tuned(folder, glue, name, seed=1, protocol=QUICK):
    task = TASKS[name]
    splits = {split: read_split(str(glue), task, split) for split in ("train", "validation")}
    model = load_classifier(folder, task.num_labels, seed)
    return finetune(
        model,
        load_tokenizer(folder),
        task,
        splits["train"],
        {"validation": splits["validation"]},
        protocol,
        seed=seed,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(("name", "metrics"), [("sst2", ["accuracy"]), ("stsb", ["pearson", "spearman"])])
def test_it_learns_and_repeats_itself(model_folder, tmp_path, name, metrics):
    glue = write_glue(tmp_path)
    found = tuned(model_folder, glue, name)

    assert list(found) == [*(f"validation/{metric}" for metric in metrics), "score"]
    assert found["score"] == pytest.approx(np.mean(list(found.values())[:-1]))
    assert found["score"] > 80
    assert tuned(model_folder, glue, name) == found


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-3},
        {"num_epochs": 11},
        {"batch_size": 8},
        {"max_seq_length": 8},
        {"warmup_fraction": 0.5},
        {"weight_decay": 0.5},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_key_has_an_effect(model_folder, tmp_path, change):
    glue, other = write_glue(tmp_path, num_rows=48), QUICK.model_copy(update=change)
    assert tuned(model_folder, glue, "stsb") != tuned(model_folder, glue, "stsb", protocol=other)


def test_another_seed_is_another_head_and_order(model_folder):
    first, same, other = (load_classifier(model_folder, 2, seed) for seed in (1, 1, 2))

    torch.testing.assert_close(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    torch.testing.assert_close(
        first.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight
    )


def test_batches_hold_all_rows_once_and_little_padding():
    lengths = list(np.random.default_rng(0).integers(5, 100, size=500))
    first, second = (list(batches(lengths, 16, np.random.default_rng(seed))) for seed in (0, 1))

    assert sorted(np.concatenate(first).tolist()) == list(range(500))
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in first)
    assert padded < 1.1 * sum(lengths)


def test_losses():
    logits = torch.tensor([[2.0], [0.0]])
    assert task_loss(TASKS["stsb"], logits, torch.tensor([1.0, 2.0])) == pytest.approx((1 + 4) / 2)
    logits = torch.tensor([[0.0, 0.0]])
    assert task_loss(TASKS["sst2"], logits, torch.tensor([1])).item() == pytest.approx(np.log(2))


def test_a_model_that_lacks_a_layer_is_refused(tmp_path):
    folder = save_model(tmp_path, small_model("bert", num_hidden_layers=1))
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(InputError, match=r"has no weights for bert.encoder.layer.1"):
        load_classifier(folder, 2, 0)
