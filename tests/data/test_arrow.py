"""Arrow's IPC files: what is in them is read whatever wrote them, in units of record batches, and damage is seen."""

import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from distil_ray.config import Source
from distil_ray.data.corpus import list_corpus, read_unit
from distil_ray.data.files import BadFileError
from distil_ray.errors import InputError

TEXTS = [f"document {i} " * (1 + i % 7) for i in range(2500)]


def table_of(texts, column_type=None, **more):
    return pa.table(
        {"n": list(range(len(texts))), **more, "text": pa.array(texts, pa.string()).cast(column_type or pa.string())}
    )


def write_arrow(path, table, *, max_chunksize=100, is_stream=True, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=max_chunksize)
    return path


def list_path(path, **source):
    return list_corpus([Source(path=str(path), **source)])


def read(corpus):
    return [document for unit in range(corpus.num_units) for document in read_unit(corpus, unit)]


def test_a_data_set_saved_to_disk(tmp_path):
    Dataset.from_dict({"n": list(range(len(TEXTS))), "text": TEXTS}).save_to_disk(tmp_path / "saved", num_shards=2)

    corpus = list_path(tmp_path / "saved")

    assert read(corpus) == TEXTS
    assert [file.name for file in corpus.files] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert {file.path.rpartition("/")[2]: file.reason for file in corpus.skipped_files} == {
        "dataset_info.json": "describes the Arrow files",
        "state.json": "describes the Arrow files",
    }


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize(
    "column_type",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_streams_and_files_of_all_types_of_text(tmp_path, is_stream, compression, column_type):
    texts = ["one", None, "three", "", "one"] * 50
    lists = pa.array([[1, 2]] * len(texts))
    path = tmp_path / "a.arrow"
    write_arrow(path, table_of(texts, column_type, lists=lists), is_stream=is_stream, compression=compression)

    assert read(list_path(path)) == [text or None for text in texts]


def test_units_are_record_batches_put_together_to_the_size_of_others(tmp_path):
    small = write_arrow(tmp_path / "small.arrow", table_of(TEXTS), max_chunksize=10)
    corpus = list_path(small)
    assert 3 < corpus.num_units < 20  # of 250 batches
    assert corpus.unit_start[0] > 0  # behind the schema
    assert corpus.unit_stop[:-1].tolist() == corpus.unit_start[1:].tolist()
    assert corpus.unit_bytes.tolist() == (corpus.unit_stop - corpus.unit_start).tolist()
    assert read(corpus) == TEXTS
    whole = write_arrow(tmp_path / "whole.arrow", table_of(TEXTS), max_chunksize=len(TEXTS))
    assert list_path(whole).num_units == 1


def test_text_in_jsons_spelling(tmp_path):
    storage = pa.array(['"a \\"word\\""', '{"text": "one"}', None, "no JSON"])
    table = pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(), storage)})
    assert read(list_path(write_arrow(tmp_path / "a.arrow", table))) == ['a "word"', None, None, None]


def test_a_column_that_is_not_there_or_holds_no_text(tmp_path):
    write_arrow(tmp_path / "a.arrow", table_of(TEXTS))
    with pytest.raises(InputError, match=r"no column 'txt' \(did you mean 'text'\?\)"):
        list_path(tmp_path, column="txt")
    with pytest.raises(InputError, match="column 'n' is int64, expected string"):
        list_path(tmp_path, column="n")


def test_dictionaries_that_change_are_refused(tmp_path):
    batches = [pa.record_batch({"text": pa.array([word]).dictionary_encode()}) for word in ("one", "two")]
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    with pytest.raises(InputError, match="its dictionaries change on the way; write its columns as plain strings"):
        list_path(tmp_path)


@pytest.mark.parametrize("is_stream", [True, False])
def test_files_that_are_cut_off_or_something_else(tmp_path, is_stream):
    path = write_arrow(tmp_path / "a.arrow", table_of(TEXTS), is_stream=is_stream)
    content = path.read_bytes()
    num_refused = 0
    for length in np.random.default_rng(0).integers(9, len(content) - 1, 60).tolist():
        path.write_bytes(content[:length])
        try:
            texts = read(list_path(path))
        except InputError as error:
            num_refused += bool(re.search("not an Arrow file, or damaged|holds no rows", str(error)))
        else:  # the cut was between two messages, where a stream may end
            assert texts == TEXTS[: len(texts)]
    assert num_refused > 50
    for other, message in ((b"text " * 100, "no Arrow message at byte 0"), (b"PAR1" * 9, "its content is Parquet")):
        path.write_bytes(other)
        with pytest.raises(InputError, match=rf"a\.arrow: not an Arrow file, or damaged.*{message}"):
            list_path(path)
    path.write_bytes(content[:8] + struct.pack("<I", 0x7FFFFFFF) + content[12:])
    with pytest.raises(InputError, match="not an Arrow file, or damaged"):
        list_path(path)


def test_damage_within_a_batch_is_an_error_and_no_crash(tmp_path):
    path = write_arrow(tmp_path / "a.arrow", table_of(TEXTS), max_chunksize=len(TEXTS))
    content, corpus = path.read_bytes(), list_path(path)
    offsets = np.cumsum([0, *map(len, TEXTS)]).astype("<i4").tobytes()
    place = content.index(offsets)
    for at in (place + 4 * 1000, place + 4 * len(TEXTS)):
        path.write_bytes(content[:at] + struct.pack("<i", 2**30) + content[at + 4 :])
        with pytest.raises(BadFileError, match=r"a\.arrow: .*damaged"):
            read(corpus)


READ_AND_REPORT_PEAK = r"""
import re, sys
from distil_ray.config import Source
from distil_ray.data.corpus import list_corpus, read_unit
def peak(): return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024
corpus = list_corpus([Source(path=sys.argv[1])])
before = peak()
num_documents = sum(1 for unit in range(corpus.num_units) for _ in read_unit(corpus, unit))
print([peak() - before, num_documents])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_a_large_file_is_read_a_batch_at_a_time(tmp_path):
    texts = ["word " * 2000] * 20_000  # 200 MB
    path = write_arrow(tmp_path / "a.arrow", pa.table({"text": texts}), max_chunksize=500)
    run = subprocess.run([sys.executable, "-c", READ_AND_REPORT_PEAK, path], check=True, capture_output=True, text=True)
    growth, num_documents = json.loads(run.stdout)
    assert num_documents == 20_000
    assert growth < 60 * 2**20
