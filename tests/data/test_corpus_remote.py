"""Listing and reading from S3, served by this process, and Hub data sets by name, from folders like theirs."""

import gzip
import io
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from distil_ray.config import Source
from distil_ray.data import files
from distil_ray.data.corpus import list_corpus, read_unit
from distil_ray.data.files import BadFileError
from distil_ray.errors import InputError, OutageError
from distil_ray.outages import Patience

pytest_plugins = ("local_s3",)


def parquet_bytes(texts):
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink, row_group_size=2)
    return sink.getvalue()


def read(corpus):
    return [document for unit in range(corpus.num_units) for document in read_unit(corpus, unit)]


@pytest.fixture(autouse=True)
def _test_credentials(aws_environment):
    """In every test, those without a bucket included."""


def test_reads_every_format_from_s3(bucket):
    lines = "".join(f"line {i} of a text that spans several ranges\n\n" for i in range(2000))
    objects = {
        "data/a.parquet": parquet_bytes(["one", None, "three"]),
        "data/b.txt": lines.encode(),
        "data/deep/c.jsonl": b'{"text": "four"}\n{"text": "five"}',
        "data/d.txt.gz": gzip.compress(b"six\n\nseven\n"),
        "data/_SUCCESS": b"",
        "elsewhere/x.txt": b"not this one",
    }
    for key, body in objects.items():
        bucket.put_object(Key=key, Body=body)
    corpus = list_corpus([Source(path="s3://runs/data")])
    assert [file.path for file in corpus.files] == [
        "s3://runs/data/a.parquet",
        "s3://runs/data/b.txt",
        "s3://runs/data/d.txt.gz",
        "s3://runs/data/deep/c.jsonl",
    ]
    assert corpus.num_units > 8
    documents = read(corpus)
    assert documents[:3] == ["one", None, "three"]
    assert documents[3:-4] == lines.strip().split("\n\n")
    assert documents[-4:] == ["six", "seven", "four", "five"]
    paths = ["s3://runs/data/*.parquet", "s3://runs/data/b.txt", "s3://runs/*/deep/*"]
    names = [[file.name for file in list_corpus([Source(path=path)]).files] for path in paths]
    assert names == [["a.parquet"], ["b.txt"], ["data/deep/c.jsonl"]]


def test_the_fingerprint_is_the_same_on_s3_and_on_a_disk(bucket, tmp_path):
    for name, body in {"b/a.parquet": parquet_bytes(["one"]), "c.txt": b"two"}.items():
        bucket.put_object(Key=f"far/away/{name}", Body=body)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    remote = list_corpus([Source(path="s3://runs/far/away/")])
    assert remote.fingerprint() == list_corpus([Source(path=str(tmp_path))]).fingerprint()


def test_a_new_listing_sees_what_was_added(bucket):
    for number in (1, 2):
        bucket.put_object(Key=f"data/{number}.txt", Body=b"text")
        assert len(list_corpus([Source(path="s3://runs/data")]).files) == number


def test_bad_objects_are_named_by_url(bucket):
    bucket.put_object(Key="data/bad.parquet", Body=b"PAR1 no footer")
    bucket.put_object(Key="data/empty.txt", Body=b"")
    bucket.put_object(Key="data/good.txt", Body=b"text")
    with pytest.raises(InputError, match="2 problems") as caught:
        list_corpus([Source(path="s3://runs/data")])
    assert "s3://runs/data/bad.parquet: not a Parquet file" in str(caught.value)
    corpus = list_corpus([Source(path="s3://runs/data")], on_bad_file="skip")
    assert [file.path for file in corpus.skipped_files] == [
        "s3://runs/data/bad.parquet",
        "s3://runs/data/empty.txt",
    ]


@pytest.mark.parametrize("path", ["s3://nowhere/a.txt", "s3://nowhere/*.txt", "s3://nowhere", "s3://runs/none"])
def test_a_missing_bucket_or_key(bucket, path):
    with pytest.raises(InputError) as caught:
        list_corpus([Source(path=path)], on_bad_file="skip")
    assert str(caught.value).startswith(f"no such file or folder: {path} (")


def test_an_object_that_went_is_no_bad_file(bucket):
    bucket.put_object(Key="a.txt", Body=b"text")
    corpus = list_corpus([Source(path="s3://runs/a.txt")])
    bucket.Object("a.txt").delete()
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"s3://runs/a\.txt: cannot be reached") as caught:
        list(read_unit(corpus, 0))
    assert not isinstance(caught.value, BadFileError)


@pytest.mark.parametrize("path", ["s3://runs/a.txt", "s3://runs/*.txt", "s3://runs/data"])
def test_missing_credentials(bucket, path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="cannot be reached: NoCredentialsError: Unable to locate credentials"):
        list_corpus([Source(path=path)], on_bad_file="skip")


@pytest.fixture
def forbidding_endpoint():
    """An S3 endpoint that answers every request with 403."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(403)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(self.body)

        def log_message(self, *_):
            pass

        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

    endpoint = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=endpoint.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{endpoint.server_port}"
    endpoint.shutdown()
    thread.join()
    endpoint.server_close()


def test_a_file_of_a_store_without_versions_is_opened_once(monkeypatch):
    fs = MemoryFileSystem()
    fs.pipe_file("/without_versions/a.txt", b"a line of text\n\n" * 5000)
    corpus = list_corpus([Source(path="memory://without_versions/a.txt")])
    assert corpus.num_units > 2
    assert corpus.files[0].version == ""
    files._open_version.cache_clear()
    opened = []
    whole_open = MemoryFileSystem.open
    monkeypatch.setattr(
        MemoryFileSystem, "open", lambda self, *args, **kwargs: opened.append(args) or whole_open(self, *args, **kwargs)
    )
    assert sum(len(list(read_unit(corpus, unit))) for unit in range(corpus.num_units)) == 5000
    assert len(opened) == 1


@pytest.mark.parametrize("path", ["s3://runs/a.txt", "s3://runs/*.txt", "s3://runs/data"])
def test_missing_permission_is_no_bad_file_and_no_missing_one(forbidding_endpoint, path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", forbidding_endpoint)
    with pytest.raises(InputError, match="cannot be reached: PermissionError"):
        list_corpus([Source(path=path)], on_bad_file="skip")


@pytest.mark.parametrize("name", ["a.parquet", "a.txt", "a.txt.gz"])
def test_permission_lost_between_listing_and_reading(bucket, forbidding_endpoint, name, monkeypatch):
    bodies = {
        "a.parquet": parquet_bytes(["one"]),
        "a.txt": b"one",
        "a.txt.gz": gzip.compress(b"one"),
    }
    bucket.put_object(Key=name, Body=bodies[name])
    corpus = list_corpus([Source(path=f"s3://runs/{name}")])
    monkeypatch.setenv("AWS_ENDPOINT_URL", forbidding_endpoint)
    s3fs.S3FileSystem.clear_instance_cache()  # as in another process
    files._open_version.cache_clear()
    with pytest.raises(InputError, match=rf"s3://runs/{name}: cannot be reached: PermissionError") as caught:
        list(read_unit(corpus, 0))
    assert not isinstance(caught.value, BadFileError)


@pytest.mark.parametrize(
    ("path", "package", "extra"), [("s3://b/a.txt", "s3fs", "s3"), ("gs://b/a.txt", "gcsfs", "gcs")]
)
def test_a_missing_package_names_the_extra(path, package, extra):
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from distil_ray.config import Source\nfrom distil_ray.data.corpus import list_corpus\n"
        f"list_corpus([Source(path={path!r})])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"InputError: {path}: " in run.stderr
    assert f"pip install 'distil_ray[{extra}]'" in run.stderr


# Hub data sets by name


CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: en/test.parquet
- config_name: de
  data_files: de/*.jsonl
---
# A card
"""


@pytest.fixture
def hub(tmp_path):
    """A data set of two configurations, declared in its card as on the Hub."""
    folder = tmp_path / "owner" / "dataset"
    files = {
        "README.md": CARD,
        "en/train-1.parquet": parquet_bytes(["two", "three", "four"]),
        "en/train-0.parquet": parquet_bytes(["one"]),
        "en/test.parquet": parquet_bytes(["test"]),
        "de/a.jsonl": '{"text": "eins"}\n',
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_hub_data_set_resolves_to_its_files(hub):
    corpus = list_corpus([Source(hub=str(hub), name="en")])
    assert [file.name for file in corpus.files] == ["en/train-0.parquet", "en/train-1.parquet"]
    assert read(corpus) == ["one", "two", "three", "four"]
    assert read(list_corpus([Source(hub=str(hub), name="en", split="test")])) == ["test"]
    assert read(list_corpus([Source(hub=str(hub), name="de")])) == ["eins"]


def test_hub_data_set_without_a_card_by_relative_path(hub, tmp_path, monkeypatch):
    (hub / "README.md").unlink()
    monkeypatch.chdir(tmp_path)
    corpus = list_corpus([Source(hub="owner/dataset/en")])
    assert [file.name for file in corpus.files] == ["train-0.parquet", "train-1.parquet"]
    monkeypatch.chdir("/")
    assert read(corpus) == ["one", "two", "three", "four"]


def test_hub_errors_list_what_there_is(hub):
    with pytest.raises(InputError, match=r"no split 'valid'; its splits: train, test; all configurations: en, de"):
        list_corpus([Source(hub=str(hub), name="en", split="valid")])
    with pytest.raises(InputError, match=r"no configuration 'eng' \(did you mean 'en'\?\); its configurations: en, de"):
        list_corpus([Source(hub=str(hub), name="eng")])
    with pytest.raises(InputError, match="it has several configurations and none is named; its configurations: en, de"):
        list_corpus([Source(hub=str(hub))])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"hub": "owner/nothing", "name": "en", "revision": "v1"},
            "Hub data set 'owner/nothing' (name 'en', revision 'v1') cannot be reached: ",
        ),
        (
            {"path": "hf://datasets/owner/nothing/*.parquet"},
            "hf://datasets/owner/nothing/*.parquet: cannot be reached: ",
        ),
    ],
)
def test_hub_out_of_reach(source, message):
    imports = "from distil_ray.config import Source\nfrom distil_ray.data.corpus import list_corpus\n"
    script = f"{imports}list_corpus([Source(**{source})])"
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert f"InputError: {message}" in run.stderr
    assert "OfflineModeIsEnabled" in run.stderr.split("InputError: ")[-1]


# What is asked for, and what becomes of outages


def one_of_many(texts, row_group_size):
    sink = io.BytesIO()
    table = pa.table({"id": range(len(texts)), "text": texts, "more": texts})
    pq.write_table(table, sink, row_group_size=row_group_size, use_dictionary=False)
    metadata = pq.read_metadata(sink)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return sink.getvalue(), sum(group.column(1).total_compressed_size for group in groups)


@pytest.mark.parametrize("row_group_size", [12, 300])
def test_each_byte_of_the_text_is_read_once_from_s3(bucket, s3, row_group_size):
    texts = [f"document {i} " * 60 for i in range(300)]
    content, text_bytes = one_of_many(texts, row_group_size)
    bucket.put_object(Key="data/a.parquet", Body=content)
    corpus = list_corpus([Source(path="s3://runs/data")])
    as_another_process()
    s3.reset()
    assert read(corpus) == texts
    assert s3.sent_bytes["get"] == text_bytes + corpus.files[0].footer_bytes
    assert s3.requests["get"] == corpus.num_units + 1
    assert (s3.requests["head"], s3.requests["list"], s3.requests["other"]) == (1, 0, 0)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_other_formats_are_read_once_from_s3(bucket, s3, name):
    texts = [f"document {i} of a text that is long enough" for i in range(20_000)]
    content = "".join(f'{{"text": "{text}"}}\n' if "json" in name else f"{text}\n\n" for text in texts).encode()
    content = gzip.compress(content) if name.endswith("gz") else content
    bucket.put_object(Key=name, Body=content)
    corpus = list_corpus([Source(path=f"s3://runs/{name}")])
    as_another_process()
    s3.reset()
    assert read(corpus) == texts
    assert s3.sent_bytes["get"] <= 1.1 * len(content)
    assert s3.requests["head"] == 1


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("distil_ray.outages._FIRST_PAUSE_SECONDS", 0.05)


def as_another_process():
    files._kept.clear()
    files._open_version.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


FAILURES = {"503": {"status": 503}, "refused": {"refuse": True}, "cut off": {"cut_after": 20}}


@pytest.mark.parametrize("name", ["a.parquet", "a.txt", "a.jsonl.gz"])
@pytest.mark.parametrize("failure", FAILURES)
def test_reading_from_s3_waits_until_it_answers_again(bucket, s3, name, failure):
    texts = [f"document {i} of a text" for i in range(300)]
    lines = "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()
    contents = {"a.parquet": parquet_bytes(texts), "a.txt": "\n\n".join(texts).encode()}
    contents["a.jsonl.gz"] = gzip.compress(lines)
    bucket.put_object(Key=name, Body=contents[name])
    corpus = list_corpus([Source(path=f"s3://runs/{name}")], on_bad_file="skip")
    as_another_process()
    s3.fail("(GET|HEAD) /runs/a", **FAILURES[failure], times=3)
    assert read(corpus) == texts
    assert s3.requests["failed"] == 3


@pytest.mark.parametrize("failure", FAILURES)
def test_listing_s3_waits_too(bucket, s3, failure):
    bucket.put_object(Key="data/a.parquet", Body=parquet_bytes(["one"]))
    s3.fail("(GET|HEAD) /runs", **FAILURES[failure], times=3)
    assert read(list_corpus([Source(path="s3://runs/data")], on_bad_file="skip")) == ["one"]
    assert s3.requests["failed"] == 3


@pytest.mark.parametrize("failure", FAILURES)
def test_an_outage_of_s3_that_lasts_is_no_damage(bucket, s3, failure):
    bucket.put_object(Key="data/a.parquet", Body=parquet_bytes(["one"]))
    corpus = list_corpus([Source(path="s3://runs/data")])
    as_another_process()
    s3.fail("(GET|HEAD) /runs", **FAILURES[failure])
    with pytest.raises(OutageError, match=r"s3://runs/data/a\.parquet did not answer for \d+ s: ."):
        list(read_unit(corpus, 0, patience=Patience(0.5)))
    with pytest.raises(OutageError, match="did not answer"):
        list_corpus([Source(path="s3://runs/data")], on_bad_file="skip", patience=Patience(0.5))


def test_an_object_that_was_replaced_is_named(bucket, s3):
    bucket.put_object(Key="a.parquet", Body=parquet_bytes(["one"]))
    corpus = list_corpus([Source(path="s3://runs/a.parquet")])
    bucket.put_object(Key="a.parquet", Body=parquet_bytes(["six"]))
    with pytest.raises(InputError, match=r"a\.parquet: cannot be reached: FileExpired") as caught:
        list(read_unit(corpus, 0))
    as_another_process()
    with pytest.raises(InputError, match=r"a\.parquet: changed while in use: .* when listed, .* now"):
        list(read_unit(corpus, 0))
    assert not isinstance(caught.value, BadFileError)
