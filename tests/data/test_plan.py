"""The plan of a run's data: what trains, what is held out, and by what it is recognised again."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizer

from distil_ray.config import Source
from distil_ray.data.plan import MAX_HELDOUT_UNITS, explain_fingerprints, make_plan
from distil_ray.data.rows import RowSettings
from distil_ray.data.tokenization import Vocabulary
from distil_ray.errors import InputError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "some", "text"]
SETTINGS = RowSettings(max_seq_length=16, mlm_probability=0.2, mask_replace_prob=0.8, random_replace_prob=0.1, seed=0)


def vocabulary(*more_pieces, **options):
    pieces = {piece: i for i, piece in enumerate([*PIECES, *more_pieces])}
    return Vocabulary.from_pretrained(BertTokenizer(vocab=pieces, **options))


def write(path, num_units=20, words=1):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": [f"some text {i} " * words for i in range(num_units)]}), path, row_group_size=1)


def plan_of(path, eval_path=None, **options):
    options = {"eval_fraction": 0.2, "num_epochs": None, "on_bad_file": "error"} | options
    settings, vocab = options.pop("settings", SETTINGS), options.pop("vocabulary", vocabulary())
    eval_sources = None if eval_path is None else [Source(path=str(eval_path))]
    return make_plan([Source(path=str(path))], eval_sources, vocab, settings, **options)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train" / "a.parquet", 60)
    write(tmp_path / "train" / "b.parquet", 40)
    return tmp_path / "train"


def test_held_out_units_are_not_trained_on_and_none_is_lost(folder):
    plan = plan_of(folder)
    assert plan.eval_corpus is plan.corpus
    train, held_out = set(plan.schedule.units.tolist()), set(plan.eval_units.tolist())
    assert len(held_out) == pytest.approx(20, abs=1)
    assert not train & held_out
    assert train | held_out == set(range(100))
    assert set(plan_of(folder, settings=replace(SETTINGS, seed=1)).eval_units.tolist()) != held_out
    groups = range(plan.schedule.groups_per_epoch)
    assert sorted(unit for group in groups for unit in plan.schedule.units_of(group)) == sorted(train)


def test_the_schedule_knows_its_units_sizes(tmp_path):
    pq.write_table(
        pa.table({"text": ["some text " * 10**i for i in range(5)]}), tmp_path / "a.parquet", row_group_size=1
    )
    plan = plan_of(tmp_path, eval_fraction=0.01)
    assert plan.schedule.unit_bytes.tolist() == plan.corpus.unit_bytes[plan.schedule.units].tolist()


def test_no_evaluation(folder):
    plan = plan_of(folder, eval_fraction=0)
    assert len(plan.eval_units) == 0
    assert plan.schedule.units.tolist() == list(range(100))


def test_sources_of_their_own_for_evaluation(folder, tmp_path):
    write(tmp_path / "heldout" / "c.parquet", 7, words=3)
    plan = plan_of(folder, tmp_path / "heldout")
    assert plan.schedule.units.tolist() == list(range(100))
    assert sorted(plan.eval_units.tolist()) == list(range(7))
    assert [file.name for file in plan.eval_corpus.files] == ["c.parquet"]
    assert [file.name for file in plan.corpus.files] == ["a.parquet", "b.parquet"]


def test_held_out_units_are_few_and_spread_by_the_seed(folder):
    plan = plan_of(folder, folder)
    assert len(plan.eval_units) == MAX_HELDOUT_UNITS < 100
    assert len(set(plan.eval_units.tolist())) == MAX_HELDOUT_UNITS
    assert plan.eval_units.tolist() != sorted(plan.eval_units.tolist())
    assert plan.eval_units.tolist() == plan_of(folder, folder).eval_units.tolist()
    other = plan_of(folder, folder, settings=replace(SETTINGS, seed=1))
    assert plan.eval_units.tolist() != other.eval_units.tolist()


def test_epochs_and_seed_reach_the_schedule(folder):
    plan = plan_of(folder, num_epochs=3, settings=replace(SETTINGS, seed=5))
    assert plan.schedule.num_groups == 3 * plan.schedule.groups_per_epoch
    assert plan.schedule.seed == 5
    assert plan_of(folder).schedule.num_groups is None


def test_a_plan_is_small_and_survives_the_way_to_another_process(folder):
    plan = plan_of(folder)
    content = pickle.dumps(plan)
    assert len(content) < 50_000
    copy = pickle.loads(content)
    assert copy.fingerprint() == plan.fingerprint()
    assert copy.schedule.units_of(5).tolist() == plan.schedule.units_of(5).tolist()


# Recognising the data again


def test_the_same_data_elsewhere_has_the_same_fingerprint(folder, tmp_path):
    fingerprint = plan_of(folder).fingerprint()
    folder.rename(tmp_path / "moved")
    again = plan_of(tmp_path / "moved").fingerprint()
    assert explain_fingerprints(fingerprint, again) == []
    assert again == fingerprint


def test_a_fingerprint_survives_json(folder):
    fingerprint = plan_of(folder).fingerprint()
    restored = json.loads(json.dumps(fingerprint))
    assert explain_fingerprints(fingerprint, restored) == []
    assert restored == fingerprint


def test_changes_of_the_corpus_are_explained(folder, tmp_path):
    write(tmp_path / "heldout" / "c.parquet", 7)
    before = plan_of(folder, tmp_path / "heldout").fingerprint()
    write(folder / "b.parquet", 41)
    (folder / "a.parquet").rename(folder / "d.parquet")
    write(tmp_path / "heldout" / "c.parquet", 8)
    after = plan_of(folder, tmp_path / "heldout").fingerprint()
    reasons = explain_fingerprints(before, after)
    assert reasons[0] == "corpus: a.parquet: is gone"
    assert reasons[1].startswith("corpus: b.parquet: ")
    assert "num_rows was 40, is 41" in reasons[1]
    assert reasons[2] == "corpus: d.parquet: is new"
    assert "eval_corpus: c.parquet: " in reasons[3]
    assert len(reasons) == 4
    assert before != after


@pytest.mark.parametrize("other", [vocabulary("more"), vocabulary(do_lower_case=False)], ids=["pieces", "case"])
def test_another_tokenizer_is_noticed(folder, other):
    before, after = plan_of(folder).fingerprint(), plan_of(folder, vocabulary=other).fingerprint()
    (reason,) = explain_fingerprints(before, after)
    assert reason.startswith("tokenizer: ")
    assert before != after


# Bad input


def test_bad_files_are_errors_or_skipped(folder):
    (folder / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match=r"bad\.parquet: not a Parquet file, or damaged .*data\.on_bad_file: skip"):
        plan_of(folder)
    plan = plan_of(folder, on_bad_file="skip")
    assert plan.skip_bad_files
    assert plan.corpus.num_units == 100
    (skipped,) = plan.corpus.skipped_files
    assert skipped.path == str(folder / "bad.parquet")
    (folder / "bad.parquet").unlink()
    assert not plan_of(folder).skip_bad_files


def test_bad_files_of_the_evaluation_too(folder, tmp_path):
    write(tmp_path / "heldout" / "c.parquet", 7)
    (tmp_path / "heldout" / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match=r"bad\.parquet: not a Parquet file"):
        plan_of(folder, tmp_path / "heldout")
    plan = plan_of(folder, tmp_path / "heldout", on_bad_file="skip")
    assert len(plan.eval_corpus.skipped_files) == 1


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="nothing to read"):
        plan_of(tmp_path, on_bad_file="skip")


def test_a_single_unit_cannot_be_split(tmp_path):
    write(tmp_path / "one" / "a.parquet", 1)
    with pytest.raises(InputError, match=r"eval_sources, or set eval_fraction: 0"):
        plan_of(tmp_path / "one")
    assert len(plan_of(tmp_path / "one", eval_fraction=0).schedule.units) == 1
    assert np.array_equal(plan_of(tmp_path / "one", tmp_path / "one").eval_units, [0])


# Looking at the text


def write_lines(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\n\n".join(lines))
    return path


def test_the_first_rows_are_those_of_the_first_group_that_gives_any(tmp_path):
    good, bad = b"some text " * 200, b"\xff " * 1000
    for i in range(20):  # a unit and a group each
        write_lines(tmp_path / "text" / f"{i:02}.txt", [b"some", good, good if i % 4 == 0 else bad])
    plan = plan_of(tmp_path / "text", eval_fraction=0, vocabulary=vocabulary())
    rows, tally = plan.first_rows()
    expected, of_group = plan.rows_of("train", 0)
    assert rows["input_ids"].tolist() == expected["input_ids"].tolist()
    # The others are only counted.
    assert (tally.num_rows, tally.counted["pieces"]) == (of_group.num_rows, of_group.counted["pieces"])
    assert (tally.counted["documents"], tally.counted["skipped_not_utf8"]) == (60, 15)


def test_groups_without_a_row_are_passed_over(tmp_path):
    for i in range(20):
        write_lines(tmp_path / "text" / f"{i:02}.txt", [b"some text " * 20 if i == 7 else b"other words " * 20])
    plan = plan_of(tmp_path / "text", eval_fraction=0)
    rows, tally = plan.first_rows()
    group = next(group for group in range(20) if plan.schedule.units_of(group).tolist() == [7])
    assert group > 0
    assert set(rows["group"].tolist()) == {group}
    assert tally.counted["documents"] == 20
    assert tally.num_rows > len(rows["row"])


def test_text_without_a_row_says_why(tmp_path):
    for i in range(3):
        write_lines(tmp_path / "text" / f"{i}.txt", [b"other words " * 20])
    plan = plan_of(tmp_path / "text", eval_fraction=0)
    for look in (plan.first_rows, plan.glance):
        with pytest.raises(
            InputError, match=r"data\.sources: .* no row.*of the pieces are \[UNK\]; expected text in a"
        ):
            look()


def test_a_glance_is_at_the_held_out_text_too_and_is_short(tmp_path):
    write_lines(tmp_path / "text" / "a.txt", [b"some text " * 20] * 50_000)  # 10 MB in 1 MB units
    write_lines(tmp_path / "eval" / "a.txt", [b"other words " * 20])
    assert plan_of(tmp_path / "text", tmp_path / "text").glance().counted["documents"] < 2000
    with pytest.raises(InputError, match=r"the held-out text: the units that were tried give no row"):
        plan_of(tmp_path / "text", tmp_path / "eval").glance()


def test_a_glance_passes_over_units_without_a_document(tmp_path):
    write_lines(tmp_path / "text" / "a.txt", [b"some text " * 300_000])
    plan = plan_of(tmp_path / "text", eval_fraction=0)
    assert plan.corpus.num_units > 100
    assert plan.glance().counted["documents"] == 1
