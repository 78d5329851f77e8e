"""A run's folder on a local disk and on S3."""

import errno
import json
import os
import pickle
import threading
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem
from local_s3 import serving

from distil_ray.errors import InputError, OutageError
from distil_ray.outages import Patience
from distil_ray.runs import storage
from distil_ray.runs.storage import RunFolder, replace_file

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


def test_only_an_empty_folder_is_removed(folder):
    folder.check_writable()
    folder.remove_if_empty()
    assert not os.path.exists(folder.path)
    folder.write_text("x.txt", "text")
    folder.remove_if_empty()
    assert folder.names() == ["x.txt"]


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


def test_a_writer_that_was_suspended_does_not_take_away_what_another_one_is_writing(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    flush = storage.flush_to_disk

    def suspended(at: Path) -> None:
        monkeypatch.setattr(storage, "flush_to_disk", flush)
        replace_file(path, b"by another")
        flush(at)

    monkeypatch.setattr(storage, "flush_to_disk", suspended)
    replace_file(path, b"by the first")
    assert path.read_bytes() == b"by the first"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


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


# Damaged files


@pytest.mark.parametrize("content", [b"", b"\x00\x00", b"{", b"[]", b"{}", b"1", b"\xff", b"null", b'"learned"'])
def test_a_damaged_json_file_is_named(folder, content):
    folder.write_bytes("identity.json", content)
    with pytest.raises(InputError, match=r"a/identity\.json is damaged: it .*; restore it, or remove it"):
        folder.read_json("identity.json", "learned", "data")


def test_damaged_lines_are_passed_over_and_named(folder):
    lines = [b'{"step": 1}', b'{"step": 2', b"\x00\x00\x00", b"\xff\xfe", b"", b"3", b'{"step": 4}', b'{"cut": off']
    folder.write_bytes("metrics.jsonl", b"\n".join(lines))
    values, complaints = folder.read_json_lines("metrics.jsonl")
    assert values == [{"step": 1}, {"step": 4}]
    assert complaints == [
        f"{folder.join('metrics.jsonl')}: line {number} is damaged and is passed over" for number in (2, 3, 4, 5, 6)
    ]
    assert folder.read_json_lines("none.jsonl") == ([], [])


# Full disks


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size=512k none {place} 2>/dev/null"):
        pytest.skip("this process may not mount")
    yield place
    os.system(f"umount {place}")


def test_a_disk_without_room_is_not_writable(full_disk):
    folder = RunFolder(str(full_disk), "a")
    with pytest.raises(InputError, match=r"cannot write to .*/disk/a: .*No space left on device.*; free some space"):
        folder.check_writable()
    assert folder.names() == []  # what was tried is gone
    folder.write_text("small.txt", "x")
    with pytest.raises(InputError, match=r"cannot write to .*No space left on device"):
        folder.write_bytes("large.bin", bytes(1 << 20))
    assert folder.names() == ["small.txt"]


class QuotaFileSystem(MemoryFileSystem):
    """A remote file system whose quota is used up: files can be made, but hold nothing."""

    protocol = "quota"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if value:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", path)
        super().pipe_file(path, value, mode, **kwargs)


def test_a_remote_quota_that_is_used_up_is_not_writable():
    fsspec.register_implementation("quota", QuotaFileSystem, clobber=True)
    with pytest.raises(InputError, match=r"cannot write to quota://runs/a: .*Disk quota exceeded.*; free some space"):
        RunFolder("quota://runs", "a").check_writable()


# Outages


@pytest.fixture
def flaky_s3(bucket, monkeypatch):
    """Another endpoint of the bucket, which fails on command."""
    with serving() as (flaky_s3, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore tries again by itself, and takes its time,
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)  # and so does s3fs
        monkeypatch.setattr("distil_ray.outages._LONGEST_PAUSE_SECONDS", 0.2)
        monkeypatch.setattr("distil_ray.outages._FIRST_PAUSE_SECONDS", 0.1)
        s3fs.S3FileSystem.clear_instance_cache()
        yield flaky_s3


FAILURES = {
    "503": {
        "status": 503,
        "body": b"<Error><Code>ServiceUnavailable</Code><Message>Service Unavailable</Message></Error>",
    },
    "403": {"status": 403, "body": b"<Error><Code>InvalidAccessKeyId</Code><Message>No</Message></Error>"},
    "closed": {"refuse": True},
    "cut off": {"cut_after": 1},  # done, but the answer is lost
}


def remote_folder(seconds, said=None):
    return RunFolder("s3://runs/below", "a", patience=Patience(seconds, (said if said is not None else []).append))


def upload(folder, tmp_path):
    (tmp_path / "part.bin").write_bytes(b"part")
    with folder.new_folder("new") as local:
        (local / "part.bin").write_bytes(b"part")
    return folder.read_bytes("new/part.bin")


def download(folder):
    with folder.local_copy("deep") as local:
        return (local / "old.txt").read_bytes()


def as_ray_does(folder):
    filesystem = pickle.loads(pickle.dumps(folder.arrow_filesystem))
    filesystem.create_dir(folder.path)
    with filesystem.open_output_stream(folder.join("ray.json")) as stream:
        stream.write(b"of ")
        stream.write(b"Ray")
    assert filesystem.get_file_info(folder.join("ray.json")).size == 6
    with filesystem.open_input_stream(folder.join("ray.json")) as stream:
        content = stream.read()
    filesystem.delete_file(folder.join("ray.json"))
    return content


OPERATIONS = {
    "exists": (lambda folder, _: folder.exists("deep/old.txt"), True),
    "names": (lambda folder, _: folder.names(), ["deep"]),
    "sizes": (lambda folder, _: folder.sizes("deep"), {"old.txt": 3}),
    "read": (lambda folder, _: folder.read_bytes("deep/old.txt"), b"old"),
    "write": (lambda folder, _: folder.write_text("new.txt", "new") or folder.read_bytes("new.txt"), b"new"),
    "create": (lambda folder, _: folder.create("new.txt", b"new"), True),
    "remove": (lambda folder, _: folder.remove("deep") or folder.names(), []),
    "new_folder": (upload, b"part"),
    "local_copy": (lambda folder, _: download(folder), b"old"),
    "check_writable": (lambda folder, _: folder.check_writable(), None),
    "arrow_filesystem": (lambda folder, _: as_ray_does(folder), b"of Ray"),
}


@pytest.mark.parametrize(
    ("operation", "failure"),
    [
        *((operation, failure) for operation in OPERATIONS for failure in ("503", "closed")),
        *((operation, "cut off") for operation in ("names", "read", "write", "create", "local_copy")),
    ],
)
def test_an_outage_is_waited_out(flaky_s3, operation, failure, tmp_path):
    folder = remote_folder(60)
    folder.write_text("deep/old.txt", "old")
    attempt, expected = OPERATIONS[operation]
    flaky_s3.fail(".", times=5, **FAILURES[failure])  # s3fs itself makes two attempts
    assert attempt(folder, tmp_path) == expected
    assert flaky_s3.requests["failed"] == 5


def test_an_outage_that_does_not_end_is_one(flaky_s3):
    folder = remote_folder(1)
    flaky_s3.fail(".", **FAILURES["503"])
    for name in ("exists", "names", "read", "write", "create", "check_writable"):
        attempt, _ = OPERATIONS[name]
        with pytest.raises(OutageError, match=r"^runs/below/a did not answer for \d+ s: .*Service ?Unavailable"):
            attempt(folder, None)


def test_wrong_credentials_are_not_waited_for(flaky_s3):
    said = []
    folder = remote_folder(600, said)
    flaky_s3.fail(".", **FAILURES["403"])
    for name in ("exists", "names", "read", "write", "create", "check_writable"):
        before = len(flaky_s3.log)
        with pytest.raises(InputError, match=r"run\.storage_path: cannot (read|write to) runs/below/a"):
            OPERATIONS[name][0](folder, None)
        assert len(flaky_s3.log) - before == 1
    assert said == []


def test_creating_succeeds_when_the_answer_was_lost(flaky_s3):
    folder = remote_folder(60)
    flaky_s3.fail(".", times=1, **FAILURES["cut off"])  # the object is there, the answer is not
    assert folder.create("lease.json", b"mine")
    assert not folder.create("lease.json", b"another's")
    assert folder.read_bytes("lease.json") == b"mine"


def test_a_folder_that_another_command_removes_in_between_is_made_again(tmp_path, monkeypatch):
    make, made = storage._make_folder, []

    def make_and_lose_once(folder: Path) -> None:
        make(folder)
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()  # as `remove_if_empty` does

    monkeypatch.setattr(storage, "_make_folder", make_and_lose_once)
    for change in (RunFolder.check_writable, lambda folder: folder.create("a", b"")):
        made.clear()
        change(RunFolder(str(tmp_path), "run"))
        assert len(made) > 1


def test_one_of_many_creates_a_file(folder):
    contents = [str(number).encode() for number in range(8)]
    start, succeeded = threading.Barrier(len(contents)), []

    def create(content):
        start.wait()
        if folder.create("lease.json", content):
            succeeded.append(content)

    threads = [threading.Thread(target=create, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert succeeded == [folder.read_bytes("lease.json")]
    assert folder.names() == ["lease.json"]


def test_age_is_told_by_the_storage(folder, monkeypatch):
    folder.write_text("x.txt", "")
    monkeypatch.setattr("time.time", lambda: 0.0)  # this machine's clock is wrong
    assert -1 <= folder.age("x.txt") < 30
    with pytest.raises(FileNotFoundError):
        folder.age("none.txt")
    assert folder.names() == ["x.txt"]


def test_a_guarded_folder_asks_before_each_change(folder, tmp_path):
    folder.write_text("deep/old.txt", "old")

    def refuse():
        raise RuntimeError("refused")

    guarded = folder.guarded(refuse)
    changes = ("write", "create", "remove", "new_folder", "check_writable")
    for name, (attempt, _) in OPERATIONS.items():
        if name == "arrow_filesystem":  # Ray's own files do no harm
            continue
        if name in changes:
            with pytest.raises((RuntimeError, InputError), match="refused"):
                attempt(guarded, tmp_path)
        else:
            attempt(guarded, tmp_path)
    assert folder.names() == ["deep"]
