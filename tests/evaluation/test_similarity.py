"""Similarity without fine-tuning: vectors are those of sentence-transformers, correlations scipy's of their cosines."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from embedding_folders import write_modules
from glue_rows import write_glue, write_split
from scipy import stats
from small_models import small_model
from tokenizers.normalizers import NFC
from training_parts import save_model, small_tokenizer

from distil_ray.commands import evaluate
from distil_ray.errors import InputError
from distil_ray.evaluation.finetuning import finetuner_of
from distil_ray.evaluation.kinds import adapter_of, facts_of
from distil_ray.evaluation.models import Model
from distil_ray.evaluation.protocol import OwnTask, Protocol, load_protocol
from distil_ray.evaluation.results import FinetuneJob, Results
from distil_ray.evaluation.tasks import Rows, chosen_tasks, own_task, read_tasks
from distil_ray.models.origin import Origin

TASK = own_task("pairs", OwnTask(kind="similarity", hub="x"))
GENERATOR = np.random.default_rng(3)
PAIRS = [tuple(" ".join(f"w{i}" for i in GENERATOR.integers(0, 50, size=n)) for n in (3, 5)) for _ in range(40)]
ROWS = Rows(PAIRS, GENERATOR.random(40))


@pytest.fixture
def folder(tmp_path):
    tokenizer = small_tokenizer()
    tokenizer.model_max_length = 512
    save_model(tmp_path / "model", small_model("bert", num_hidden_layers=2).base_model, tokenizer)  # without a head
    return tmp_path / "model"


def job_of(folder):
    return FinetuneJob(Model("half", Origin(str(folder))), "pairs", 1)


def vectors(folder, task=TASK, rows=ROWS):
    found = np.stack(finetuner_of(job_of(folder), task, Protocol()).logits(rows))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def theirs(folder):
    from sentence_transformers import SentenceTransformer

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    texts = [text for pair in PAIRS for text in pair]
    return SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_vectors_are_those_of_sentence_transformers(folder, mode):
    expected = theirs(write_modules(folder, {"mean": "mean_tokens", "cls": "cls_token"}[mode]))
    np.testing.assert_allclose(vectors(folder), expected, atol=1e-5)
    given = own_task("pairs", OwnTask(kind="similarity", hub="x", pooling={"mean": "cls", "cls": "mean"}[mode]))
    assert np.abs(vectors(folder, given) - expected).max() > 0.01  # the task's key counts for more


def test_the_prompt_of_a_folder_is_put_before_every_text(folder):
    settings = {"prompts": {"query": "w1 w2 ", "none": ""}, "default_prompt_name": "query"}
    (write_modules(folder) / "config_sentence_transformers.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(vectors(folder), theirs(folder), atol=1e-5)
    (folder / "config_sentence_transformers.json").unlink()
    assert np.abs(vectors(folder) - theirs(folder)).max() < 1e-5


def test_texts_that_are_lowercased_before_the_tokenizer_are_refused(folder):
    (write_modules(folder) / "sentence_bert_config.json").write_text('{"max_seq_length": 6, "do_lower_case": true}')
    assert np.abs(vectors(folder) - theirs(folder)).max() < 1e-5  # its tokenizer lowercases
    tokenizer = small_tokenizer()
    tokenizer.backend_tokenizer.normalizer = NFC()
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="texts lowercased before its tokenizer"):
        vectors(folder)


def test_any_model_makes_vectors_as_long_as_its_positions(folder):
    embedding = job_of(folder).model.embedding(None)
    assert embedding == ("mean", 24, "")
    assert job_of(write_modules(folder)).model.embedding("cls") == ("cls", 6, "")
    long = Rows([("w1 " * 100, "w2 " * 100)], np.array([1.0]))
    assert vectors(folder, rows=long).shape == (2, 32)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_scores_are_correlations_of_cosines_whatever_the_batches(tmp_path, family):
    folder = save_model(tmp_path, small_model(family, num_hidden_layers=1))
    finetuner = finetuner_of(job_of(folder), TASK, Protocol())
    found = finetuner.score({"validation": ROWS})
    alone = [np.stack(finetuner.logits(Rows([pair], ROWS.labels[:1]))) for pair in PAIRS]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in alone]
    assert found == pytest.approx(
        {
            "validation/pearson": 100 * stats.pearsonr(ROWS.labels, cosines).statistic,
            "validation/spearman": 100 * stats.spearmanr(ROWS.labels, cosines).statistic,
            "score": np.mean(list(found.values())[:2]),
        },
        abs=1e-3,
    )


def test_the_mean_is_over_real_pieces():
    class Outputs:
        last_hidden_state = torch.tensor([[[1.0], [3.0], [100.0]]])

    assert adapter_of(TASK).logits(Outputs, torch.tensor([[1, 1, 0]])).tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({"mode": "max_tokens"}, "makes vectors by max; expected mean or cls"),
        ({"pooling_mode_cls_token": True}, "makes vectors by cls, mean;"),
    ],
)
def test_modules_that_do_something_else_are_refused_unless_the_task_says_how(folder, change, how):
    write_modules(folder, **change)
    with pytest.raises(InputError, match=how):
        job_of(folder).model.embedding(None)
    assert job_of(folder).model.embedding("mean").pooling == "mean"


def test_a_module_that_changes_cosines_is_refused(folder):
    modules = json.loads((write_modules(folder) / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="makes vectors by mean, Dense"):
        job_of(folder).model.embedding(None)
    (folder / "modules.json").write_text("[")
    with pytest.raises(InputError, match=r"modules.json cannot be read"):
        job_of(folder).model.embedding(None)


# ---------------------------------------------------------------------------------------------------- rows


def test_the_tasks_are_read_without_training_rows(tmp_path):
    write_split(tmp_path, "stsb", "validation", sentence1=["a", "b"], sentence2=["c", "d"], label=[0.0, 5.0])
    protocol = Protocol()
    tasks = chosen_tasks(["stsb-similarity"], str(tmp_path), {})
    ((task,), data) = read_tasks(tasks, protocol)
    assert list(data["stsb-similarity"]) == ["validation"]
    facts = facts_of(task, data["stsb-similarity"], protocol.finetuning)
    assert (facts.num_train_rows, facts.num_epochs, facts.num_validation_rows, facts.constant_score) == (0, 0, 2, 0.0)

    (tmp_path / "mine.csv").write_text("sentence1,sentence2,score\na,b,0.5\nc,d,0.25\n")
    ((task,), data) = read_tasks(
        [own_task("mine", OwnTask(kind="similarity", validation=str(tmp_path / "mine.csv")))], protocol
    )
    assert data["mine"]["validation"].labels.tolist() == [0.5, 0.25]
    assert task.metrics == ("pearson", "spearman")


def test_only_those_who_ask_for_it_get_it():
    assert "stsb-similarity" not in [task.name for task in chosen_tasks([], "glue", {})]
    own = {"stsb-similarity": OwnTask(kind="similarity", hub="mteb/stsbenchmark-sts")}
    assert chosen_tasks([], "glue", own)[-1].source.hub == "mteb/stsbenchmark-sts"


BAD = {
    "labels are of type string, expected a number": {"label": ["high", "low"]},
    "row 1 has label nan, expected a number": {"label": [1.0, None]},
    "label is 2 in all rows, with which nothing correlates": {"label": [2.0, 2.0]},
    "has no column sentence2, but sentence1, label": {"label": [1.0, 2.0], "sentence2": None},
    "has no rows": {"label": [], "sentence1": [], "sentence2": []},
    "row 0 has no text in sentence1 or sentence2": {"label": [1.0, 2.0], "sentence1": [None, "b"]},
}


@pytest.mark.parametrize("message", BAD)
def test_rows_that_do_not_fit_are_named_before_anything_starts(folder, tmp_path, capsys, message):
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], **BAD[message]}
    write_split(tmp_path, "stsb", "validation", **{name: v for name, v in columns.items() if v is not None})
    given = ["--teacher", str(folder), "--student", f"half={folder}", "--glue", str(tmp_path)]
    assert evaluate.main([*given, "--tasks", "stsb-similarity", "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert f"stsb-similarity/validation of {tmp_path}: {message}" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{kind: similarity}", "tasks.mine: given no hub and no validation"),
        ("{kind: similarity, hub: a/b, train: dev}", "tasks.mine: given train .*, expected none: similarity is scored"),
        ("{kind: similarity, hub: a/b, text: [a]}", "tasks.mine: given text .*, expected the columns of two texts"),
        ("{kind: similarity, hub: a/b, pooling: max}", "tasks.mine.pooling: given .max., expected mean or cls"),
        ("{kind: regression, hub: a/b, pooling: cls}", "tasks.mine: given pooling .*, which only similarity has"),
    ],
)
def test_descriptions_that_do_not_fit(spec, message):
    with pytest.raises(InputError, match=message):
        load_protocol([], [f"tasks.mine={spec}"])


# ------------------------------------------------------------------------------------------------- results


def test_results_are_those_of_the_embedding_and_not_of_the_fine_tuning(folder, tmp_path):
    spec = OwnTask(kind="similarity", validation=str(tmp_path / "rows.parquet"))
    columns = {"sentence1": [a for a, _ in PAIRS], "sentence2": [b for _, b in PAIRS], "score": ROWS.labels}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")

    def results(*settings, **keys):
        protocol = load_protocol([], list(settings))
        task = own_task("pairs", spec.model_copy(update=keys))
        return Results(tmp_path / "out", protocol, *read_tasks([task], protocol))

    job = job_of(write_modules(folder))
    results().put(job, {"validation/pearson": 1.0, "score": 1.0}, 1.0, "fp32")
    assert results("finetuning.num_epochs=7", "finetuning.max_seq_length=99").done([job]) == [job]
    with pytest.raises(InputError, match=r'half: embedding\.pooling was "mean", is "cls"'):
        results(pooling="cls").done([job])
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    with pytest.raises(InputError, match=r"half: embedding\.max_seq_length was 6, is 5"):
        results().done([job])


def test_models_are_compared_beside_a_task_that_is_fine_tuned(folder, ray_cluster, tmp_path, capsys):
    write_glue(tmp_path / "glue")
    student = save_model(tmp_path / "student", small_model("bert", num_hidden_layers=1))
    given = ["--teacher", str(folder), "--student", student, "--glue", str(tmp_path / "glue"), "--seeds", "2"]
    given += ["--tasks", "sst2", "stsb-similarity", "--output", str(tmp_path / "out")]
    given += ["--set=finetuning.max_seq_length=12", "--set=finetuning.num_epochs=1", "--set=resources.cpus=2"]
    assert evaluate.main([*given, "--second-step"]) == 2
    assert "--second-step: stsb-similarity is scored without fine-tuning" in capsys.readouterr().err
    assert evaluate.main([*given, "--on-device=stsb-similarity"]) == 2
    assert "--on-device: given stsb-similarity, expected a task that" in capsys.readouterr().err

    # The texts of each pair are equal, so that every cosine is 1: replaced by pairs that differ.
    write_split(
        tmp_path / "glue",
        "stsb",
        "validation",
        sentence1=["w1 w2", "w1", "w3"],
        sentence2=["w1 w2", "w9", "w3 w4"],
        label=[5.0, 1.0, 3.0],
    )
    assert evaluate.main(given) == 0
    out = capsys.readouterr().out
    assert "6 evaluations: 2 models, 2 tasks, 2 seeds" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    for model in report["models"]:
        assert {name: task["num_seeds"] for name, task in model["tasks"].items()} == {"sst2": 2, "stsb-similarity": 1}
    assert (
        "| stsb-similarity | Pearson correlation and Spearman correlation | – | 3 | – | – | – | – |"
        in (tmp_path / "out/report.md").read_text()
    )
    assert evaluate.main(given) == 0
    assert "6 of 6 evaluations are already done" in capsys.readouterr().out
