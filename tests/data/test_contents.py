"""What files hold is known by content, and found out without reading them again and again."""

import hashlib
import os

import pytest

from distil_ray.data import contents
from distil_ray.data.contents import Content, changed_contents, contents_of
from distil_ray.data.files import File


def file_of(path, name="a.txt", version=""):
    return File(name, str(path), "text", None, "text", size_bytes=4, version=version)


def test_an_edit_of_equal_length_is_seen_and_a_copy_is_no_change(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    before = contents_of([file_of(tmp_path / "a.txt")])
    assert before[0].value == hashlib.sha256(b"good").hexdigest()

    (tmp_path / "copy.txt").write_text("good")
    assert changed_contents(before, contents_of([file_of(tmp_path / "copy.txt")], before)) == []
    (tmp_path / "a.txt").write_text("evil")
    assert changed_contents(before, contents_of([file_of(tmp_path / "a.txt")], before)) == ["a.txt"]


def test_a_file_that_was_not_touched_is_not_read_again(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("good")
    before = contents_of([file_of(file)])
    monkeypatch.setattr(contents.hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    assert contents_of([file_of(file)], before) == before

    os.utime(file, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match="it was read"):
        contents_of([file_of(file)], before)


def test_versions_of_stores_are_compared_where_they_can_be(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    local = contents_of([file_of(tmp_path / "a.txt")])
    sha256 = local[0].value
    hub = contents_of([file_of("hf://datasets/o/n@c/a.txt", version=sha256)])
    assert changed_contents(local, hub) == []
    assert changed_contents(local, contents_of([file_of("hf://datasets/o/n@c/a.txt", version="0" * 64)])) == ["a.txt"]

    s3 = contents_of([file_of("s3://b/a.txt", version="abc")])
    assert changed_contents(s3, contents_of([file_of("s3://c/a.txt", version="abd")])) == ["a.txt"]
    assert changed_contents(local, s3) == []  # cannot be told
    assert changed_contents(s3, contents_of([file_of("gs://c/a.txt", version="abd")])) == []
    unknown = contents_of([file_of("s3://b/a.txt")])
    assert unknown == [Content("a.txt", "", "")]
    assert changed_contents(s3, unknown) == []
