"""A run's folder on a local disk and on S3."""

import json
import os
import threading
from pathlib import Path

import pytest

from distil_ray.errors import InputError
from distil_ray.training.storage import RunFolder

pytest_plugins = ("local_s3",)


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty run folder of each kind."""
    if request.param == "local":
        return RunFolder(str(tmp_path / "runs"), "a")
    request.getfixturevalue("bucket")
    return RunFolder("s3://runs/below/here/", "a")


def test_files_come_back_as_written(folder):
    assert (folder.names(), folder.exists("x.json")) == ([], False)
    folder.write_json("x.json", {"ä": [1, None]})
    folder.write_text("deep/er/y.txt", "Füße\n")
    assert folder.read_json("x.json") == {"ä": [1, None]}
    assert folder.read_bytes("deep/er/y.txt") == "Füße\n".encode()
    assert folder.names() == ["deep", "x.json"]
    assert folder.exists("deep/er/y.txt")
    assert folder.exists("deep")
    assert not folder.exists("x.json/below")
    folder.write_text("x.json", "[]")
    assert folder.read_json("x.json") == []


def test_a_folder_opened_elsewhere_sees_the_same_at_once(folder):
    other = RunFolder(folder.filesystem.unstrip_protocol(folder.storage_path), "a")
    assert other.names() == []
    folder.write_text("new.txt", "1")
    assert other.names() == ["new.txt"]
    folder.remove("new.txt")
    assert other.names() == []
    assert not other.exists("new.txt")


def test_remove_takes_a_file_a_folder_or_nothing(folder):
    for name in ("a/b/1", "a/2", "c"):
        folder.write_text(name, "x")
    for name in ("a", "c", "never there"):
        folder.remove(name)
    assert folder.names() == []


def test_new_folder_replaces_the_old_one(folder):
    folder.write_text("export/old.txt", "old")
    with folder.new_folder("export") as local:
        (local / "new.txt").write_text("new")
        (local / "deep").mkdir()
        (local / "deep" / "er.bin").write_bytes(b"\x00\xff")
    assert folder.read_bytes("export/new.txt") == b"new"
    assert folder.read_bytes("export/deep/er.bin") == b"\x00\xff"
    assert not folder.exists("export/old.txt")


def test_a_local_copy_holds_all_files(folder):
    for name in ("export/a.txt", "export/deep/b.txt", "other.txt"):
        folder.write_text(name, name)
    with folder.local_copy("export") as local:
        found = {path.relative_to(local).as_posix(): path.read_text() for path in local.rglob("*") if path.is_file()}
    assert found == {"a.txt": "export/a.txt", "deep/b.txt": "export/deep/b.txt"}


def test_new_folder_leaves_nothing_of_a_failed_block(folder):
    def fail():
        with folder.new_folder("export") as local:
            (local / "half.txt").write_text("half")
            raise OSError("No space left on device")

    folder.write_text("other.txt", "stays")
    with pytest.raises(OSError, match="No space left"):
        fail()
    assert folder.names() == ["other.txt"]


def test_arrow_filesystem_reaches_the_same_files(folder):
    folder.write_text("x.txt", "text")
    with folder.arrow_filesystem.open_input_stream(folder.join("x.txt")) as stream:
        assert stream.read() == b"text"


def test_a_writable_folder_is_created_and_left_empty(folder):
    folder.check_writable()
    assert folder.names() == []
    assert folder.is_local == os.path.isdir(folder.path)


def test_a_reader_never_sees_a_part_of_a_text(tmp_path):
    folder = RunFolder(str(tmp_path), "a")
    texts = [json.dumps([number] * 100_000) for number in (1, 2)]
    folder.write_text("x.json", texts[0])
    done = threading.Event()

    def write():
        for round_ in range(20):
            folder.write_text("x.json", texts[round_ % 2])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(folder.read_bytes("x.json").decode())
    thread.join()
    assert seen <= set(texts)
    assert folder.names() == ["x.json"]


def test_a_path_below_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    folder = RunFolder(str(tmp_path / "file" / "runs"), "a")
    assert not folder.exists("identity.json")
    with pytest.raises(InputError, match=r"run\.storage_path: cannot write to .*/file/runs/a: .*; give a path that"):
        folder.check_writable()


def test_a_path_without_permission_is_not_writable(tmp_path):
    folder = RunFolder("/proc/1/runs", "a")  # refused to root, too
    with pytest.raises(InputError, match="cannot write to /proc/1/runs/a"):
        folder.check_writable()


def test_a_missing_bucket_is_named_and_not_created(bucket):
    folder = RunFolder("s3://rums/here", "a")
    with pytest.raises(InputError, match=r"cannot write to rums/here/a: .*bucket does not exist"):
        folder.check_writable()
    assert [found["Name"] for found in bucket.meta.client.list_buckets()["Buckets"]] == ["runs"]


def test_missing_credentials_are_the_users_to_fix(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    folder = RunFolder("s3://runs/here", "a")
    with pytest.raises(InputError, match=r"run\.storage_path: cannot read runs/here/a: Unable to locate credentials"):
        folder.exists("identity.json")
    with pytest.raises(InputError, match=r"run\.storage_path: cannot write to runs/here/a: Unable to locate cred"):
        folder.check_writable()


@pytest.mark.parametrize("path", ["nothing://bucket/runs", "s4://bucket"])
def test_an_unknown_protocol_is_refused(path):
    with pytest.raises(InputError, match=rf"run\.storage_path: cannot open '{path}': .*not known"):
        RunFolder(path, "a")


def test_local_paths_may_be_given_as_urls(tmp_path):
    folder = RunFolder(f"file://{tmp_path}/", "a")
    folder.write_text("x.txt", "")
    assert folder.is_local
    assert Path(folder.join("x.txt")) == tmp_path / "a" / "x.txt"
    assert (tmp_path / "a" / "x.txt").exists()
