"""What a file's beginning gives away: each kind of content that is no UTF-8 text is refused by its true name."""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import subprocess
import tarfile
import zipfile
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distil_ray.config import Source
from distil_ray.data.corpus import list_corpus, read_unit
from distil_ray.errors import InputError

GERMAN = "Größere Bäume wüchsen schöner; über Äcker müßten Füchse flüchten.\n\n" * 50
CHINESE = "".join(f"这是第{i}个文件的内容。\n\n" for i in range(100))
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def list_path(path, on_bad_file="error", **source):
    return list_corpus([Source(path=str(path), **source)], on_bad_file=on_bad_file)


def read(corpus):
    return [document for unit in range(corpus.num_units) for document in read_unit(corpus, unit)]


def refusal(path, content, **source):
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list_path(path, **source)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


# Other encodings


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "is_marked", "named"),
    [
        ("utf-16-le", True, "is UTF-16, .*iconv -f UTF-16 -t UTF-8"),
        ("utf-16-be", True, "is UTF-16, .*iconv -f UTF-16 -t UTF-8"),
        ("utf-16-le", False, "looks like UTF-16LE .*iconv -f UTF-16LE -t UTF-8"),
        ("utf-16-be", False, "looks like UTF-16BE .*iconv -f UTF-16BE -t UTF-8"),
        ("utf-32", True, "is UTF-32, .*iconv -f UTF-32 -t UTF-8"),
    ],
)
def test_wide_characters(tmp_path, name, encoding, is_marked, named):
    mark = "\ufeff" if is_marked and encoding != "utf-32" else ""
    text = "".join(f'{{"text": "document {i}"}}\n' for i in range(100)) if "json" in name else GERMAN
    path = tmp_path / name
    content = (mark + text).encode(encoding)
    assert re.search(named, refusal(path, content))
    message = refusal(tmp_path / f"{name}.gz", gzip.compress(content))
    assert re.search(rf"{named.partition('.*')[0]}.*gzip -dc {name}\.gz \| iconv", message)


@pytest.mark.parametrize(
    ("text", "encoding"), [(GERMAN, "latin-1"), (CHINESE, "gbk"), ("ここは日本語。\n" * 9, "shift_jis")]
)
def test_other_encodings(tmp_path, text, encoding):
    message = refusal(tmp_path / "a.txt", text.encode(encoding))
    assert "is not UTF-8 (" in message
    assert "lines are not, the first of them line 1)" in message
    assert "iconv -f ENCODING -t UTF-8 a.txt > NEW_FILE (GBK, SHIFT_JIS, WINDOWS-1252, …)" in message
    lines = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in text.split("\n") if line)
    assert "is not UTF-8 (" in refusal(tmp_path / "a.jsonl", lines.encode(encoding))


def test_a_few_bad_bytes_do_not_make_another_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\n" * 50 + b"ba\xffd\n\n" * 40)
    assert read(list_path(path)).count(None) == 40
    path.write_bytes(b"a single line with a stray \xff byte")
    assert read(list_path(path)) == [None]
    path.write_text("ä" * 100_000)  # the head ends in the middle of a character
    assert "".join(read(list_path(path))) == "ä" * 100_000
    path.write_bytes(b"\xef\xbb\xbfone\n\n" + "zwölf\n\n".encode() * 20_000)
    assert len(read(list_path(path))) == 20_001


def test_bytes_that_are_no_text(tmp_path):
    assert "holds binary data (100% of the first 5,000 bytes are NUL); expected text in UTF-8" in refusal(
        tmp_path / "a.txt", bytes(5000)
    )


# Other formats under a name of text


def archives():
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.txt", "one")
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, pa.schema([("text", pa.string())])):
        pass
    return [
        (zipped.getvalue(), "a zip archive, not text; expected text in UTF-8"),
        (tarred.getvalue(), "a tar archive, not text; expected text in UTF-8"),
        (bz2.compress(b"one"), "bzip2, not text; expected text in UTF-8"),
        (lzma.compress(b"one"), "xz, not text; expected text in UTF-8"),
        (b"%PDF-1.7\n", "PDF, not text; expected text in UTF-8"),
        (stream.getvalue().to_pybytes(), "Arrow, not text; rename it to a.arrow"),
    ]


@pytest.mark.parametrize(("content", "message"), archives())
def test_other_formats(tmp_path, content, message):
    assert f"its content is {message}" in refusal(tmp_path / "a.txt", content)


def test_compressed_by_another_program_than_the_name_says(tmp_path):
    zstd = pa.Codec("zstd").compress(b"one\n" * 100, asbytes=True)
    assert "a.txt.gz: not gzip, or damaged: its content is zstd (" in refusal(tmp_path / "a.txt.gz", zstd)
    assert "a.txt.zst: not zstd, or damaged: its content is gzip (" in refusal(
        tmp_path / "a.txt.zst", gzip.compress(b"one\n")
    )
    assert "a.parquet: not a Parquet file, or damaged: its content is gzip (" in refusal(
        tmp_path / "a.parquet", gzip.compress(b"one\n")
    )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.arrow", "a.txt.gz"])
@pytest.mark.parametrize("on_bad_file", ["error", "skip"])
def test_a_git_lfs_pointer_is_no_data(tmp_path, name, on_bad_file):
    (tmp_path / "good.txt").write_text("one")
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(InputError, match=rf"{name}: is a Git LFS pointer of 130 bytes.*: git lfs pull$"):
        list_path(tmp_path, on_bad_file)


# JSON that is not in lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "one"}, {"text": "two"}]', "holds a JSON array; .* jq -c '.\\[\\]'"),
        ('["one", "two"]', "holds a JSON array"),
        ('\ufeff[\n"one",\n"two"\n]\n', "holds a JSON array"),
        (json.dumps({"text": "one"}, indent=2), "holds JSON objects that go over several lines; .* jq -c ."),
        ("one\ntwo\n", "something else than JSON: none of its first 2 lines is a JSON object.*begins 'one'"),
        ('"one"\n"two"\n', "holds str values: none of its first 2 lines"),
        ("{'text': 'one'}\n", "something else than JSON.*begins \"{'text': 'one'}\""),
        ('{"contents": "' + "word " * 50_000 + '"}\n', "no column 'text'; its columns: contents .str."),
        ('{"text": ["' + "word " * 50_000 + '"]}\n', "'text' holds list, expected a string"),
        (json.dumps([{"text": "word " * 50_000}] * 30), "holds a JSON array"),
    ],
)
def test_json_of_another_form(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        list_path(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    with pytest.raises(InputError, match=message):
        list_path(tmp_path)


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_command_that_makes_json_lines(tmp_path):
    content = json.dumps([{"text": "one"}, {"text": "two"}], indent=2).encode()
    (tmp_path / "made").mkdir()
    for name, packed in (("a.json", content), ("a.json.gz", gzip.compress(content))):
        command = refusal(tmp_path / name, packed).partition("convert it: ")[2].partition(" > NEW_FILE")[0]
        made = subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True).stdout
        (tmp_path / "made" / "a.jsonl").write_bytes(made)
        assert read(list_path(tmp_path / "made")) == ["one", "two"]


def test_a_line_of_json_that_is_longer_than_what_is_looked_at(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 2_000_000}) + '\n{"text": "end"}\n')
    assert list(map(len, read(list_path(tmp_path)))) == [10_000_000, 3]


# Types of columns


@pytest.mark.parametrize(
    "column_type",
    [
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int32(), pa.binary()),
    ],
    ids=str,
)
@pytest.mark.parametrize("store_schema", [True, False])
def test_parquet_columns_that_hold_text(tmp_path, column_type, store_schema):
    texts = ["one", None, "drei ä", "one"]
    is_dictionary = pa.types.is_dictionary(column_type)
    value_type = column_type.value_type if is_dictionary else column_type
    values = pa.array([text and text.encode() for text in texts], pa.binary()).cast(value_type)
    values = values.dictionary_encode() if is_dictionary else values
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet", store_schema=store_schema)
    assert read(list_path(tmp_path)) == texts


@pytest.mark.parametrize("store_schema", [True, False])
def test_parquet_text_in_jsons_spelling(tmp_path, store_schema):
    storage = pa.array(['"a \\"word\\"\\n\\u00e4"', '{"text": "one"}', None, "null", "no JSON", '""'])
    table = pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(), storage)})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=store_schema)
    assert read(list_path(tmp_path)) == ['a "word"\nä', None, None, None, None, None]


@pytest.mark.parametrize("column_type", [pa.list_(pa.string()), pa.binary(3), pa.float64(), pa.uuid()], ids=str)
def test_parquet_columns_that_hold_none(tmp_path, column_type):
    pq.write_table(pa.table({"text": pa.array([None], column_type)}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'text' is .*, expected string"):
        list_path(tmp_path)


# Files whose suffix says nothing, and files beside the data


@pytest.mark.parametrize(
    ("name", "given", "content"),
    [
        ("wiki.train.raw", "text", b"one\n\ntwo\n"),
        ("part-00000", "jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
        ("part-00000.gz", "jsonl", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n')),
        ("a.json", "text", b"one\n\ntwo\n"),
    ],
)
def test_a_source_says_what_its_files_are(tmp_path, name, given, content):
    (tmp_path / name).write_bytes(content)
    corpus = list_path(tmp_path, format=given)
    assert read(corpus) == ["one", "two"]
    assert (corpus.files[0].format, corpus.files[0].name) == (given, name)
    if not name.endswith(".json"):
        with pytest.raises(InputError, match=r"unsupported file\(s\).*by the source's key format: text, jsonl"):
            list_path(tmp_path)


def test_parquet_and_arrow_without_a_suffix(tmp_path):
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "part-0")
    assert read(list_path(tmp_path / "part-0", format="parquet")) == ["one"]
    with pytest.raises(InputError, match="its content is Parquet, not text"):
        list_path(tmp_path / "part-0", format="text")
    (tmp_path / "part-0").rename(tmp_path / "part-0.gz")
    with pytest.raises(InputError, match=r"part-0\.gz.*parquet or arrow \(the last two not compressed\)"):
        list_path(tmp_path / "part-0.gz", format="parquet")


def test_documentation_beside_data_is_left_out_and_said_so(tmp_path):
    names = ("README.md", "LICENSE", "sub/readme.rst")
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text("# About these files")
    with pytest.raises(InputError, match=r"unsupported file\(s\): .*LICENSE"):
        list_path(tmp_path)
    (tmp_path / "part-0").write_text("one")
    (tmp_path / "README.txt").write_text("a text like others")
    corpus = list_path(tmp_path, format="text")
    assert read(corpus) == ["a text like others", "one"]
    assert [(file.path, file.reason) for file in corpus.skipped_files] == [
        (str(tmp_path / name), "documentation beside the data files") for name in sorted(names)
    ]
    assert read(list_path(tmp_path / "README.md", format="text")) == ["# About these files"]


# What a server sends


class Proxied(MemoryFileSystem):
    """A file system whose first answers for a file may be something else, of the same length."""

    protocol = "proxied"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    wrong_answers: ClassVar[dict[str, list[bytes]]] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("proxied://", "memory://"))

    def _open(self, path, mode="rb", **options):
        answers = self.wrong_answers.get(path.rpartition("/")[2])
        if mode == "rb" and answers:
            return io.BytesIO(answers.pop(0))
        return super()._open(path, mode, **options)


@pytest.fixture
def proxied():
    fsspec.register_implementation("proxied", Proxied, clobber=True)
    yield Proxied()
    Proxied.store.clear()
    Proxied.wrong_answers.clear()


def parquet_bytes():
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", parquet_bytes()),
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"}\n' + b"\n" * 40),
        ("a.txt.gz", gzip.compress(b"one\n\ntwo", mtime=0) + 2 * gzip.compress(b"", mtime=0)),
    ],
    ids=("parquet", "jsonl", "gzip"),
)
@pytest.mark.parametrize("on_bad_file", ["error", "skip"])
def test_other_bytes_than_the_files(proxied, name, content, on_bad_file):
    page = b"<!DOCTYPE html><title>502 Bad Gateway</title>".ljust(len(content))
    proxied.pipe(f"/data/{name}", content)
    proxied.pipe("/data/good.txt", b"three")

    proxied.wrong_answers[name] = [b"\x8f" * len(content)]
    assert read(list_path("proxied://data", on_bad_file)) == ["one", "two", "three"]

    # A page is no damaged file, which could be left out.
    proxied.wrong_answers[name] = [page] * 2
    with pytest.raises(InputError, match=rf"{name}: what was sent in its place is a web page .*502 Bad Gateway"):
        list_path("proxied://data", on_bad_file)

    proxied.wrong_answers[name] = [b"\x8f" * len(content)] * 2
    if on_bad_file == "error":
        with pytest.raises(InputError, match=f"{name}: .*on_bad_file: skip"):
            list_path("proxied://data", on_bad_file)
    else:
        assert read(list_path("proxied://data", on_bad_file)) == ["three"]
