"""Fine-tuning learns, from labels and from a teacher, repeats itself, and takes every row once an epoch."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from glue_rows import write_glue
from operations import Operations
from small_models import small_model
from training_parts import save_model, small_tokenizer

from distil_ray.errors import InputError
from distil_ray.evaluation import finetuning
from distil_ray.evaluation.finetuning import Finetuner, SoftTargets, adapter_of, batches, task_loss
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import Finetuning, Protocol, SecondStep
from distil_ray.evaluation.results import FinetuneJob
from distil_ray.evaluation.tasks import TASKS, Rows, chosen_tasks, read_tasks
from distil_ray.models.loading import load_classifier, load_tokenizer
from distil_ray.models.origin import Origin

QUICK = Finetuning(learning_rate=3e-3, num_epochs=12, batch_size=16, max_seq_length=12, precision="fp32")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    # With dropout of everything, of so narrow a model too little is left for each seed to learn from.
    return save_model(tmp_path_factory.mktemp("model"), small_model("bert", hidden_dropout_prob=0.0))


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """Tasks by name, and their rows."""
    tasks = chosen_tasks(["sst2", "stsb"], str(write_glue(tmp_path_factory.mktemp("glue"))), {})
    return read_tasks(tasks, Protocol())[1]


def finetuner(folder, task, protocol=QUICK, seed=1):
    model, cpu = adapter_of(task).load(folder, seed), torch.device("cpu")
    return Finetuner(model, load_tokenizer(folder), task, protocol, seed=seed, device=cpu)


def tuned(folder, glue, name, protocol=QUICK, soft_targets=None, num_rows=None):
    one = finetuner(folder, TASKS[name], protocol)
    splits = glue[name] | {"train": glue[name]["train"].sample(num_rows)}
    one.train(splits, soft_targets)
    return one.score(splits)


@pytest.mark.parametrize(("name", "metrics"), [("sst2", ["accuracy"]), ("stsb", ["pearson", "spearman"])])
def test_it_learns_and_repeats_itself(model_folder, glue, name, metrics):
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
        {"precision": "fp16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_key_has_an_effect(model_folder, glue, change):
    other = QUICK.model_copy(update=change)
    assert tuned(model_folder, glue, "stsb", num_rows=48) != tuned(model_folder, glue, "stsb", other, num_rows=48)


@pytest.mark.parametrize("fastest", ["bf16", "fp32"])
def test_auto_is_the_fastest_precision(model_folder, glue, monkeypatch, fastest):
    monkeypatch.setattr(finetuning, "fastest_precision", lambda device: fastest)
    given, auto = (QUICK.model_copy(update={"precision": precision}) for precision in (fastest, "auto"))
    assert finetuner(model_folder, TASKS["stsb"], auto).precision == fastest
    assert tuned(model_folder, glue, "stsb", given, num_rows=48) == tuned(model_folder, glue, "stsb", auto, num_rows=48)


def test_padding_to_a_multiple_changes_no_more_than_rounding(model_folder, glue):
    """As on a GPU."""
    plain, padded = (finetuner(model_folder, TASKS["stsb"]) for _ in range(2))
    padded._multiple = 4
    lengths = set()
    padded.model.register_forward_pre_hook(
        lambda model, args, kwargs: lengths.add(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    rows = glue["stsb"]["validation"]
    np.testing.assert_allclose(padded.logits(rows), plain.logits(rows), atol=1e-5)
    assert {length % 4 for length in lengths} == {0}


def test_another_seed_is_another_head_and_order(model_folder):
    first, same, other = (load_classifier(model_folder, 2, seed) for seed in (1, 1, 2))

    torch.testing.assert_close(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    torch.testing.assert_close(
        first.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight
    )


def test_on_a_processor_dropout_and_attention_are_our_own(model_folder, glue):
    one = finetuner(model_folder, TASKS["sst2"], QUICK.model_copy(update={"num_epochs": 1}))
    with Operations() as operations:
        one.train({"train": glue["sst2"]["train"].sample(16)})
    assert "random_" in operations.names
    assert "bernoulli_" not in operations.names


@pytest.mark.parametrize("name", ["sst2", "stsb"])
def test_a_teacher_alone_can_be_learned_from(model_folder, glue, name):
    """With alpha 1 the labels have no part in it, not even wrong ones."""
    teacher, rows = finetuner(model_folder, TASKS[name]), glue[name]["train"]
    teacher.train({"train": rows})
    misleading = Rows(rows.texts, rows.labels[::-1].copy())
    soft_targets = SoftTargets(teacher.logits(rows), SecondStep(alpha=1.0))
    student = finetuner(model_folder, TASKS[name], seed=2)
    student.train({"train": misleading}, soft_targets)

    assert student.score(glue[name])["score"] > 50


@pytest.mark.parametrize("change", [{"alpha": 0.9}, {"temperature": 4.0}])
def test_weight_and_temperature_of_the_soft_targets_have_an_effect(model_folder, glue, change):
    logits = [np.array([3.0, 0.0], dtype=np.float32)] * 48
    steps = SecondStep(), SecondStep(**change)
    students = [finetuner(model_folder, TASKS["sst2"]) for _ in steps]
    for student, step in zip(students, steps, strict=True):
        student.train({"train": glue["sst2"]["train"].sample(48)}, SoftTargets(logits, step))
    first, second = (np.stack(student.logits(glue["sst2"]["validation"])) for student in students)
    assert not np.allclose(first, second)


def test_without_weight_the_soft_targets_change_nothing(model_folder, glue):
    logits = [np.array([3.0, 0.0], dtype=np.float32)] * 96
    plain = tuned(model_folder, glue, "sst2")
    assert tuned(model_folder, glue, "sst2", soft_targets=SoftTargets(logits, SecondStep(alpha=0.0))) == plain


def test_soft_targets_of_other_rows_are_refused(model_folder, glue):
    with pytest.raises(InputError, match="the teacher splits the rows into other pieces than the student"):
        tuned(model_folder, glue, "sst2", soft_targets=SoftTargets([np.zeros(2, np.float32)] * 95, SecondStep()))


def test_early_stopping_goes_back_to_the_best_epoch(model_folder, glue):
    """Against wrong labels, whatever is learned makes the score worse."""
    rows = glue["sst2"]["validation"]
    splits = glue["sst2"] | {"validation": Rows(rows.texts, 1 - rows.labels)}
    scores = []
    for patience in (None, 1, 12):
        one = finetuner(model_folder, TASKS["sst2"], QUICK.model_copy(update={"early_stopping_patience": patience}))
        one.train(splits)
        scores.append(one.score(splits)["score"])

    assert scores[0] < 20
    assert scores[2] >= scores[1] > scores[0]


def test_early_stopping_ends_training(model_folder, glue, monkeypatch):
    scores = iter([50.0, 60.0, 60.0, 55.0, 99.0])
    one = finetuner(model_folder, TASKS["sst2"], QUICK.model_copy(update={"early_stopping_patience": 2}))
    weights = []

    def score(splits):
        weights.append(one.model.classifier.weight.detach().clone())
        return {"score": next(scores)}

    monkeypatch.setattr(one, "score", score)
    one.train(glue["sst2"])

    assert len(weights) == 4
    assert torch.equal(one.model.classifier.weight, weights[1])
    assert not torch.equal(weights[1], weights[3])


def test_batches_hold_all_rows_once_and_little_padding():
    lengths = list(np.random.default_rng(0).integers(5, 100, size=500))
    first, second = (list(batches(lengths, 16, np.random.default_rng(seed))) for seed in (0, 1))

    assert sorted(np.concatenate(first).tolist()) == list(range(500))
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in first)
    assert padded < 1.1 * sum(lengths)


def test_the_time_left_goes_by_the_tasks_and_by_how_many_run_at_a_time():
    small, large = Rows([("four",), ("four",)], np.zeros(2)), Rows([("four", "and more")] * 10, np.zeros(10))
    tasks = [finetuning._num_characters({"train": rows, "validation": small}, num_epochs=2) for rows in (small, large)]
    assert tasks == [3 * 2 * 8 + 8, 3 * 2 * 120 + 8]
    assert finetuning._num_characters({"validation": small}, num_epochs=2) == 8
    spent = [(tasks[0], 10.0)]
    assert finetuning._seconds_left(spent, [tasks[0]] * 4, places=2) == 20
    assert finetuning._seconds_left(spent, [tasks[0]], places=2) == 10
    assert finetuning._seconds_left(spent, tasks, places=1) == pytest.approx(10 + 10 * tasks[1] / tasks[0])
    assert finetuning._seconds_left(spent, [], places=2) == 0


def test_the_time_left_goes_by_what_is_under_way_too():
    jobs = [FinetuneJob(Model("any", Origin("/any")), task, 1) for task in ("small", "small", "large")]
    jobs[1] = replace(jobs[1], seed=2)
    work = {job: {"small": 10.0, "large": 40.0}[job.task] for job in jobs}
    assert finetuning._time_left([], {}, jobs, work, places=2) == ""
    # 10 of 60 are done in 10 s, 50 are ahead in two places.
    assert finetuning._time_left([], {jobs[2]: (0.25, 10.0)}, jobs, work, places=2) == ", 0:25 left"
    assert finetuning._time_left([(10.0, 30.0)], {jobs[2]: (0.25, 10.0)}, jobs, work, places=2) == ", 0:50 left"
    assert finetuning._time_left([(10.0, 30.0)], {}, jobs[:1], work, places=2) == ", 0:30 left"


def test_how_far_it_is_is_told_after_each_step(model_folder, glue):
    shares = []
    one = finetuner(model_folder, TASKS["sst2"], QUICK.model_copy(update={"num_epochs": 2}))
    one.train(glue["sst2"] | {"train": glue["sst2"]["train"].sample(40)}, tell=shares.append)
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])  # 3 batches an epoch


def test_losses():
    assert task_loss(torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 2.0])) == pytest.approx((1 + 4) / 2)
    assert task_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item() == pytest.approx(np.log(2))
    starts_and_ends = torch.zeros(1, 2, 4)
    assert task_loss(starts_and_ends, torch.tensor([[3, 1]])).item() == pytest.approx(np.log(4))


PINNED = """
from distil_ray.models.origin import Origin, resolve
from distil_ray.evaluation.finetuning import finetuner_of
from distil_ray.evaluation.tasks import TASKS
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.results import FinetuneJob

print(resolve("org/bert", None).revision)
for commit in ("a" * 40, "b" * 40):
    model = Model("half", Origin("org/bert", commit))
    finetuner = finetuner_of(FinetuneJob(model, "sst2", 1), TASKS["sst2"], Protocol())
    weights = finetuner.model.base_model.embeddings.word_embeddings.weight
    print(weights[0, 0].item(), finetuner.tokenizer.model_max_length)
"""


def test_a_model_of_the_hub_is_that_of_its_commit(tmp_path):
    """Whatever a branch points to now; from a copy of the Hub's cache, without a network."""
    cache = tmp_path / "hub/models--org--bert"
    models = {commit: small_model("bert", num_hidden_layers=1, seed=seed) for seed, commit in enumerate("ab")}
    for length, (commit, model) in enumerate(models.items(), start=10):
        tokenizer = small_tokenizer()
        tokenizer.model_max_length = length
        save_model(cache / "snapshots" / (40 * commit), model, tokenizer)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("b" * 40)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PINNED], env=environment, capture_output=True, text=True, timeout=120, cwd=Path.cwd()
    )
    assert result.returncode == 0, result.stderr
    weights = [model.base_model.embeddings.word_embeddings.weight[0, 0].item() for model in models.values()]
    assert result.stdout.split() == ["b" * 40, str(weights[0]), "10", str(weights[1]), "11"]


def test_the_classes_have_names(model_folder):
    model = adapter_of(TASKS["rte"]).load(model_folder, 0)
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert model.config.label2id == {"entailment": 0, "not_entailment": 1}
    assert adapter_of(TASKS["mnli"]).load(model_folder, 0).config.num_labels == 3


def test_a_model_that_lacks_a_layer_is_refused(tmp_path):
    folder = save_model(tmp_path, small_model("bert", num_hidden_layers=1))
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(InputError, match=r"has no weights for bert.encoder.layer.1"):
        load_classifier(folder, 2, 0)
