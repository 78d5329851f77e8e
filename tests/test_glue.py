"""The GLUE tasks are read as the Hub lays them out, and what does not fit is named."""

import numpy as np
import pytest
from glue_rows import write_glue, write_split

from distil_ray.errors import InputError
from distil_ray.evaluation.glue import TASKS, chosen_tasks, read_split


def test_tasks_are_those_of_the_paper_in_its_order():
    assert list(TASKS) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    assert [task.name for task in chosen_tasks(["wnli", "cola"])] == ["cola", "wnli"]
    assert len(chosen_tasks([])) == 9
    with pytest.raises(InputError, match=r"--tasks: given sst-2, expected some of cola, mnli"):
        chosen_tasks(["sst-2"])


def test_rows(tmp_path):
    rows = read_split(str(write_glue(tmp_path)), TASKS["stsb"], "validation")

    assert len(rows.texts) == 96
    assert rows.texts[0][0] == rows.texts[0][1]
    assert rows.labels.dtype == np.float64
    assert read_split(str(tmp_path), TASKS["sst2"], "train").labels.dtype == np.int64


def test_mnli_has_two_validation_splits(tmp_path):
    for split in TASKS["mnli"].validation:
        write_split(tmp_path, "mnli", split, premise=["a"], hypothesis=["b"], label=[2])
    assert [read_split(str(tmp_path), TASKS["mnli"], split).labels[0] for split in TASKS["mnli"].validation] == [2, 2]


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
    write_split(tmp_path, task, "train", **columns)
    with pytest.raises(InputError, match=f"^{task}/train of .*{message}"):
        read_split(str(tmp_path), TASKS[task], "train")


def test_rows_that_are_not_there(tmp_path, monkeypatch):
    def without_network(*_, **__):
        raise ConnectionError("no route to the Hub")

    monkeypatch.setattr("datasets.load_dataset", without_network)  # it would try for long
    with pytest.raises(InputError, match=r"has no rte/train-\*.parquet; expected the layout of nyu-mll/glue"):
        read_split(str(tmp_path), TASKS["rte"], "train")
    with pytest.raises(InputError, match="org/nothing is no folder, and its rte cannot be had from the Hub: no"):
        read_split("org/nothing", TASKS["rte"], "train")
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train-0.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"train-0.parquet: cannot be read"):
        read_split(str(tmp_path), TASKS["rte"], "train")
