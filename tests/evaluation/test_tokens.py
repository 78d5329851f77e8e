"""Tags of words: files are read, words meet their pieces, entities are counted as conlleval does, models learn."""

import gzip
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_models import small_model
from tokenizer_zoo import ZOO
from training_parts import save_model

from distil_ray.commands import evaluate
from distil_ray.errors import InputError
from distil_ray.evaluation.finetuning import Finetuner, SoftTargets
from distil_ray.evaluation.kinds import Tokens, entity_scores, facts_of
from distil_ray.evaluation.protocol import Finetuning, OwnTask, Protocol, SecondStep, load_protocol
from distil_ray.evaluation.tasks import Rows, Tagged, own_task, read_tasks
from distil_ray.models.loading import load_tokenizer

CONLL = """-DOCSTART- -X- O O

# id = 7
EU NNP B-ORG
rejects VBZ O
# . O
\r
Peter NNP B-PER
Blackburn NNP I-PER
"""
SENTENCES = [Tagged(("EU", "rejects", "#"), ("B-ORG", "O", "O")), Tagged(("Peter", "Blackburn"), ("B-PER", "I-PER"))]


def read_own(train, validation=None, **keys):
    spec = OwnTask(kind="tokens", train=str(train), validation=str(validation or train), **keys)
    ((task,), data) = read_tasks([own_task("ner", spec)], Protocol())
    return task, data["ner"]


# ---------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("name", ["a.txt", "a.conll", "a.tsv", "a", "a.iob2.gz"])
def test_conlls_columns(tmp_path, name):
    content = re.sub(" (?!id|=|7)", "\t", CONLL) if name == "a.tsv" else CONLL
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    task, splits = read_own(tmp_path / name)
    assert splits["validation"].labels == SENTENCES
    assert splits["train"].texts == [("EU rejects #",), ("Peter Blackburn",)]
    assert (task.classes, task.num_outputs, task.metrics) == (("B-ORG", "B-PER", "I-PER", "O"), 4, ("f1",))


def test_rows_with_lists(tmp_path):
    rows = [{"tokens": one.words, "ner_tags": one.tags} for one in (*SENTENCES, Tagged((), ()))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_own(tmp_path / "a.jsonl")[1]["train"].labels == SENTENCES  # without the empty one
    (tmp_path / "b.jsonl").write_text(json.dumps({"words": ["a"], "iob": ["B-X"]}))
    assert read_own(tmp_path / "b.jsonl", text=("words",), label="iob")[0].classes == ("B-X",)


@pytest.mark.parametrize("kind", ["Sequence", "List"])
def test_tags_that_a_data_set_of_the_hub_names(tmp_path, kind):
    feature = {
        "ner_tags": {"feature": {"names": ["O", "B-PER", "I-PER", "B-LOC"], "_type": "ClassLabel"}, "_type": kind}
    }
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(pa.table({"tokens": [["a", "b"]], "ner_tags": [[1, 2]]}, metadata=metadata), tmp_path / "a.parquet")
    task, splits = read_own(tmp_path / "a.parquet")
    assert task.classes == ("O", "B-PER", "I-PER", "B-LOC")  # also those that the training rows lack
    assert splits["train"].labels == [Tagged(("a", "b"), ("B-PER", "I-PER"))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "ner_tags": ["PER"]}, "row 0 has the tag 'PER', expected names of IOB2, IOBES or IO"),
        ({"tokens": ["a"], "ner_tags": ["PER-B"]}, "row 0 has the tag 'PER-B', expected names"),
        ({"tokens": ["a"], "ner_tags": [3]}, "row 0 has the tag 3, expected names of"),
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "expected a list of words and one of their tags"),
        ({"tokens": "a", "ner_tags": ["O"]}, "row 0 has 'a' and .'O'., expected a list of words"),
        ({"tokens": ["a"], "tags": ["O"]}, "has no column ner_tags, but tokens, tags; expected tokens, ner_tags"),
        ({"tokens": [], "ner_tags": []}, "has no words"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, row, message):
    (tmp_path / "a.json").write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        read_own(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU B-ORG\nrejects\n", "a.txt: line 2, 'rejects', has no tag; expected a word and its tag"),
        ("caf\xe9 O\n", "a.txt: not UTF-8; convert the file"),
    ],
)
def test_text_that_does_not_fit(tmp_path, content, message):
    (tmp_path / "a.txt").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        read_own(tmp_path / "a.txt")


def test_a_type_that_training_does_not_have(tmp_path):
    (tmp_path / "train.txt").write_text("a B-PER\nb O\n")
    (tmp_path / "dev.txt").write_text("a O\n\na S-PER\nb E-PER\n")
    assert read_own(tmp_path / "train.txt", tmp_path / "dev.txt")[0].classes == ("B-PER", "O")  # of another scheme
    (tmp_path / "dev.txt").write_text("a O\n\na B-LOK\n")
    with pytest.raises(InputError, match=r"row 1 has the tag 'B-LOK', expected a type that .*train.txt has: PER"):
        read_own(tmp_path / "train.txt", tmp_path / "dev.txt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{kind: tokens, hub: a/b, text: [a, b]}", "given text .*, expected the columns of words, one column"),
        ("{kind: tokens, hub: a/b, metrics: [accuracy]}", "expected some of f1, precision, recall for tokens"),
    ],
)
def test_descriptions_that_do_not_fit(spec, message):
    with pytest.raises(InputError, match=message):
        load_protocol([], [f"tasks.mine={spec}"])


# ------------------------------------------------------------------------------------------------ entities


@pytest.mark.parametrize(
    ("tags", "predictions", "correct", "there", "found"),
    [
        ("B-X I-X O B-Y", "B-X I-X O B-Y", 2, 2, 2),
        ("B-X I-X O B-Y", "B-X O O B-X", 0, 2, 2),  # too short, and of another type
        ("B-X B-X I-X O", "B-X B-X I-X O", 2, 2, 2),  # side by side
        ("B-X B-X I-X O", "B-X I-X I-X O", 0, 2, 1),
        ("B-X I-X O O", "I-X I-X O O", 1, 1, 1),  # conlleval begins an entity there
        ("B-X I-X O O", "B-X I-Y O O", 0, 1, 2),
        ("I-X I-X O I-Y", "I-X I-X O I-Y", 2, 2, 2),  # IO
        ("S-X S-X B-X E-X", "S-X S-X B-X E-X", 3, 3, 3),  # IOBES
        ("B-X I-X E-X S-Y", "B-X E-X S-X S-Y", 1, 2, 3),
        ("B-X E-X O O", "S-X I-X O O", 0, 1, 2),  # what is out of order, as conlleval reads it
        ("B-X I-X E-X O", "B-X E-X E-X O", 0, 1, 2),
        ("U-X B-X L-X O", "S-X B-X E-X O", 2, 2, 2),  # BILOU says the same with other letters
        ("B-X I-X I-X O", "B-X O B-X O", 0, 1, 2),
        ("O B-X O B-X", "O I-X I-X I-X", 0, 2, 1),
        ("O O", "O O", 0, 0, 0),
        ("O B-X", "O O", 0, 1, 0),
    ],
)
def test_entities_count_if_their_words_and_type_are_right(tags, predictions, correct, there, found):
    scores = entity_scores([tags.split(), ["B-Z"]], [predictions.split(), ["B-Z"]])  # one that is always right
    precision, recall = (correct + 1) / (found + 1), (correct + 1) / (there + 1)
    expected = {"f1": 2 * precision * recall / (precision + recall), "precision": precision, "recall": recall}
    assert scores == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_without_entities_nothing_is_found():
    assert entity_scores([["O"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


# -------------------------------------------------------------------------------------------------- pieces

TASK = own_task("ner", OwnTask(kind="tokens", hub="x", metrics=("f1", "precision", "recall")))


def tagged(*rows):
    return Rows([(" ".join(row.words),) for row in rows], list(rows))


def with_classes(*classes):
    return replace(TASK, classes=classes)


@pytest.mark.parametrize("kind", ZOO)
def test_a_words_tag_is_on_its_first_piece(tmp_path, kind):
    ZOO[kind](tmp_path / "zoo")
    tokenizer = load_tokenizer(str(tmp_path / "zoo"))
    words = ("the", "Quick", "don't", "\u00ad", "fox", "Zürich", "東京", "x" * 12)
    task = with_classes("O", *(f"B-{i}" for i in range(len(words))))
    tags = tuple(f"B-{i}" for i in range(len(words)))
    features = Tokens(task).encode(tokenizer, tagged(Tagged(words, tags), Tagged(("fox",), ("O",))), 64)
    text, (places, _) = " ".join(words), features.first_pieces
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    for number, (word, place) in enumerate(zip(words, places, strict=True)):
        if place < 0:
            assert word == "\u00ad"
            continue
        start, stop = offsets[place]
        assert word.startswith(text[start:stop].strip()), (word, text[start:stop])
        assert features.targets[0, place] == number + 1
    assert (features.targets[0] >= 0).sum() == (places >= 0).sum()  # no other piece has a target
    assert (features.targets[1] >= 0).sum() == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), small_model("bert"))


def test_words_beyond_the_row_are_missed_and_said(folder):
    rows = tagged(Tagged(("w1",) * 9, ("B-X",) * 9), Tagged(("w2", "\u00ad"), ("O", "O")))
    tokens, tokenizer = Tokens(with_classes("B-X", "O")), load_tokenizer(folder)
    features = tokens.encode(tokenizer, rows, 8)
    assert features.first_pieces[0].tolist() == [1, 2, 3, 4, 5, 6, -1, -1, -1]
    outputs = [np.array([[9.0] * n, [0.0] * n]) for n in features.lengths]
    assert tokens.predictions(features, outputs)[0] == ["B-X"] * 6 + ["O"] * 3
    assert tokens.score(rows, features, outputs)["recall"] == pytest.approx(100 * 6 / 9)
    assert tokens.check(tokenizer, rows, 8).startswith("4 of 11 words have no piece within finetuning.max_seq_length 8")
    assert tokens.check(tokenizer, tagged(Tagged(("w1",), ("O",))), 8) == ""


def test_the_metrics_are_those_of_the_task():
    rows = tagged(Tagged(("a", "b"), ("B-X", "O")))
    splits = {"train": rows, "validation": rows}
    assert facts_of(with_classes("B-X", "O"), splits, Finetuning()).constant_score == 0.0
    assert Tokens(own_task("n", OwnTask(kind="tokens", hub="x"))).constant_score(rows, rows) == {"f1": 0.0}


# ------------------------------------------------------------------------------------------------ learning

LEARNABLE = with_classes("B-X", "I-X", "O")
QUICK = Finetuning(learning_rate=3e-3, num_epochs=20, batch_size=16, max_seq_length=12, precision="fp32")


def sentences(num_rows, seed):
    """Runs of words of the first half are entities, in rows of several lengths."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        drawn = generator.integers(0, 20, size=generator.integers(3, 9))
        tags = ["O" if i >= 10 else "I-X" if n and drawn[n - 1] < 10 else "B-X" for n, i in enumerate(drawn)]
        rows.append(Tagged(tuple(f"w{i}" for i in drawn), tuple(tags)))
    return tagged(*rows)


TRAIN, VALIDATION = sentences(160, 0), sentences(40, 1)


def finetuner(folder, seed=1, protocol=QUICK):
    model, cpu = Tokens(LEARNABLE).load(folder, seed), torch.device("cpu")
    return Finetuner(model, load_tokenizer(folder), LEARNABLE, protocol, seed=seed, device=cpu)


def test_a_model_learns_tags_and_another_from_it(folder):
    teacher = finetuner(folder)
    assert teacher.model.config.id2label == {0: "B-X", 1: "I-X", 2: "O"}
    untrained = teacher.score({"validation": VALIDATION})
    assert list(untrained) == ["validation/f1", "validation/precision", "validation/recall", "score"]
    teacher.train({"train": TRAIN})
    learned = teacher.score({"validation": VALIDATION})["score"]
    assert learned > untrained["score"] + 40

    misleading = tagged(*(Tagged(row.words, ("O",) * len(row.words)) for row in TRAIN.labels))
    scores = []
    for alpha, temperature in ((1.0, 2.0), (1.0, 4.0), (0.0, 2.0)):
        student = finetuner(folder, seed=2)
        step = SecondStep(alpha=alpha, temperature=temperature)
        student.train({"train": misleading}, SoftTargets(teacher.logits(TRAIN), step))
        scores.append(student.score({"validation": VALIDATION})["score"])
    assert min(scores[:2]) > untrained["score"] + 30
    assert scores[2] == 0.0


def test_padding_is_no_part_of_it(folder):
    one = finetuner(folder)
    together, alone = one.logits(VALIDATION), [one.logits(tagged(row))[0] for row in VALIDATION.labels]
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_soft_targets_of_other_pieces_are_refused(folder):
    soft = [np.zeros((3, length + 1), np.float32) for length in finetuner(folder)._encode(TRAIN).lengths]
    with pytest.raises(InputError, match="the teacher splits the rows into other pieces than the student"):
        finetuner(folder).train({"train": TRAIN}, SoftTargets(soft, SecondStep()))


def test_a_row_of_nothing_does_no_harm(folder):
    """A batch in which no word has a piece: no loss, and no NaN."""
    nothing = tagged(Tagged(("\u00ad",), ("O",)))
    one = finetuner(folder, protocol=QUICK.model_copy(update={"batch_size": 1, "num_epochs": 1}))
    one.train({"train": nothing})
    assert all(bool(torch.isfinite(weight).all()) for weight in one.model.parameters())


def test_tags_over_several_seeds_and_with_soft_targets(ray_cluster, tmp_path, capsys):
    for name, layers in (("teacher", 2), ("student", 1)):
        save_model(tmp_path / name, small_model("bert", num_hidden_layers=layers))
    for name, rows in (("train", TRAIN), ("dev", VALIDATION)):
        lines = ("\n".join(map(" ".join, zip(*row, strict=True))) + "\n" for row in rows.labels)
        (tmp_path / f"{name}.conll").write_text("\n".join(lines))
    spec = f"{{kind: tokens, train: {tmp_path}/train.conll, validation: {tmp_path}/dev.conll}}"
    given = ["--teacher", str(tmp_path / "teacher"), "--student", f"half={tmp_path / 'student'}", "--seeds", "2"]
    given += [f"--set=tasks.ner={spec}", "--tasks", "ner", "--second-step", "--output", str(tmp_path / "out")]
    values = {"max_seq_length": 9, "learning_rate": 3e-3, "num_epochs": 20, "batch_size": 16}
    given += [f"--set=finetuning.{key}={value}" for key, value in values.items()]
    assert evaluate.main([*given, "--on-device=ner"]) == 2
    assert "--on-device: given ner, expected a task that asks for a class or a number" in capsys.readouterr().err
    assert evaluate.main(given) == 0
    out = capsys.readouterr().out
    assert "\nner, train: " in f"\n{out}"
    assert " words have no piece within finetuning.max_seq_length 9" in out
    models = json.loads((tmp_path / "out/report.json").read_text())["models"]
    assert [model["name"] for model in models] == ["teacher", "half", "half (D)"]
    assert all(model["tasks"]["ner"]["num_seeds"] == 2 for model in models)
    assert all(model["tasks"]["ner"]["median"] > 20 for model in models)
    (tmp_path / "out/results/half (D)/ner/seed-1.json").unlink()  # resumes with the soft targets that were kept
    assert evaluate.main(given) == 0
    assert "5 of 6 fine-tunings are already done" in capsys.readouterr().out
