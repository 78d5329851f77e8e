"""A result counts for what made it, by content: what changes is named, another place or a new key is no change."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from glue_rows import write_glue
from small_models import small_model
from training_parts import save_model, small_tokenizer

from distil_ray.config import Source
from distil_ray.errors import InputError, RunError
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import OwnTask, Protocol, load_protocol
from distil_ray.evaluation.results import SCHEMA, FinetuneJob, Results
from distil_ray.evaluation.tasks import Rows, chosen_tasks, own_task, read_tasks
from distil_ray.models.origin import Origin

SCORES = {"validation/accuracy": 75.0, "score": 75.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model and tasks."""
    folder = tmp_path_factory.mktemp("results")
    save_model(folder / "model", small_model("bert", num_hidden_layers=1))
    write_glue(folder / "glue")
    return folder


def half(root):
    return Model("half", Origin(str(root / "model")))


def world(root, output, *settings):
    """The results below ``output``, and the job of a model, as a comparison of what lies in ``root`` has them."""
    protocol = load_protocol([], list(settings))
    tasks, data = read_tasks(chosen_tasks(["sst2"], str(root / "glue"), protocol.tasks), protocol)
    return Results(output, protocol, tasks, data), FinetuneJob(half(root), "sst2", 1)


def put(root, output, *settings):
    results, job = world(root, output, *settings)
    results.put(job, SCORES, 1.0, "fp32")
    assert results.done([job]) == [job]
    assert results.score(job) == 75.0
    return output / "results/half/sst2/seed-1.json"


def refusal(root, output, *settings):
    results, job = world(root, output, *settings)
    with pytest.raises(InputError) as caught:
        results.done([job])
    return str(caught.value)


def test_nothing_is_done_at_first(root, tmp_path):
    results, job = world(root, tmp_path)
    assert results.done([job]) == []


def test_the_same_content_in_another_place_is_no_change(root, tmp_path):
    put(root, tmp_path)
    copy = shutil.copytree(root, tmp_path / "copy")
    results, job = world(copy, tmp_path)
    assert results.done([job, replace(job, seed=2)]) == [job]
    assert results.remarks([job]) == []


RATES = "finetuning.learning_rate=[1e-4, 3e-4]"


def put_trials(results, job, *scores):
    trials = results.trials([job])
    for trial, score in zip(trials, scores, strict=True):
        results.put(trial, {"set aside/accuracy": score, "score": score}, 1.0, "fp32")
    return trials


def test_of_several_learning_rates_trials_choose_one(root, tmp_path):
    results, job = world(root, tmp_path, RATES)
    trials = results.trials([job, replace(job, seed=2), replace(job, teacher=job)])
    assert [(trial.row, trial.seed, trial.trial_rate) for trial in trials] == [("half", 0, 1e-4), ("half", 0, 3e-4)]
    assert results.learning_rate(job) is None
    results.put(trials[1], SCORES, 1.0, "fp32")
    assert results.learning_rate(job) is None  # the other is not done

    assert put_trials(results, job, 70.0, 71.0) == results.done(trials) == trials
    assert results.learning_rate(job) == results.learning_rate(replace(job, teacher=job)) == 3e-4
    assert results.protocol_of(job).finetuning_on("sst2").learning_rates == (3e-4,)
    assert results.protocol_of(trials[0]).finetuning_on("sst2").learning_rates == (1e-4,)
    results.put(job, SCORES, 1.0, "fp32")
    assert results.done([job]) == [job]
    assert sorted(file.name for file in (tmp_path / "results/half/sst2").iterdir()) == [
        "rate-0.0001.json",
        "rate-0.0003.json",
        "seed-1.json",
    ]


def test_a_single_learning_rate_needs_no_trials(root, tmp_path):
    results, job = world(root, tmp_path, "finetuning.learning_rate=[1e-4]")
    assert results.trials([job]) == []
    assert results.learning_rate(job) == 1e-4


def test_results_stay_with_another_choice_of_rates_from_which_the_same_one_is_taken(root, tmp_path):
    """And not with one from which another is taken."""
    put(root, tmp_path, "finetuning.learning_rate=3e-4")
    results, job = world(root, tmp_path, RATES)
    assert results.done([job]) == []  # not known yet
    put_trials(results, job, 70.0, 71.0)
    assert results.done([job]) == [job]
    put_trials(results, job, 71.0, 71.0)  # of equals the first
    with pytest.raises(InputError, match=r"finetuning.learning_rate was 0.0003, is 0.0001"):
        results.done([job])


def test_trials_are_of_one_choice_of_rows_and_settings(root, tmp_path):
    results, job = world(root, tmp_path, RATES)
    trials = put_trials(results, job, 70.0, 71.0)
    results, job = world(root, tmp_path, RATES, "finetuning.num_epochs=5")
    with pytest.raises(InputError, match=r"first .*rate-0.0001.json.*\n  finetuning.num_epochs was 3, is 5"):
        results.done(trials)


def save_tokenizer(folder, lowercase):
    """A tokenizer with the same pieces that does, or does not, make letters small."""
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = lowercase
    (folder / "tokenizer.json").write_text(json.dumps(content))
    given = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(given | {"do_lower_case": lowercase}))


def change_rows(copy):
    write_glue(copy / "glue", num_rows=95)


def change_weights(copy):
    save_model(copy / "model", small_model("bert", num_hidden_layers=1, seed=3))


def change_tokenizer(copy):
    save_tokenizer(copy / "model", lowercase=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_rows, "sst2: other rows (train, validation)"),
        (change_weights, "half: the model in {copy}/model has other weights or another configuration"),
        (change_tokenizer, "half: the tokenizer in {copy}/model splits texts differently"),
    ],
)
def test_content_that_changed_in_its_place_is_named(root, tmp_path, change, reason):
    copy = shutil.copytree(root, tmp_path / "copy")
    save_tokenizer(copy / "model", lowercase=True)
    file = put(copy, tmp_path)
    change(copy)
    assert refusal(copy, tmp_path) == (
        f"a result in {tmp_path}, first {file}, would now be made with something else:\n"
        f"  {reason.format(copy=copy)}\ngive another --output, or remove those files to have them made again"
    )


def test_weights_of_every_format_are_looked_at(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")

    def save_as_bin(seed):
        model = small_model("bert", num_hidden_layers=1, seed=seed)
        torch.save(model.state_dict(), copy / "model/pytorch_model.bin")

    (copy / "model/model.safetensors").unlink()
    save_as_bin(seed=0)
    put(copy, tmp_path)
    save_as_bin(seed=1)
    assert "half: the model in" in refusal(copy, tmp_path)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("finetuning.num_epochs=5", "finetuning.num_epochs was 3, is 5"),
        ("finetuning_of.sst2.num_epochs=5", "finetuning_of.sst2.num_epochs was 3, is 5"),
        ("finetuning.max_train_rows=7", "sst2: other rows (train)"),
    ],
)
def test_another_protocol_is_named(root, tmp_path, setting, reason):
    put(root, tmp_path)
    assert reason in refusal(root, tmp_path, setting)


def test_reasons_are_given_once_for_all_files(root, tmp_path):
    results, job = world(root, tmp_path)
    jobs = [replace(job, seed=seed) for seed in (1, 2, 3)]
    for one in jobs:
        results.put(one, SCORES, 1.0, "fp32")
    changed, _ = world(root, tmp_path, "finetuning.num_epochs=5")
    with pytest.raises(InputError, match=r"^3 results in .*") as caught:
        changed.done(jobs)
    assert str(caught.value).count("num_epochs") == 1


def test_the_second_step_depends_on_the_teacher_and_its_own_settings(root, tmp_path):
    results, teacher = world(root, tmp_path)
    student = FinetuneJob(teacher.model, "sst2", 1, teacher=teacher)
    results.put(student, SCORES, 1.0, "fp32")
    assert (tmp_path / "results/half (D)/sst2/seed-1.json").exists()
    assert results.done([student]) == [student]
    other = save_model(tmp_path / "other", small_model("bert", num_hidden_layers=1, seed=9))
    with pytest.raises(InputError, match=r"teacher: the model in .*/other is a different one"):
        results.done([replace(student, teacher=FinetuneJob(Model("teacher", Origin(other)), "sst2", 1))])
    with pytest.raises(InputError, match=r"second_step.alpha was 0.5, is 0.1"):
        world(root, tmp_path, "second_step.alpha=0.1")[0].done([student])


def test_a_key_that_was_not_there_yet_counts_as_its_default(root, tmp_path):
    file = put(root, tmp_path)
    content = json.loads(file.read_text())
    del content["made_with"]["protocol"]["weight_decay"]
    file.write_text(json.dumps(content))
    results, job = world(root, tmp_path)
    assert results.done([job]) == [job]
    assert "finetuning.weight_decay was 0.01, is 0.5" in refusal(root, tmp_path, "finetuning.weight_decay=0.5")


def test_what_a_later_version_made_is_left_alone(root, tmp_path):
    file = put(root, tmp_path)
    content = json.loads(file.read_text())
    content["made_with"] = {"schema": SCHEMA + 1}
    file.write_text(json.dumps(content))
    assert "it was made by a later version of distil_ray" in refusal(root, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_is_made_again(root, tmp_path, content):
    file = put(root, tmp_path)
    file.write_text(content)
    results, job = world(root, tmp_path)
    assert results.done([job]) == []


def test_a_disk_that_cannot_be_written_to(root, tmp_path):
    results, job = world(root, tmp_path)
    (tmp_path / "results").write_text("a file where a folder has to be")
    with pytest.raises(RunError, match=r"cannot write .*/results/half/sst2/seed-1.json: .*; what was written before"):
        results.put(job, SCORES, 1.0, "fp32")
    with pytest.raises(RunError, match=r"cannot write .*soft-targets.npz"):
        results.put_soft_targets(job, [np.zeros(2, dtype=np.float32)])


def test_soft_targets_are_those_that_were_put(root, tmp_path):
    results, job = world(root, tmp_path)
    teacher = replace(job, teaches=True)
    results.put(teacher, SCORES, 1.0, "fp32")
    assert results.done([teacher]) == []  # without the soft targets
    logits = [np.full((2, length), length, dtype=np.float32) for length in (3, 1, 2)]
    results.put_soft_targets(teacher, logits)
    assert results.done([teacher]) == [teacher]
    for kept, given in zip(results.soft_targets(teacher), logits, strict=True):
        np.testing.assert_array_equal(kept, given)


def test_precision_is_noted_and_not_compared(root, tmp_path):
    file = put(root, tmp_path)
    content = json.loads(file.read_text())
    assert content["precision"] == "fp32"
    assert "precision" not in content["made_with"]["protocol"]
    results, job = world(root, tmp_path, "finetuning.precision=bf16")
    assert results.done([job]) == [job]


def test_results_of_schema_2_stay_usable(root, tmp_path):
    file = put(root, tmp_path)
    content = json.loads(file.read_text())
    content["made_with"]["schema"] = 2
    content["made_with"]["protocol"]["precision"] = "fp32"
    file.write_text(json.dumps(content))
    results, job = world(root, tmp_path)
    assert results.done([job]) == [job]
    (remark,) = results.remarks([job])
    assert "1 of them are from an earlier version, which decayed biases and LayerNorms, too" in remark


# ------------------------------------------------------------------------------------------- results of schema 1

# What the first release wrote for the model and the protocol of these tests.
SCHEMA_1 = {
    "learning_rate": 2e-05,
    "num_epochs": 3,
    "batch_size": 32,
    "max_seq_length": 128,
    "warmup_fraction": 0.1,
    "weight_decay": 0.01,
    "precision": "fp32",
    "max_train_rows": None,
    "early_stopping_patience": None,
}


def put_schema_1(root, output, **made_with):
    """A file as the first release wrote it."""
    import hashlib

    weights = hashlib.sha256((root / "model/model.safetensors").read_bytes()).digest()
    noted = {"protocol": SCHEMA_1, "model": hashlib.sha256(weights).hexdigest(), **made_with}
    file = output / "results/half/sst2/seed-1.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"scores": SCORES, "seconds": 1.0, "made_with": noted}))


def test_results_of_schema_1_stay_usable(root, tmp_path):
    put_schema_1(root, tmp_path)
    results, job = world(root, tmp_path)
    assert results.done([job]) == [job]
    assert results.score(job) == 75.0
    assert [remark.split(",")[0] for remark in results.remarks([job])] == ["1 of them are from an earlier version"] * 2


def test_what_schema_1_noted_is_compared(root, tmp_path):
    put_schema_1(root, tmp_path)
    assert "finetuning.batch_size was 32, is 8" in refusal(root, tmp_path, "finetuning.batch_size=8")
    put_schema_1(root, tmp_path, model="0" * 64)
    assert "half: the model in" in refusal(root, tmp_path)
    put_schema_1(root, tmp_path, protocol=SCHEMA_1 | {"max_train_rows": 7})  # drawn in another way at the time
    assert "max_train_rows draws other rows since then" in refusal(root, tmp_path, "finetuning.max_train_rows=7")
    put_schema_1(root, tmp_path, protocol=SCHEMA_1 | {"max_train_rows": 96})  # all rows, then and now
    results, job = world(root, tmp_path, "finetuning.max_train_rows=96")
    assert results.done([job]) == [job]


def test_own_tasks_of_schema_1(root, tmp_path):
    file = str(root / "glue/sst2/train-00000-of-00001.parquet")
    spec = OwnTask(train=file, validation=file, text=("sentence",))
    put_schema_1(root, tmp_path, task=spec.model_dump(mode="json"))

    def done(spec):
        protocol = Protocol(tasks={"sst2": spec})
        tasks, data = read_tasks([own_task("sst2", spec)], protocol)
        job = FinetuneJob(half(root), "sst2", 1)
        return Results(tmp_path, protocol, tasks, data).done([job])

    assert len(done(spec)) == 1
    with pytest.raises(InputError, match=r'tasks.sst2.metrics was null, is \["f1"\]'):
        done(spec.model_copy(update={"metrics": ("f1",)}))


def test_spans_of_schema_1_were_scored_by_all_metrics(root, tmp_path):
    rows = tmp_path / "rows.jsonl"
    answers = {"text": ["blue"], "answer_start": [0]}
    rows.write_text(json.dumps({"question": "what?", "context": "blue sky", "answers": answers}))

    def done(*metrics):
        spec = OwnTask(kind="span", train=str(rows), validation=str(rows), metrics=metrics or None)
        protocol = Protocol(tasks={"sst2": spec})
        put_schema_1(root, tmp_path, task=spec.model_dump(mode="json"))
        results = Results(tmp_path, protocol, *read_tasks([own_task("sst2", spec)], protocol))
        return results.done([FinetuneJob(half(root), "sst2", 1)])

    assert done()
    assert done("f1", "exact_match")
    with pytest.raises(InputError, match="the score of spans was the mean of all metrics"):
        done("exact_match")


# ----------------------------------------------------------------------------------------------------------- text


def test_figures_on_a_text_are_known_by_content(root, tmp_path):
    results, job = world(root, tmp_path)
    models, sources = [job.model], [Source(path="/a")]
    assert results.get_text(models, sources, "digest") == (None, [])
    results.put_text(models, "digest", {"half": {"mlm_loss": 2.0}})
    assert results.get_text(models, [Source(path="/b")], "digest") == ({"half": {"mlm_loss": 2.0}}, [])
    assert results.get_text(models, sources, "other") == (None, ["--text: another text"])
    more = [*models, Model("other", job.model.origin)]
    assert results.get_text(more, sources, "digest") == (None, ["other: another model or tokenizer"])
    changed, _ = world(root, tmp_path, "text.seed=1")
    assert changed.get_text(models, sources, "digest") == (None, ["text.seed was 56, is 1"])


def test_figures_on_a_text_of_schema_1(root, tmp_path):
    import hashlib

    results, job = world(root, tmp_path)
    models, sources = [job.model], [Source(path="/a")]
    weights = hashlib.sha256((root / "model/model.safetensors").read_bytes()).digest()
    made_with = {
        "models": {"half": hashlib.sha256(weights).hexdigest()},
        "sources": [{"path": "/a", "column": "text"}],  # of a version that had fewer keys
        "protocol": {"max_seq_length": 128, "num_rows": 1024},
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results/text.json").write_text(json.dumps({"figures": {"half": {}}, "made_with": made_with}))
    assert results.get_text(models, sources, "digest") == ({"half": {}}, [])
    assert results.get_text(models, [Source(path="/b")], "digest") == (None, ["--text: another text"])


def test_rows_that_are_unlike_have_unlike_digests():
    rows = Rows([("a", "b"), ("c", "d")], np.array([0, 1]))
    assert rows.digest() == Rows([("a", "b"), ("c", "d")], np.array([0, 1])).digest()
    assert rows.digest() != Rows([("a", "b"), ("c", "d")], np.array([1, 0])).digest()
    assert rows.digest() != Rows([("c", "d"), ("a", "b")], np.array([1, 0])).digest()
