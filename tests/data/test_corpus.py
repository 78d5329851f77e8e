"""Listing and reading local files: formats, units, and every kind of bad input."""

import gzip
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distil_ray.config import Source
from distil_ray.data import documents
from distil_ray.data.corpus import explain_difference, list_corpus, read_texts, read_unit
from distil_ray.data.files import BadFileError, ReachableFile
from distil_ray.errors import InputError

# Not ru_maxrss: it starts at what the parent process holds when it forks.
READ_AND_REPORT_PEAK = """
import re, sys
from distil_ray.config import Source
from distil_ray.data.corpus import list_corpus, read_unit
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
corpus = list_corpus([Source(path=sys.argv[1])])
before = peak()
lengths = []
for unit in range(corpus.num_units):
    for document in read_unit(corpus, unit):
        lengths.append(None if document is None else len(document))
print([peak() - before, lengths, corpus.num_units])
"""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(path, texts, row_group_size=2, column="text", **options):
    table = pa.table({"id": list(range(len(texts))), column: texts})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size, **options)
    return path


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def list_path(path, on_bad_file="error", **source):
    return list_corpus([Source(path=str(path), **source)], on_bad_file=on_bad_file)


def read(corpus):
    return [document for unit in range(corpus.num_units) for document in read_unit(corpus, unit)]


def with_unit_size(corpus, unit_size):
    """Cut the one file of a corpus into ranges of another size."""
    size = corpus.files[0].size_bytes
    starts = np.arange(0, size, unit_size)
    stops = np.minimum(starts + unit_size, size)
    return replace(
        corpus,
        unit_file=np.zeros(len(starts), np.int32),
        unit_start=starts,
        unit_stop=stops,
        unit_bytes=stops - starts,
    )


# Formats


def test_parquet_row_groups_are_units(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["one", "two", None, "four", " \n", "sechs ä"])
    corpus = list_path(path)
    assert [list(read_unit(corpus, unit)) for unit in range(3)] == [
        ["one", "two"],
        [None, "four"],
        [None, "sechs ä"],
    ]
    assert corpus.unit_start.tolist() == [0, 1, 2]
    assert corpus.unit_stop.tolist() == [1, 2, 3]
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).column(1).total_uncompressed_size for group in range(3)]
    assert corpus.unit_bytes.tolist() == sizes
    assert corpus.num_bytes == sum(sizes)
    assert corpus.files[0].num_rows == 6


@pytest.mark.parametrize("column_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_types_of_text(tmp_path, column_type):
    texts = ["one", None, "three", "one"]
    write_parquet(tmp_path / "a.parquet", pa.array(texts, pa.string()).cast(column_type))
    assert read(list_path(tmp_path)) == texts


def test_parquet_text_that_is_not_utf8_is_skipped(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe bad", b"fine"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    write_parquet(tmp_path / "a.parquet", texts)
    assert read(list_path(tmp_path)) == ["good", None, "fine"]


def test_text_documents_end_at_blank_lines(tmp_path):
    write(tmp_path / "a.txt", "\n\none\n two \n\n \t\nthree\r\nfour\r\n\r\nfünf")
    assert read(list_path(tmp_path)) == ["one\n two ", "three\nfour", "fünf"]


def test_byte_order_mark_is_no_text(tmp_path):
    write(tmp_path / "a.txt", b"\xef\xbb\xbfone\n\ntwo\n")
    write(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"text": "three"}\n')
    assert read(list_path(tmp_path)) == ["one", "two", "three"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(tmp_path, suffix):
    lines = ['{"body": "one\\ntwo"}', "", '{"body": "drei ä", "n": 1}', '{"n": 2}', '{"body": null}']
    write(tmp_path / f"a{suffix}", "\n".join(lines))
    assert read(list_path(tmp_path, column="body")) == ["one\ntwo", "drei ä", None, None]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1, 2]",
        '"text"',
        '{"text": 5}',
        '{"text": ""}',
        '{"text": "\\ud800"}',
        '{"text": "cut of',
        '{"text": "two"} {"text": "objects"}',
        "[" * 100_000,
        b'{"text": "\xff"}',
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_bad_json_lines_are_skipped(tmp_path, line, place):
    lines = [b'{"text": "good"}']
    lines.insert(place, line if isinstance(line, bytes) else line.encode())
    write(tmp_path / "a.jsonl", b"\n".join(lines))
    expected = ["good"]
    expected.insert(place, None)
    assert read(list_path(tmp_path)) == expected


def test_text_lines_that_are_not_utf8_cost_their_document_alone(tmp_path):
    write(tmp_path / "a.txt", b"good\n\nba\xffd\nline\n\nfine \xc3\xa4\n")
    assert read(list_path(tmp_path)) == ["good", None, "fine ä"]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_a_compressed_file_is_one_unit(tmp_path, suffix, compress):
    text = b"".join(b"document %d\nsecond line\n\n" % i for i in range(20_000))
    path = write(tmp_path / f"a.txt{suffix}", compress(text[:100_000]) + compress(text[100_000:]))
    write(tmp_path / f"b.jsonl{suffix}", compress(b'{"text": "one"}\n{"text": "two"}\n'))
    corpus = list_path(tmp_path)
    assert corpus.num_units == 2
    assert corpus.unit_bytes[0] == 3 * path.stat().st_size
    assert read(corpus) == [f"document {i}\nsecond line" for i in range(20_000)] + ["one", "two"]


# Units


@pytest.mark.parametrize("seed", range(24))
def test_every_line_is_read_exactly_once_whatever_the_ranges(tmp_path, seed):
    rng = random.Random(seed)
    lengths = [0, 0, 1, 2, 3, 10, 40, 300] if seed % 2 else [0, 1, 2]
    lines = ["ä" * rng.choice(lengths) for _ in range(rng.randint(1, 60))]
    newline = rng.choice(["\n", "\r\n"])
    content = newline.join([*lines, "the end"]) + rng.choice(["", newline])
    write(tmp_path / "a.txt", content)
    write(tmp_path / "b.jsonl", newline.join(json.dumps({"text": line}) for line in [*lines, "the end"]))

    for unit_size in {1, 2, rng.randint(1, 20), rng.randint(1, 2000)}:
        text = read(with_unit_size(list_path(tmp_path / "a.txt"), unit_size))
        assert "\n".join(text).split("\n") == [line for line in [*lines, "the end"] if line]
        assert read(with_unit_size(list_path(tmp_path / "b.jsonl"), unit_size)) == [
            line or None for line in [*lines, "the end"]
        ]


def test_ranges_follow_the_size_of_the_whole_corpus(tmp_path):
    paragraph = b"x" * 99 + b"\n"
    write(tmp_path / "small.txt", paragraph * 400)
    alone = list_path(tmp_path)
    assert alone.unit_stop.tolist() == [13_333, 26_666, 40_000]  # 16 KiB at most, equal parts
    assert alone.num_bytes == 40_000

    write(tmp_path / "large.txt", paragraph * 100_000)
    together = list_path(tmp_path)
    unit_size = together.num_bytes // 128
    assert 64 * 2**10 < unit_size < 2**20
    assert together.unit_bytes.max() <= unit_size
    assert together.num_units == 128 + 1
    assert [together.files[file].name for file in np.unique(together.unit_file)] == ["large.txt", "small.txt"]


def test_a_range_within_one_huge_line_is_empty_and_reads_little_more_than_itself(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", b"x" * 500_000 + b"\nlast line\n")
    corpus = list_path(tmp_path)
    num_bytes_read = []
    read_file = ReachableFile.read

    def counting_read(self, size=-1):
        num_bytes_read.append(size)
        return read_file(self, size)

    monkeypatch.setattr(ReachableFile, "read", counting_read)
    assert list(read_unit(corpus, 1)) == []
    assert corpus.unit_bytes[1] <= sum(num_bytes_read) <= 1.07 * corpus.unit_bytes[1]
    assert read(corpus) == ["x" * 500_000, "last line"]


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")


@needs_proc
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.txt.zst"])
def test_a_line_of_20_million_characters_takes_bounded_memory(tmp_path, name):
    line = b"word " * 4_000_000
    content = b'{"text": "' + line + b'"}\n{"text": "end"}\n' if "json" in name else line + b"\n\nend\n"
    compress = {".gz": lambda raw: gzip.compress(raw, 1), ".zst": zstd}.get(os.path.splitext(name)[1], bytes)
    path = write(tmp_path / name, compress(content))
    run = subprocess.run([sys.executable, "-c", READ_AND_REPORT_PEAK, path], check=True, capture_output=True, text=True)
    growth, lengths, num_units = json.loads(run.stdout)
    assert lengths == [20_000_000, 3]
    assert growth < 160 * 2**20
    assert num_units == (1 if path.suffix in (".gz", ".zst") else 129)


def test_a_longer_document_is_cut_between_characters_and_a_longer_json_line_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1_000_000)
    text = "€" * 1_500_000
    write(tmp_path / "a.txt", text + "\n\nend")
    pieces = read(list_path(tmp_path / "a.txt"))
    assert "".join(pieces[:-1]) == text
    assert len(pieces) > 4
    assert pieces[-1] == "end"
    write(tmp_path / "b.jsonl", json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "end"}\n')
    assert read(list_path(tmp_path / "b.jsonl")) == [None, "end"]
    write(tmp_path / "c.txt.gz", gzip.compress(b"a line\n" * 200_000))
    assert "\n".join(read(list_path(tmp_path / "c.txt.gz"))) == "\n".join(["a line"] * 200_000)


@needs_proc
def test_a_large_row_group_is_streamed(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(32, 127, 10_000))) for _ in range(100)] * 150  # 150 MB
    path = write_parquet(tmp_path / "a.parquet", texts, row_group_size=10**6, use_dictionary=False)
    run = subprocess.run([sys.executable, "-c", READ_AND_REPORT_PEAK, path], check=True, capture_output=True, text=True)
    growth, lengths, num_units = json.loads(run.stdout)
    assert (len(lengths), num_units) == (15_000, 1)
    assert growth < 100 * 2**20


def test_a_corpus_of_many_units_is_small_to_pickle(tmp_path):
    write(tmp_path / "a.txt", b"x\n" * 1000)
    corpus = list_path(tmp_path)
    units = {name: np.repeat(getattr(corpus, name), 340_000) for name in ("unit_file", "unit_start", "unit_stop")}
    corpus = replace(corpus, **units, unit_bytes=units["unit_stop"])
    assert corpus.num_units == 340_000
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 340_000 * 28 + 10_000
    assert list(read_unit(pickle.loads(pickled), 1)) == list(read_unit(corpus, 1))


# Sources


def test_files_are_sorted_by_name_and_hidden_ones_ignored(tmp_path):
    for name in ["b/2.txt", "b/10.txt", "a.txt", "_SUCCESS", ".crc.txt", "_temporary/0.txt", "b/_metadata"]:
        write(tmp_path / name, name)
    expected = ["a.txt", "b/10.txt", "b/2.txt"]
    corpus = list_path(tmp_path)
    assert [file.name for file in corpus.files] == expected
    assert [file.path for file in corpus.files] == [str(tmp_path / name) for name in expected]
    assert read(corpus) == expected
    assert [file.name for file in list_path(tmp_path / "**" / "*.txt").files] == expected
    assert [file.name for file in list_path(tmp_path / "*").files] == ["a.txt"]
    assert [file.name for file in list_path(tmp_path / "b" / "1?.txt").files] == ["10.txt"]
    assert [file.name for file in list_path(tmp_path / "b" / "2.txt").files] == ["2.txt"]


def test_success_marker_beside_parquet_is_ignored(tmp_path):
    write_parquet(tmp_path / "part-0.parquet", ["one"])
    write(tmp_path / "_SUCCESS", b"")
    for path in (tmp_path, tmp_path / "*"):
        assert read(list_path(path)) == ["one"]


def test_relative_paths_and_glob_characters_in_names(tmp_path, monkeypatch):
    write(tmp_path / "data" / "a[1].txt", "one")
    monkeypatch.chdir(tmp_path)
    for path in ("data", "data/a[1].txt", "./data/../data", "data/a*"):
        corpus = list_path(path)
        assert [file.path for file in corpus.files] == [str(tmp_path / "data" / "a[1].txt")]
    monkeypatch.chdir("/")
    assert read(corpus) == ["one"]


def test_sources_keep_their_order_and_columns(tmp_path):
    write_parquet(tmp_path / "z" / "a.parquet", ["one"], column="body")
    write(tmp_path / "a" / "a.jsonl", '{"title": "two"}')
    sources = [
        Source(path=str(tmp_path / "z"), column="body"),
        Source(path=str(tmp_path / "a"), column="title"),
    ]
    assert read(list_corpus(sources)) == ["one", "two"]


# Bad input


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.txt", r"no such file or folder: .*missing\.txt"),
        ("missing/*.txt", r"no such file or folder: .*missing/\*\.txt"),
        ("*.jsonl", r"no data files match or are below .*\*\.jsonl"),
        ("empty_folder", "no data files match or are below .*empty_folder"),
        ("unknown://a/b.txt", "unknown://a/b.txt: cannot be reached: .*unknown"),
    ],
)
def test_a_source_without_files(tmp_path, path, message):
    write(tmp_path / "a.txt", "one")
    (tmp_path / "empty_folder").mkdir()
    with pytest.raises(InputError, match=message):
        list_path(path if "://" in path else tmp_path / path)


def test_no_sources():
    with pytest.raises(InputError, match="name at least one source"):
        list_corpus([])


def test_unsupported_suffixes_are_named_five_at_most(tmp_path):
    for i in range(7):
        write(tmp_path / f"{i}.csv", "a,b")
    write(tmp_path / "a.txt", "one")
    with pytest.raises(InputError, match=r"0\.csv.*4\.csv, and 2 more.*Supported: \.parquet") as caught:
        list_path(tmp_path)
    assert "5.csv" not in str(caught.value)
    write(tmp_path / "b" / "a.parquet.gz", "one")
    with pytest.raises(InputError, match=r"a\.parquet\.gz"):
        list_path(tmp_path / "b")


def test_a_file_matched_twice(tmp_path):
    write(tmp_path / "a.txt", "one")
    with pytest.raises(InputError, match=r"a\.txt: matched by two sources"):
        list_corpus([Source(path=str(tmp_path)), Source(path=str(tmp_path / "*.txt"), column="other")])


def test_two_columns_of_a_file_are_two_sources(tmp_path):
    write(tmp_path / "pairs.jsonl", '{"question": "why", "answer": "because"}\n{"question": "who", "answer": "I"}\n')
    question, answer = (Source(path=str(tmp_path / "pairs.jsonl"), column=name) for name in ("question", "answer"))
    corpus = list_corpus([question, answer])
    assert list(read_texts(corpus, range(corpus.num_units))) == ["why", "who", "because", "I"]
    with pytest.raises(InputError, match=r"pairs.jsonl: its column 'answer' is matched by two sources"):
        list_corpus([question, answer, answer])


def bad_files():
    footer = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one"]}), footer)
    parquet = footer.getvalue().to_pybytes()
    empty = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), empty)
    text = b"a line of text\n" * 100
    gzipped = gzip.compress(text, mtime=0)  # without the time, which would differ between the processes of tests
    return [
        ("empty.txt", b"", r"is empty \(0 bytes\)"),
        ("empty.parquet", b"", r"is empty \(0 bytes\)"),
        ("no_rows.parquet", empty.getvalue().to_pybytes(), "holds no rows"),
        ("truncated.parquet", parquet[:-20], "not a Parquet file, or damaged"),
        ("footer.parquet", parquet[:-60] + b"\xff" * 50 + parquet[-10:], "not a Parquet file, or damaged"),
        ("length.parquet", parquet[:-8] + b"\xff\xff\xff\x7fPAR1", "not a Parquet file, or damaged"),
        ("text.parquet", text, "not a Parquet file, or damaged"),
        ("a.txt", gzipped, r"its content is gzip, not text; rename it to a\.txt\.gz"),
        ("a.jsonl", zstd(text), r"its content is zstd, not text; rename it to a\.jsonl\.zst"),
        ("b.txt", parquet, r"its content is Parquet, not text; rename it to b\.parquet"),
        ("twice.txt.gz", gzip.compress(gzipped, mtime=0), "its content is gzip, not text"),
        ("plain.txt.gz", text, "not gzip, or damaged"),
        ("plain.jsonl.zst", text, "not zstd, or damaged"),
        ("cut.txt.gz", gzipped[:-10], "not gzip, or damaged"),
        ("array.json", b'[\n{"text": "one"},\n{"text": "two"}\n]\n', "holds a JSON array"),
    ]


@pytest.mark.parametrize(("name", "content", "message"), bad_files())
def test_a_bad_file_is_an_error_or_skipped_and_listed(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=rf"{path}: {message}.*on_bad_file: skip"):
        list_path(tmp_path)
    with pytest.raises(InputError, match=f"nothing to read; skipped: {path}"):
        list_path(tmp_path, on_bad_file="skip")

    write(tmp_path / "good.txt", "one")
    corpus = list_path(tmp_path, on_bad_file="skip")
    assert [file.path for file in corpus.skipped_files] == [str(path)]
    assert name in corpus.skipped_files[0].reason
    assert read(corpus) == ["one"]


@pytest.mark.parametrize("on_bad_file", ["error", "skip"])
def test_a_missing_column_is_an_error_that_lists_the_columns(tmp_path, on_bad_file):
    write_parquet(tmp_path / "a.parquet", ["one"])
    with pytest.raises(InputError, match=r"no column 'txt' \(did you mean 'text'\?\).*id \(int64\), text \(string\)"):
        list_path(tmp_path, on_bad_file, column="txt")
    with pytest.raises(InputError, match="column 'id' is int64, expected string"):
        list_path(tmp_path, on_bad_file, column="id")
    write(tmp_path / "b.jsonl", 'bad\n{"text": "one", "tags": []}\n')
    with pytest.raises(InputError, match=r"no column 'txt' \(did you mean 'text'\?\).*tags \(list\)"):
        list_path(tmp_path / "b.jsonl", on_bad_file, column="txt")
    with pytest.raises(InputError, match="'tags' holds list, expected a string"):
        list_path(tmp_path / "b.jsonl", on_bad_file, column="tags")


def test_all_problems_are_reported_at_once_ten_in_words(tmp_path):
    for i in range(12):
        write(tmp_path / "bad" / f"{i:02}.txt", b"")
    with pytest.raises(InputError) as caught:
        list_corpus([Source(path=str(tmp_path / "missing")), Source(path=str(tmp_path / "bad"))])
    message = str(caught.value)
    assert message.startswith("13 problems with the sources:\n  - no such file or folder")
    assert "08.txt" in message
    assert "09.txt" not in message
    assert message.endswith("and 3 more problem(s)")


def test_damage_within_a_file_names_file_and_row_group(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["some text " * 500] * 4, compression="zstd", use_dictionary=False)
    corpus = list_path(path)
    content = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    content[page + 40 : page + 60] = b"\0" * 20
    path.write_bytes(content)
    assert len(list(read_unit(corpus, 0))) == 2
    with pytest.raises(BadFileError, match=rf"{path}: row group 1: damaged"):
        list(read_unit(corpus, 1))

    content = gzip.compress(random.Random(0).randbytes(300_000).hex().encode())
    path = write(tmp_path / "a.txt.gz", content)
    corpus = list_path(path)
    path.write_bytes(content[:-50_000] + b"\0" * 50_000)
    with pytest.raises(BadFileError, match=rf"{path}: damaged"):
        list(read_unit(corpus, 0))


def test_a_file_that_changed_or_went_is_an_error_but_no_bad_file(tmp_path):
    path = write(tmp_path / "a.txt", "one\n")
    corpus = list_path(path)
    path.write_text("one\ntwo\n")
    with pytest.raises(InputError, match="4 bytes when listed, 8 now") as caught:
        list(read_unit(corpus, 0))
    assert not isinstance(caught.value, BadFileError)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.txt: cannot be reached: FileNotFoundError") as caught:
        list(read_unit(corpus, 0))
    assert not isinstance(caught.value, BadFileError)


@contextmanager
def unprivileged():
    """Act as a user who may not read everything, where the tests run as root."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_missing_permissions_are_errors_under_skip_too():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        root = Path(folder)
        write(root / "good.txt", "one")
        hidden = write(root / "folder" / "a.txt", "two")
        root.chmod(0o755)
        for closed in (hidden, hidden.parent):
            closed.chmod(0)
            for path in (root, root / "**" / "*.txt", root / "*" / "a.txt", hidden):
                with (
                    unprivileged(),
                    pytest.raises(InputError, match=f"{closed}.*cannot be reached|PermissionError.*{closed}"),
                ):
                    list_path(path, on_bad_file="skip")
            closed.chmod(0o755)
        assert len(list_path(root).files) == 2


# Fingerprint


def test_fingerprint_is_json_and_survives_a_move(tmp_path):
    for place in ("here", "some/where/else"):
        write_parquet(tmp_path / place / "b" / "a.parquet", ["one", "two", "three"])
        write(tmp_path / place / "b.txt", "four")
    here, there = (list_path(tmp_path / place).fingerprint() for place in ("here", "some/where/else"))
    assert here == there == json.loads(json.dumps(here))
    assert str(tmp_path) not in json.dumps(here)
    assert [(file["name"], file["num_rows"]) for file in here["files"]] == [
        ("b.txt", None),
        ("b/a.parquet", 3),
    ]
    assert explain_difference(here, there) == []


def test_differences_are_explained(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.txt", name)
    write_parquet(tmp_path / "d.parquet", ["one", "two"])
    before = list_path(tmp_path).fingerprint()
    assert len(before["digest"]) == 64

    write_parquet(tmp_path / "d.parquet", ["one", "two"], row_group_size=1)
    metadata_only = list_path(tmp_path).fingerprint()
    assert metadata_only["digest"] != before["digest"]
    write_parquet(tmp_path / "d.parquet", ["one", "two"])

    (tmp_path / "a.txt").rename(tmp_path / "e.txt")
    write(tmp_path / "b.txt", "longer")
    assert explain_difference(before, list_path(tmp_path).fingerprint()) == [
        "a.txt: is gone",
        "b.txt: size_bytes was 1, is 6",
        "e.txt: is new",
    ]
    for i in range(9):
        write(tmp_path / f"new{i}.txt", "x")
    lines = explain_difference(before, list_path(tmp_path).fingerprint())
    assert len(lines) == 6
    assert lines[-1] == "and 7 more file(s) that differ"


def test_order_and_units_count_too(tmp_path):
    sources = [Source(path=str(write(tmp_path / f"{name}.txt", "one\n" * 9))) for name in "ab"]
    corpus = list_corpus(sources)
    swapped = list_corpus(sources[::-1])
    assert explain_difference(corpus.fingerprint(), swapped.fingerprint()) == ["the same files in another order"]
    recut = with_unit_size(list_corpus(sources[:1]), 4).fingerprint()
    assert explain_difference(list_corpus(sources[:1]).fingerprint(), recut) == [
        "the same files cut into other units: 1 then, 9 now"
    ]


def test_files_of_the_same_name_in_two_sources(tmp_path):
    sources = [Source(path=str(write(tmp_path / place / "a.txt", place).parent)) for place in ("x", "y")]
    before = list_corpus(sources).fingerprint()
    write(tmp_path / "y" / "a.txt", "longer")
    assert explain_difference(before, list_corpus(sources).fingerprint()) == ["a.txt: size_bytes was 1, is 6"]
