"""Rows are read from folders in the Hub's layout and from files, and what does not fit a task is named."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from glue_rows import write_glue, write_split

from distil_ray.errors import InputError
from distil_ray.evaluation.glue import TASKS, chosen_tasks
from distil_ray.evaluation.protocol import Finetuning, OwnTask, Protocol, load_protocol
from distil_ray.evaluation.tables import Origin, read_table
from distil_ray.evaluation.tasks import Answers, own_task, read_tasks

REVIEWS = {"text": ["good film", "bad film", "so so"], "label": [1, 0, 1]}


def rows_of(folder, name):
    """A task of GLUE, read from a folder."""
    ((task,), data) = read_tasks(chosen_tasks([name], str(folder), {}), Protocol())
    return task, data[name]


def read_own(**keys):
    ((task,), data) = read_tasks([own_task("reviews", OwnTask(**keys))], Protocol())
    return task, data["reviews"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_a_csv_in_another_encoding(tmp_path, name):
    content = "text,label\nein schöner Film,1\n".encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=rf"{name}: is not UTF-8, in column text; convert it: iconv"):
        read_table(Origin(), str(tmp_path / name))


def test_tasks_are_those_of_the_paper_in_its_order():
    assert list(TASKS) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    own = {"imdb": OwnTask(hub="stanfordnlp/imdb")}
    assert [task.name for task in chosen_tasks(["imdb", "wnli", "cola"], "glue", own)] == ["cola", "wnli", "imdb"]
    assert len(chosen_tasks([], "glue", {})) == 9
    with pytest.raises(InputError, match=r"--tasks: given sst-2, expected some of cola, mnli.*a protocol file can"):
        chosen_tasks(["sst-2"], "glue", {})


def test_glue_rows(tmp_path):
    _, splits = rows_of(write_glue(tmp_path), "stsb")

    assert list(splits) == ["train", "validation"]
    assert len(splits["validation"].texts) == 96
    assert splits["validation"].texts[0][0] == splits["validation"].texts[0][1]
    assert splits["train"].labels.dtype == np.float64
    assert rows_of(tmp_path, "sst2")[1]["train"].labels.dtype == np.int64


def test_mnli_has_two_validation_splits(tmp_path):
    for split in ("train", *TASKS["mnli"].validation):
        write_split(tmp_path, "mnli", split, premise=["a"], hypothesis=["b"], label=[2])
    assert list(rows_of(tmp_path, "mnli")[1]) == ["train", *TASKS["mnli"].validation]


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "csv.gz"])
def test_files_of_every_kind(tmp_path, ending):
    table = pa.table(REVIEWS)
    lines = {
        "csv": "text,label\ngood film,1\nbad film,0\nso so,1\n",
        "tsv": "text\tlabel\ngood film\t1\nbad film\t0\nso so\t1\n",
        "jsonl": "".join(json.dumps(row) + "\n" for row in table.to_pylist()),
    }
    file = tmp_path / f"reviews.{ending}"
    if ending == "parquet":
        pq.write_table(table, file)
    elif ending == "csv.gz":
        file.write_bytes(gzip.compress(lines["csv"].encode()))
    else:
        file.write_text(lines[ending])

    task, splits = read_own(train=str(file), validation=str(tmp_path / "*"))
    assert splits["validation"].texts == [("good film",), ("bad film",), ("so so",)]
    assert splits["train"].labels.tolist() == [1, 0, 1]
    assert (task.num_labels, task.metrics) == (2, ("accuracy",))


def test_names_of_classes_and_other_columns(tmp_path):
    (tmp_path / "train.csv").write_text("review,stars\na,pos\nb,neg\nc,meh\n")
    (tmp_path / "dev.csv").write_text("review,stars\nd,neg\n")
    given = {"train": str(tmp_path / "train.csv"), "text": ("review",), "label": "stars"}
    task, splits = read_own(validation=str(tmp_path / "dev.csv"), **given)

    assert task.num_labels == 3
    assert splits["train"].labels.tolist() == [2, 1, 0]  # in the order of the alphabet
    assert splits["validation"].labels.tolist() == [1]
    (tmp_path / "dev.csv").write_text("review,stars\nd,good\n")
    with pytest.raises(InputError, match=r"row 0 has label 'good', expected one of those of .*: meh, neg, pos"):
        read_own(validation=str(tmp_path / "dev.csv"), **given)


def test_a_folder_in_the_hubs_layout(tmp_path):
    for split in ("train", "test"):
        write_split(tmp_path, "plain_text", split, **REVIEWS)
    _, splits = read_own(hub=str(tmp_path), name="plain_text", validation="test")
    assert list(splits) == ["train", "test"]


def test_a_part_of_the_training_rows(tmp_path):
    write_glue(tmp_path)
    protocol = load_protocol([], ["finetuning.max_train_rows=7", "finetuning_of.stsb.max_train_rows=5"])
    _, data = read_tasks(chosen_tasks(["sst2", "stsb"], str(tmp_path), {}), protocol)
    assert [len(data[name]["train"].texts) for name in ("sst2", "stsb")] == [7, 5]
    assert len(data["sst2"]["validation"].texts) == 96
    _, whole = read_tasks(chosen_tasks(["sst2"], str(tmp_path), {}), Protocol())
    train = whole["sst2"]["train"]
    assert data["sst2"]["train"].texts == [train.texts[i * 96 // 7] for i in range(7)]
    assert data["sst2"]["train"].labels.tolist() == [train.labels[i * 96 // 7] for i in range(7)]
    assert train.sample(96) is train


def test_answers(tmp_path):
    answers = [{"text": ["blue", "a blue"], "answer_start": [11, 9]}, {"text": [], "answer_start": []}]
    for split in ("train", "validation"):
        write_split(
            tmp_path, "x", split, question=["what?"] * 2, context=["the sky is a blue"[2:]] * 2, answers=answers
        )
    spec = OwnTask(kind="span", hub=str(tmp_path), name="x")
    (_, data) = read_tasks([own_task("squad", spec)], Protocol())
    assert data["squad"]["train"].labels == [Answers(("blue", "a blue"), (11, 9)), Answers((), ())]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["blue"], "answer_start": [3]}, "row 0: 'blue' does not stand at 3 of the context"),
        ({"text": ["blue"], "answer_start": [0, 1]}, "row 0 has 1 texts and 2 answer_start"),
        ("blue", r"row 0 has answers 'blue', expected \{text: \[…\], answer_start: \[…\]\}"),
    ],
)
def test_answers_that_do_not_fit(tmp_path, answers, message):
    for split in ("train", "validation"):
        write_split(tmp_path, "x", split, question=["what?"], context=["blue sky"], answers=[answers])
    with pytest.raises(InputError, match=f"^squad/train of .*: {message}"):
        read_tasks([own_task("squad", OwnTask(kind="span", hub=str(tmp_path), name="x"))], Protocol())


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("sst2", {"text": ["a"], "label": [0]}, "has no column sentence, but text, label; expected sentence, label"),
        ("sst2", {"sentence": ["a"]}, "has no column label"),
        ("sst2", {"sentence": ["a", "b"], "label": [0, 2]}, "row 1 has label 2, expected 0 to 1"),
        ("sst2", {"sentence": ["a"], "label": [-1]}, "row 0 has label -1, expected 0 to 1; test splits have no labels"),
        ("sst2", {"sentence": ["a"], "label": [0.5]}, "row 0 has label 0.5, expected 0 to 1"),
        ("sst2", {"sentence": ["a"], "label": ["yes"]}, "labels are of type string, expected 0 to 1"),
        ("sst2", {"sentence": ["a"], "label": [None]}, "row 0 has label nan, expected 0 to 1"),
        ("sst2", {"sentence": [None], "label": [0]}, "row 0 has no text in sentence"),
        ("sst2", {"sentence": [], "label": []}, "has no rows"),
        ("stsb", {"sentence1": ["a"], "sentence2": ["b"], "label": [5.5]}, "label 5.5, expected a number from 0 to 5"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, task, columns, message):
    for split in ("train", "validation"):
        write_split(tmp_path, task, split, **columns)
    with pytest.raises(InputError, match=f"^{task}/train of .*{message}"):
        rows_of(tmp_path, task)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "reviews: .*a.parquet: has no column label, but text"),
        ({"text": ["a", "b"], "label": [1.5, 0]}, "row 0 has label 1.5, expected 0 to 1"),
        ({"text": ["a", "b"], "label": [-3, 0]}, "row 0 has label -3, expected 0 to 1"),
        ({"text": ["a", "b"], "label": [0, 0]}, "all rows have one label, expected two classes or more"),
    ],
)
def test_own_rows_that_do_not_fit(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        read_own(train=str(tmp_path / "a.parquet"), validation=str(tmp_path / "a.parquet"))


def test_rows_that_are_not_there(tmp_path, monkeypatch):
    def without_network(*_, **__):
        raise ConnectionError("no route to the Hub")

    with pytest.raises(InputError, match=r"--glue: .* has no rte/train-\*.parquet; expected the layout"):
        read_table(Origin(str(tmp_path), "rte", "--glue"), "train")
    with pytest.raises(InputError, match=r"tasks.mine: there is no file /no/\*.csv"):
        read_table(Origin(option="tasks.mine"), "/no/*.csv")
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train-0.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"train-0.parquet: cannot be read"):
        read_table(Origin(str(tmp_path), "rte", "--glue"), "train")
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(InputError, match=r"rows.txt: expected a name that ends in .parquet, .csv"):
        read_table(Origin(), str(tmp_path / "rows.txt"))
    monkeypatch.setattr("datasets.load_dataset", without_network)  # it would try for long
    with pytest.raises(
        InputError, match="--glue: org/nothing is no folder, and its rte cannot be had from the Hub: no"
    ):
        read_table(Origin("org/nothing", "rte", "--glue"), "train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}", "tasks.mine: given no hub and no train and no validation"),
        ("{train: a.csv, validation: b.csv, name: plain}", "tasks.mine: given name .plain. without hub"),
        ("{hub: a/b, kind: span, text: [context]}", "tasks.mine: given text .*, expected the columns of question and"),
        ("{hub: a/b, kind: regression, metrics: [accuracy]}", "tasks.mine: given metrics .*expected some of pearson"),
        ("{hub: a/b, kind: spans}", "tasks.mine.kind: given .spans., expected classification or regression or span"),
        ("{hub: a/b, columns: [a]}", "tasks.mine.columns"),
    ],
)
def test_descriptions_of_tasks_that_do_not_fit(spec, message):
    with pytest.raises(InputError, match=message):
        load_protocol([], [f"tasks.mine={spec}"])


def test_a_tasks_own_values_and_the_general_ones():
    protocol = load_protocol([], ["finetuning.precision=bf16", "finetuning_of.squad.learning_rate=3e-5"])
    assert protocol.finetuning_on("squad") == protocol.finetuning.model_copy(update={"learning_rate": 3e-5})
    assert protocol.finetuning_on("sst2") == protocol.finetuning
    with pytest.raises(InputError, match=r"finetuning_of.squad.epochs.*num_epochs"):
        load_protocol([], ["finetuning_of.squad.epochs=2"])


def test_the_protocol_that_comes_with_the_project():
    protocol = load_protocol(["configs/evaluate.yaml"], [])
    squad = own_task("squad", protocol.tasks["squad"])

    assert (squad.columns, squad.label, squad.metrics) == (("question", "context"), "answers", ("exact_match", "f1"))
    assert protocol.finetuning_on("squad").max_seq_length == 384
    assert own_task("imdb", protocol.tasks["imdb"]).validation == ("test",)
    assert protocol.finetuning_on("rte") == Finetuning()
