"""One group, from text to masked rows: equal to its steps written out, whoever makes it, with nothing lost."""

import gzip
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizer

from distil_ray.config import Source
from distil_ray.data.batch import SKIPPED, digest
from distil_ray.data.corpus import list_corpus, read_texts
from distil_ray.data.files import BadFileError
from distil_ray.data.hashing import draws, stream_key
from distil_ray.data.masking import mask_rows, special_table
from distil_ray.data.rows import RowSettings, count_pieces, make_rows
from distil_ray.data.tally import Reason, Tally
from distil_ray.data.tokenization import Vocabulary
from distil_ray.errors import InputError

PAD, UNK, CLS, SEP, MASK = SPECIAL_IDS = range(5)
WORDS = [f"word{chr(ord('a') + i // 26)}{chr(ord('a') + i % 26)}" for i in range(300)]
PIECES = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
VOCABULARY = Vocabulary.from_pretrained(BertTokenizer(vocab=PIECES))
SETTINGS = RowSettings(max_seq_length=20, mlm_probability=0.15, mask_replace_prob=0.8, random_replace_prob=0.1, seed=7)


def random_texts(num_texts, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(num_texts)]


def write_corpus(folder, texts, row_group_size=5, name="a.parquet", **options):
    pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=row_group_size, **options)
    return list_corpus([Source(path=str(folder))])


def make(corpus, units=None, settings=SETTINGS, split="train", group=3, **options):
    units = range(corpus.num_units) if units is None else units
    tally = Tally()
    texts = read_texts(corpus, units, tally, **options)
    return make_rows(texts, tally, VOCABULARY, settings, split=split, group=group), tally


def reference(texts_of_units, settings, split, group):
    """The rows of a group, step by step, on lists."""
    stream = []
    for texts in texts_of_units:
        for text in texts:
            stream += [PIECES.get(word, UNK) for word in text.split()] + [SEP]
    body_length = settings.max_seq_length - 2
    num_rows = -(-len(stream) // body_length)
    endless = stream * (1 + body_length)
    rows = [[CLS, *endless[i * body_length : (i + 1) * body_length], SEP] for i in range(num_rows)]
    shuffle_key = stream_key(settings.seed, split, "shuffle", group)
    order = sorted(range(num_rows), key=lambda row: draws(shuffle_key, np.array([row], np.uint64))[0])
    mask_key = stream_key(settings.seed, split, "mask", group)
    masked = [
        mask_rows(
            np.array([rows[row]], np.uint16),
            draws(mask_key, np.array([place], np.uint64)),
            num_masked=settings.num_masked,
            mask_id=MASK,
            is_special=special_table(len(PIECES), tuple(SPECIAL_IDS)),
            mask_replace_prob=settings.mask_replace_prob,
            random_replace_prob=settings.random_replace_prob,
            piece_weights=settings.piece_weights,
        )
        for place, row in enumerate(order)
    ]
    return [np.concatenate(arrays).tolist() for arrays in zip(*masked, strict=True)]


def unmasked(rows):
    original = rows["input_ids"].copy()
    np.put_along_axis(original, rows["masked_positions"].astype(int), rows["masked_labels"], axis=1)
    return original


WEIGHTS = np.random.default_rng(0).uniform(0.1, 5, len(PIECES))


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, max_seq_length=64, mlm_probability=0.4, mask_replace_prob=0.5, random_replace_prob=0.5),
        replace(SETTINGS, piece_weights=WEIGHTS),
    ],
    ids=["plain", "other shares", "weights"],
)
def test_rows_equal_the_steps_written_out(tmp_path, settings):
    texts = random_texts(20)
    units = [2, 0, 3]
    rows, tally = make(write_corpus(tmp_path, texts), units, settings, split="eval", group=11)
    texts_of_units = [texts[5 * unit : 5 * unit + 5] for unit in units]
    expected = reference(texts_of_units, settings, "eval", 11)
    assert [rows[name].tolist() for name in ("input_ids", "masked_positions", "masked_labels")] == expected
    num_rows = len(expected[0])
    assert rows["row"].tolist() == list(range(num_rows))
    assert rows["group"].tolist() == [11] * num_rows
    assert rows["group_rows"].tolist() == [num_rows] * num_rows
    num_pieces = sum(len(text.split()) + 1 for texts in texts_of_units for text in texts)
    counts = dict(zip(SKIPPED, rows["skipped"][0].tolist(), strict=True))
    assert {name: count for name, count in counts.items() if count} == {"documents": 15, "pieces": num_pieces}
    assert not rows["skipped"][1:].any()
    assert counts == tally.counts()


def test_arrays_have_the_form_of_a_batch(tmp_path):
    rows, _ = make(write_corpus(tmp_path, random_texts(5)))
    num_rows, num_masked = len(rows["row"]), SETTINGS.num_masked
    assert num_masked == 3
    assert {name: (values.shape, values.dtype) for name, values in rows.items()} == {
        "input_ids": ((num_rows, 20), np.uint16),
        "masked_positions": ((num_rows, num_masked), np.int16),
        "masked_labels": ((num_rows, num_masked), np.uint16),
        "group": ((num_rows,), np.int32),
        "row": ((num_rows,), np.int32),
        "group_rows": ((num_rows,), np.int32),
        "skipped": ((num_rows, len(SKIPPED)), np.int32),
    }


def test_every_piece_of_the_text_is_in_the_rows(tmp_path):
    texts = random_texts(40)
    rows, _ = make(write_corpus(tmp_path, texts))
    stream = [i for text in texts for i in [*(PIECES[word] for word in text.split()), SEP]]
    body = unmasked(rows)[:, 1:-1]
    num_filled = body.size - len(stream)
    assert 0 <= num_filled < 18
    assert Counter(body.ravel().tolist()) == Counter(stream) + Counter(stream[:num_filled])


def digests(corpus, groups):
    return {group: digest(make(corpus, [group, group + 4], group=group)[0]) for group in groups}


def test_rows_are_the_same_in_any_process_and_any_order(tmp_path):
    corpus = write_corpus(tmp_path, random_texts(40))
    expected = digests(corpus, [0, 1, 2, 3])
    assert len(set(expected.values())) == 4
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(digests, corpus, [3, 0, 2, 1]).result() == expected


@pytest.mark.parametrize("change", [{"group": 4}, {"split": "eval"}, {"settings": replace(SETTINGS, seed=8)}])
def test_group_split_and_seed_change_order_and_masks_and_nothing_else(tmp_path, change):
    corpus = write_corpus(tmp_path, random_texts(40))
    first, other = make(corpus)[0], make(corpus, **change)[0]
    assert unmasked(first).tolist() != unmasked(other).tolist()
    assert sorted(unmasked(first).tolist()) == sorted(unmasked(other).tolist())
    assert (first["masked_positions"] != other["masked_positions"]).any(axis=1).mean() > 0.9


def test_rows_are_shuffled(tmp_path):
    """Rows of one document, whose words are in the vocabulary's order, come in another."""
    corpus = write_corpus(tmp_path, [" ".join(WORDS)])
    first_pieces = unmasked(make(corpus)[0])[:, 1].tolist()
    assert len(first_pieces) == 17
    assert first_pieces != sorted(first_pieces)


# What is left out


def test_documents_without_text_are_counted(tmp_path):
    texts = ["", *random_texts(3), None, " \n", *random_texts(2), None]
    corpus = write_corpus(tmp_path, texts)
    rows, tally = make(corpus)
    clean = make(write_corpus(tmp_path, [text for text in texts if text and text.strip()]))[0]
    assert digest(rows) == digest(clean)
    counts = dict(zip(SKIPPED, rows["skipped"][0].tolist(), strict=True))
    assert counts == tally.counts()
    assert (counts["documents"], counts["skipped_documents"]) == (9, 4)
    assert (counts["skipped_null"], counts["skipped_blank"]) == (2, 2)
    assert not rows["skipped"][1:].any()
    assert tally.first_places == {
        Reason.NULL: f"{corpus.files[0].path}, row 4 of row group 0",
        Reason.BLANK: f"{corpus.files[0].path}, row 0 of row group 0",
    }


def test_rows_without_enough_ordinary_pieces_are_left_out_and_counted(tmp_path):
    num_unknown = 18 * 3 + 2  # three rows of unknown pieces, and two more in a row with ordinary ones
    unknown = " ".join(["unknown"] * num_unknown)
    texts = [unknown, *random_texts(5)]
    rows, tally = make(write_corpus(tmp_path, texts))
    counts = dict(zip(SKIPPED, rows["skipped"][0].tolist(), strict=True))
    assert (counts["skipped_documents"], counts["skipped_rows"], counts["skipped_units"]) == (0, 3, 0)
    assert counts["unknown_pieces"] == tally.counted["unknown_pieces"] == num_unknown
    assert counts["pieces"] == tally.counted["pieces"] == sum(len(text.split()) + 1 for text in texts)
    num_special = np.isin(unmasked(rows), list(SPECIAL_IDS)).sum(axis=1)
    assert (20 - num_special >= SETTINGS.num_masked).all()
    assert rows["row"].tolist() == list(range(len(rows["row"])))
    assert (rows["group_rows"] == len(rows["row"])).all()


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["unknown " * 100], "each of its 6 rows has too few ordinary pieces to mask: 99% of the pieces are [UNK]"),
        ([None, ""], "2 of 2 documents skipped (100.0%): 1 null (the first: "),
        (["\u200b"], "the tokenizer finds no piece in its 1 documents"),
    ],
)
def test_a_group_without_any_row_says_why(tmp_path, texts, reason):
    rows, tally = make(write_corpus(tmp_path, texts))
    assert rows["input_ids"].shape == (0, 20)
    assert rows["masked_positions"].shape == rows["masked_labels"].shape == (0, 3)
    assert rows["skipped"].shape == (0, len(SKIPPED))
    assert digest(rows) == 0
    assert tally.why_no_row().startswith(reason)


def test_a_beginning_ends_after_the_document_that_fills_it(tmp_path):
    texts = random_texts(15)
    rows, tally = make(write_corpus(tmp_path, texts), max_characters=len(texts[0]) + len(texts[1]) + 1)
    assert tally.counted["documents"] == 3
    assert digest(rows) == digest(make(write_corpus(tmp_path, texts[:3]))[0])


def damage(path, row_group):
    content = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(row_group).column(0).data_page_offset
    content[page + 40 : page + 60] = b"\0" * 20
    path.write_bytes(content)


def test_a_damaged_unit_is_an_error_or_is_left_out_with_a_message(tmp_path):
    corpus = write_corpus(tmp_path, random_texts(15), compression="zstd", use_dictionary=False)
    expected = make(corpus, [2, 0])[0]
    damage(tmp_path / "a.parquet", row_group=1)
    with pytest.raises(BadFileError, match=r"a.parquet: row group 1: damaged"):
        make(corpus, [2, 1, 0])
    rows, tally = make(corpus, [2, 1, 0], skip_bad_units=True)
    assert digest(rows) == digest(expected)
    assert rows["skipped"][0, SKIPPED.index("skipped_units")] == 1
    (message,) = tally.unit_errors
    assert "a.parquet: row group 1: damaged" in message


def test_documents_in_front_of_the_damage_are_kept(tmp_path):
    texts = random_texts(800) * 16  # 3 MB: it is decompressed a megabyte at a time
    content = gzip.compress("\n\n".join(texts).encode(), compresslevel=1)
    (tmp_path / "a.txt.gz").write_bytes(content[: len(content) // 2])
    rows, tally = make(list_corpus([Source(path=str(tmp_path))]), skip_bad_units=True)
    assert len(tally.unit_errors) == 1
    stream = [i for text in texts for i in [*(PIECES[word] for word in text.split()), SEP]]
    body = unmasked(rows)[:, 1:-1]
    assert 0.2 * len(stream) < body.size < 0.6 * len(stream)
    assert not Counter(body[:, 0].tolist()) - Counter(stream)


def test_a_unit_that_is_gone_or_changed_is_an_error_always(tmp_path):
    corpus = write_corpus(tmp_path, random_texts(5))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="changed while in use"):
        make(corpus, skip_bad_units=True)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InputError, match="cannot be reached"):
        make(corpus, skip_bad_units=True)


def test_pieces_are_counted(tmp_path):
    texts = random_texts(10)
    counts = count_pieces(read_texts(write_corpus(tmp_path, [*texts, None]), [1, 0]), VOCABULARY)
    expected = Counter(PIECES[word] for text in texts for word in text.split()) + Counter({SEP: 10})
    assert counts.shape == (len(PIECES),)
    assert counts.dtype == np.int64
    assert dict(enumerate(counts)) == {i: expected[i] for i in range(len(PIECES))}


PEAK_OF_TWO = """
import re, sys
from distil_ray.config import Source
from distil_ray.data.corpus import list_corpus
from test_rows import make
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
for path in sys.argv[1:]:
    corpus = list_corpus([Source(path=path)])
    assert corpus.num_units == 1
    make(corpus)
    print(peak())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_a_large_unit_takes_little_more_memory_than_its_ids(tmp_path):
    small, large = 2**21, 2**23
    text = "\n\n".join(random_texts(3000))
    for num_bytes in (small, large):
        with gzip.open(tmp_path / f"{num_bytes}.txt.gz", "wt", compresslevel=1) as file:
            file.write((text + "\n\n") * (num_bytes // len(text) + 1))
    paths = [tmp_path / f"{num_bytes}.txt.gz" for num_bytes in (small, large)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    arguments = [sys.executable, "-c", PEAK_OF_TWO, *paths]
    run = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
    peaks = [int(line) for line in run.stdout.split()]
    assert peaks[1] - peaks[0] < 3 * (large - small)
