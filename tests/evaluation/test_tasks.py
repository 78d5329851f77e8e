"""Rows are read from folders in the Hub's layout and from files, and what does not fit a task is named."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from glue_rows import write_glue, write_split
from local_hub import TOKEN

from distil_ray.errors import InputError, OutageError
from distil_ray.evaluation.protocol import Finetuning, OwnTask, Protocol, load_protocol
from distil_ray.evaluation.tables import TableSource, read_table
from distil_ray.evaluation.tasks import TASKS, Answers, Rows, chosen_tasks, own_task, read_tasks
from distil_ray.outages import Patience

pytest_plugins = ("local_hub",)

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
    with pytest.raises(InputError, match=rf"{name}: not UTF-8, in column text; convert it: iconv"):
        read_table(TableSource(), str(tmp_path / name))


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
    assert (task.classes, task.metrics) == (("0", "1"), ("accuracy",))


def test_names_of_classes_and_other_columns(tmp_path):
    (tmp_path / "train.csv").write_text("review,stars\na,pos\nb,neg\nc,meh\n")
    (tmp_path / "dev.csv").write_text("review,stars\nd,neg\n")
    given = {"train": str(tmp_path / "train.csv"), "text": ("review",), "label": "stars"}
    task, splits = read_own(validation=str(tmp_path / "dev.csv"), **given)

    assert task.classes == ("meh", "neg", "pos")
    assert splits["train"].labels.tolist() == [2, 1, 0]  # in the order of the alphabet
    assert splits["validation"].labels.tolist() == [1]
    (tmp_path / "dev.csv").write_text("review,stars\nd,good\n")
    with pytest.raises(InputError, match=r"row 0 has label 'good', expected one of those of .*: 'meh', 'neg', 'pos'$"):
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
    _, whole = read_tasks(chosen_tasks(["sst2", "stsb"], str(tmp_path), {}), Protocol())
    train, sample = whole["sst2"]["train"], data["sst2"]["train"]
    places = [train.texts.index(text) for text in sample.texts]
    assert places == sorted(places)
    assert sample.labels.tolist() == [train.labels[place] for place in places]
    assert (sample.drawn_from, train.drawn_from) == (96, None)
    assert train.sample(7).texts == sample.texts
    assert train.sample(96) is train
    assert whole["stsb"]["train"].sample(5).texts == data["stsb"]["train"].texts


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_a_sample_has_the_classes_in_their_proportions_however_they_are_ordered(num_classes):
    alternating = np.arange(960, dtype=np.int64) % num_classes
    for labels in (alternating, np.sort(alternating)):
        sample = Rows([(str(i),) for i in range(960)], labels).sample(120)
        assert np.bincount(sample.labels).tolist() == [120 // num_classes] * num_classes
    rare = Rows([(str(i),) for i in range(100)], (np.arange(100) % 10 == 0).astype(np.int64))
    assert np.bincount(rare.sample(50).labels).tolist() == [45, 5]


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
    "none",
    [
        None,
        {"text": [], "answer_start": []},
        {"text": [""], "answer_start": [-1]},
        {"text": [""], "answer_start": [0]},
        {"text": None, "answer_start": None},
        {"text": "", "answer_start": -1},
    ],
)
def test_a_question_without_an_answer_is_written_in_several_ways(tmp_path, none):
    one = {"text": "blue", "answer_start": 0}
    if none is None or isinstance(none["text"], list):
        one = {name: [value] for name, value in one.items()}
    row = {"question": "what?", "context": "blue sky"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row | {"answers": answers}) + "\n" for answers in (one, none)))
    spec = OwnTask(kind="span", train=str(tmp_path / "a.jsonl"), validation=str(tmp_path / "a.jsonl"))
    (_, data) = read_tasks([own_task("squad", spec)], Protocol())
    assert data["squad"]["train"].labels == [Answers(("blue",), (0,)), Answers((), ())]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["blue"], "answer_start": [3]}, "row 0: 'blue' is not at 3 of the context"),
        ({"text": ["sky"], "answer_start": [-3]}, "row 0: 'sky' is not at -3 of the context"),
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
        ({"text": ["a", "b"], "label": [1.5, 0]}, "row 0 has label 1.5, expected whole numbers or names of classes"),
        ({"text": ["a", "b", "c"], "label": [1, -1, 0]}, "row 1 has label -1, which says in many data sets that"),
        ({"text": ["a", "b"], "label": [0, 0]}, "all rows have one label, expected two classes or more"),
        ({"text": ["a", "b"], "label": ["x", None]}, "row 1 has no label in label"),
        ({"text": ["a", "b"], "label": [float("nan"), 1.0]}, "row 0 has no label in label"),
        ({"text": ["a", "b"], "label": [b"x", b"\xe9"]}, "column label: row 1 is not UTF-8; convert the file"),
        ({"text": ["a", "b"], "label": [["x"], ["y"]]}, "column label holds list<.*>, expected text"),
        ({"text": ["a", "b"], "label": [0, 1], "text2": [1, 2]}, None),
        ({"text": [1, 2], "label": [0, 1]}, "column text holds int64, expected text"),
        (
            {"text": ["a"] * 300, "label": list(range(300))},
            "column label has 300 different values in 300 rows, expected",
        ),
    ],
)
def test_own_rows_that_do_not_fit(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    if message is None:  # what no task asks for is of no account
        assert len(read_own(train=str(tmp_path / "a.parquet"), validation=str(tmp_path / "a.parquet"))[1]) == 2
        return
    with pytest.raises(InputError, match=message):
        read_own(train=str(tmp_path / "a.parquet"), validation=str(tmp_path / "a.parquet"))


def test_rows_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"--glue: .* has no rte/train-\*.parquet; expected the layout"):
        read_table(TableSource(str(tmp_path), "rte", "--glue"), "train")
    with pytest.raises(InputError, match=r"tasks.mine: found no file /no/\*.csv"):
        read_table(TableSource(option="tasks.mine"), "/no/*.csv")
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train-0.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"train-0.parquet: cannot be read"):
        read_table(TableSource(str(tmp_path), "rte", "--glue"), "train")
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(InputError, match=r"rows.txt: expected a name that ends in .parquet, .csv"):
        read_table(TableSource(), str(tmp_path / "rows.txt"))


def test_what_the_hub_does_not_have_is_named(local_hub):
    with pytest.raises(
        InputError,
        match=r"--glue: org/nothing is not a folder, and its rte cannot be loaded from the Hub: .*network connection",
    ):
        read_table(TableSource("org/nothing", "rte", "--glue"), "train")


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([-1, 1, -1], ("-1", "1"), [0, 1, 0]),
        ([40_000_000, 7, 7], ("7", "40000000"), [1, 0, 0]),
        ([0.0, 2.0, 0.0], ("0", "1", "2"), [0, 2, 0]),  # a class that the training rows lack, which others may have
        ([True, False, True], ("0", "1"), [1, 0, 1]),
        ([b"no", b"yes", b"no"], ("no", "yes"), [0, 1, 0]),
        (pa.array(["no", "yes", "no"], pa.string_view()), ("no", "yes"), [0, 1, 0]),
        (pa.array(["no", "yes", "no"]).dictionary_encode(), ("no", "yes"), [0, 1, 0]),
    ],
)
def test_classes_of_every_kind(tmp_path, labels, classes, numbers):
    pq.write_table(pa.table({"text": pa.array([b"a", b"b", b"c"]), "label": labels}), tmp_path / "a.parquet")
    task, splits = read_own(train=str(tmp_path / "a.parquet"), validation=str(tmp_path / "a.parquet"))
    assert task.classes == classes
    assert task.num_outputs == len(classes)
    for rows in splits.values():
        assert rows.labels.tolist() == numbers
        assert rows.texts == [("a",), ("b",), ("c",)]


def test_classes_that_a_data_set_of_the_hub_names(tmp_path):
    feature = {"label": {"names": ["no", "maybe", "yes"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 2]}, metadata=metadata), tmp_path / "a.parquet")
    task, splits = read_own(train=str(tmp_path / "a.parquet"), validation=str(tmp_path / "a.parquet"))
    assert task.classes == ("no", "maybe", "yes")
    assert splits["train"].labels.tolist() == [0, 2]


def test_labels_that_are_text_here_and_numbers_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "0"}\n{"text": "b", "label": "1"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": 0}\n')
    given = {"train": str(tmp_path / "a.jsonl"), "validation": str(tmp_path / "b.jsonl")}
    with pytest.raises(InputError, match=r"row 0 has label 0, expected one of .*: '0', '1'; one is text and the other"):
        read_own(**given)
    with pytest.raises(InputError, match=r"a.jsonl and 1 more: a column does not have the same type in all of them"):
        read_own(train=str(tmp_path / "*.jsonl"), validation=str(tmp_path / "a.jsonl"))


def test_shards_with_whole_and_with_decimal_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "label": 1.0}\n')
    _, splits = read_own(train=str(tmp_path / "*.jsonl"), validation=str(tmp_path / "a.jsonl"))
    assert splits["train"].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\ncafé,1\nbad,0\n", "a.csv: not UTF-8, in column text; convert it: iconv"),
        ("text,prix à payer,label\na,1,1\nb,2,0\n", "a.csv: a column's name is not UTF-8; convert the file"),
    ],
)
def test_tables_that_are_not_utf_8(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        read_own(train=str(tmp_path / "a.csv"), validation=str(tmp_path / "a.csv"))


def test_numbers_that_are_not_finite(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1.5\nb,inf\n")
    with pytest.raises(InputError, match="row 1 has label inf, expected a number"):
        read_own(kind="regression", train=str(tmp_path / "a.csv"), validation=str(tmp_path / "a.csv"))


def test_a_digest_is_of_the_rows_and_not_of_their_place(tmp_path):
    digests = []
    for folder, text in (("a", "good film"), ("b", "good film"), ("c", "fine film")):
        write_split(tmp_path / folder, "sst2", "train", sentence=[text, "bad"], label=[1, 0])
        write_split(tmp_path / folder, "sst2", "validation", sentence=["x", "y"], label=[1, 0])
        splits = rows_of(tmp_path / folder, "sst2")[1]
        digests.append([splits[name].digest() for name in ("train", "validation")])
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] == digests[2][1]
    assert Rows([("a", "b")], np.array([1])).digest() != Rows([("ab", "")], np.array([1])).digest()
    assert Rows([("a",)], [Answers(("a",), (0,))]).digest() != Rows([("a",)], [Answers((), ())]).digest()


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
    kinds = {"imdb": "classification", "squad": "span", "squad_v2": "span", "wikiann_en": "tokens"}
    assert {name: spec.kind for name, spec in protocol.tasks.items()} == kinds | {"stsb-test": "similarity"}
    assert protocol.finetuning_on("rte") == Finetuning()


# GLUE by name

GLUE = "nyu-mll/glue"
READ = f"""
from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import Protocol
from distil_ray.evaluation.tasks import chosen_tasks, read_tasks
try:  # not an outage
    print(len(read_tasks(chosen_tasks(["sst2"], {GLUE!r}, {{}}), Protocol())[1]["sst2"]["validation"].texts))
except InputError as error:
    print(error)
"""


def push_glue(hub, folder, **options):
    write_glue(folder)
    lines = ["---", "configs:"]
    for task in ("sst2", "stsb"):
        splits = ", ".join(f"{{split: {split}, path: {task}/{split}-*}}" for split in ("train", "validation"))
        lines.append(f"- {{config_name: {task}, data_files: [{splits}]}}")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.parquet")}
    hub.push(GLUE, {"README.md": "\n".join([*lines, "---", ""]), **files}, **options)


def test_glue_by_name_is_that_of_a_folder_and_is_fetched_once(local_hub, tmp_path):
    push_glue(local_hub, tmp_path)
    for name in ("sst2", "stsb", "sst2"):
        assert rows_of(GLUE, name)[1]["validation"].texts == rows_of(tmp_path, name)[1]["validation"].texts
    fetched = [line for line in local_hub.log if "/large/" in line]
    assert len(fetched) == len(set(fetched)) == 4


def test_glue_offline_is_that_of_the_cache_or_is_said_to_be_missing(local_hub, tmp_path):
    push_glue(local_hub, tmp_path / "glue")
    rows_of(GLUE, "sst2")
    local_hub.reset()
    for home, found in ((os.environ["HF_HOME"], "96"), (str(tmp_path / "empty"), "HF_HUB_OFFLINE")):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": home}
        run = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True, env=environment)
        assert found in run.stdout
    assert not local_hub.log


@pytest.mark.parametrize("failure", [{"status": 429}, {"refuse": True}, {"cut_after": 50}, {"sleep": 1.0}], ids=str)
def test_glue_by_name_is_waited_for(local_hub, tmp_path, failure):
    push_glue(local_hub, tmp_path)
    local_hub.fail("GET /large/", **failure, times=1)
    assert len(rows_of(GLUE, "sst2")[1]["train"].texts) == 96
    assert local_hub.requests["failed"] == 1


def test_gated_rows(local_hub, tmp_path, monkeypatch):
    push_glue(local_hub, tmp_path, gated=True)
    message = (
        f"--glue: {GLUE} is not a folder, and its sst2 cannot be loaded .*ask for access at {local_hub.url}/datasets"
    )
    with pytest.raises(InputError, match=message):
        rows_of(GLUE, "sst2")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match=r"The Hugging Face token of this node .* gives no access"):
        rows_of(GLUE, "sst2")


def test_no_hub_at_all_is_one_message(local_hub, monkeypatch, capsys):
    monkeypatch.setattr("distil_ray.evaluation.tables.AT_START", Patience(seconds=0.5))
    local_hub.close()
    message = r"--glue: the Hugging Face Hub \(nyu-mll/glue\) did not answer for .*; type the command again later"
    with pytest.raises(OutageError, match=message):
        rows_of(GLUE, "sst2")
    assert capsys.readouterr() == ("", "")


def test_rows_that_are_set_aside_and_the_others_are_all_rows():
    rows = Rows([(str(i),) for i in range(96)], np.arange(96) % 2)
    others, aside = rows.set_aside(0.1)
    assert sorted(others.texts + aside.texts) == sorted(rows.texts)
    assert np.bincount(aside.labels).tolist() == [5, 5]
    assert [len(part.texts) for part in Rows([("a",), ("b",)], np.array([0, 1])).set_aside(0.1)] == [1, 1]
