"""Checkpoints: what was saved comes back bit for bit, and whatever happens to one, an intact one is found."""

import errno
import fcntl
import itertools
import os
import re
import resource
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes import CONTEXT
from training_parts import small_config, small_learner, train, weights_of

from distil_ray.data.schedule import Position
from distil_ray.errors import InputError
from distil_ray.runs.storage import RunFolder
from distil_ray.training.checkpoint import (
    CheckpointWriter,
    TrainState,
    latest_checkpoint,
    withdraw_damaged,
)
from distil_ray.training.metrics import MetricsWriter, read_digests, read_records

pytest_plugins = ("local_s3",)


def parts_of(step, size=1000):
    """Tensors whose content tells the step, in the dtypes and shapes that occur."""
    values = torch.arange(size, dtype=torch.float32) * step + step
    return {
        "student": {"weight": values.view(-1, 10), "transposed": values.view(-1, 10).t()},
        "optimizer": {"weight.exp_avg": values * 0.5, "weight.step": torch.tensor(float(step))},
    }


def state_of(step):
    return TrainState(step, Position(step // 7, step % 7), step / 100, {"data/tokens": 64 * step}, 1e9 + step)


def save(folder, *steps, keep=10):
    writer = CheckpointWriter(folder, keep)
    for step in steps:
        writer.save(state_of(step), parts_of(step))
    writer.wait()


def assert_holds(checkpoint, step, size=1000):
    assert checkpoint.state == state_of(step)
    for part, tensors in parts_of(step, size).items():
        loaded = checkpoint.load(part)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(str(tmp_path), "run")


@pytest.fixture(params=["local", "s3"])
def any_folder(request, tmp_path):
    if request.param == "local":
        return RunFolder(str(tmp_path), "run")
    request.getfixturevalue("bucket")
    return RunFolder("s3://runs/below", "run")


def test_the_newest_comes_back_bit_for_bit(any_folder):
    assert latest_checkpoint(any_folder) == (None, [])
    save(any_folder, 9, 10)
    any_folder.write_text("metrics.jsonl", "")
    checkpoint, complaints = latest_checkpoint(any_folder)
    assert (checkpoint.name, complaints) == ("checkpoint_000000010", [])
    assert_holds(checkpoint, 10)
    assert type(checkpoint.state.position) is Position


def test_only_the_newest_are_kept(any_folder):
    names = [f"checkpoint_{step:09d}" for step in (3, 4, 5)]
    save(any_folder, 1, 2, 3, 4, keep=2)
    assert any_folder.names() == names[:2]
    save(any_folder, 5, keep=1)
    assert any_folder.names() == names[2:]
    assert_holds(latest_checkpoint(any_folder)[0], 5)


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5, 8])
def test_exactly_so_many_are_kept(folder, keep):
    writer = CheckpointWriter(folder, keep)
    for step in range(1, 12):
        writer.save(state_of(step), parts_of(step))
        writer.wait()
        assert folder.names() == [f"checkpoint_{step:09d}" for step in range(max(step - keep, 0) + 1, step + 1)]


def test_strangers_are_left_alone(any_folder):
    save(any_folder, 50)
    strangers = ["checkpoint_backup", "checkpoint_000000050.bak", "checkpoint_50", "checkpoint_last"]
    for name in strangers:
        for file in any_folder.sizes("checkpoint_000000050"):
            content = any_folder.read_bytes(f"checkpoint_000000050/{file}")
            any_folder.write_bytes(f"{name}/{file}", content)
    any_folder.write_text("checkpoint_x.txt", "a note")
    save(any_folder, 200, 210, keep=1)
    checkpoint, complaints = latest_checkpoint(any_folder)
    assert (checkpoint.name, complaints) == ("checkpoint_000000210", [])
    assert any_folder.names() == sorted([*strangers, "checkpoint_x.txt", "checkpoint_000000210"])


def test_a_copy_under_the_name_of_another_step_is_not_used(folder):
    save(folder, 50, 200)
    shutil.copytree(folder.join("checkpoint_000000050"), folder.join("checkpoint_000000999"))
    checkpoint, complaints = latest_checkpoint(folder)
    assert checkpoint.name == "checkpoint_000000200"
    assert complaints == ["checkpoint_000000999 is left out: it holds step 50"]


def test_a_file_with_the_name_of_a_checkpoint_is_passed_over(folder):
    save(folder, 50)
    folder.write_text("checkpoint_000000999", "")
    checkpoint, complaints = latest_checkpoint(folder)
    assert checkpoint.name == "checkpoint_000000050"
    assert complaints == ["checkpoint_000000999 is left out: its save was cut off"]


def test_steps_of_ten_digits_come_after_those_of_nine(folder):
    save(folder, 999_999_999, 1_000_000_000, keep=1)
    assert folder.names() == ["checkpoint_1000000000"]


def test_a_cut_off_save_is_not_kept_in_place_of_a_complete_one(folder):
    save(folder, 1, 2)
    folder.remove("checkpoint_000000002/complete.json")
    save(folder, 3, keep=2)
    assert folder.names() == ["checkpoint_000000001", "checkpoint_000000003"]


def test_the_same_step_is_saved_anew(folder):
    save(folder, 1)
    Path(folder.join("checkpoint_000000001/student.safetensors")).write_bytes(b"damaged")
    save(folder, 1)
    assert_holds(latest_checkpoint(folder)[0], 1)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
    "emptied": (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
    "flipped": (flip_a_byte, "does not match its SHA-256"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("file", ["student.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(folder, file, damage):
    save(folder, 1, 2)
    inflict, complaint = DAMAGES[damage]
    inflict(Path(folder.join(f"checkpoint_000000002/{file}")))
    checkpoint, complaints = latest_checkpoint(folder)
    assert_holds(checkpoint, 1)
    assert len(complaints) == 1
    assert complaints[0].startswith(f"checkpoint_000000002 is left out: {file} ")
    assert complaint in complaints[0]


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        (None, "its save was cut off"),
        ("", "its complete.json is damaged"),
        ("\x00\x00", "its complete.json is damaged"),
        ("[]", "its complete.json is damaged"),
        ("{}", "its complete.json is damaged"),
        ('{"files": {}}', "its complete.json is damaged"),
        ('{"files": 1}', "its complete.json is damaged"),
        ('{"files": {"state.json": 1}}', "its complete.json is damaged"),
        ('{"files": {"state.json": {"bytes": null, "sha256": ""}}}', "its complete.json is damaged"),
    ],
)
def test_a_folder_without_a_good_marker_is_no_checkpoint(any_folder, marker, complaint):
    save(any_folder, 1, 2)
    any_folder.remove("checkpoint_000000002/complete.json")
    if marker is not None:
        any_folder.write_text("checkpoint_000000002/complete.json", marker)
    checkpoint, complaints = latest_checkpoint(any_folder)
    assert_holds(checkpoint, 1)
    assert complaints == [f"checkpoint_000000002 is left out: {complaint}"]


def test_no_flipped_byte_of_the_marker_goes_unseen(folder):
    save(folder, 1, 2)
    marker = Path(folder.join("checkpoint_000000002/complete.json"))
    content = marker.read_bytes()
    for index, mask in itertools.product(range(len(content)), (0x01, 0x80)):
        marker.write_bytes(content[:index] + bytes([content[index] ^ mask]) + content[index + 1 :])
        checkpoint, complaints = latest_checkpoint(folder)
        assert (checkpoint.name, len(complaints)) == ("checkpoint_000000001", 1), (index, mask)


def test_all_damaged_means_none(folder):
    save(folder, 1, 2)
    for step in (1, 2):
        folder.remove(f"checkpoint_00000000{step}/state.json")
    checkpoint, complaints = latest_checkpoint(folder)
    assert checkpoint is None
    assert [complaint[:20] for complaint in complaints] == ["checkpoint_000000002", "checkpoint_000000001"]


class ReadCounter:
    """Lets each file be read, and counts how often."""

    def __init__(self, folder):
        self.names = []
        read = folder.filesystem.cat_file

        def cat_file(path, **options):
            self.names.append(Path(path).name)
            return read(path, **options)

        self.cat_file = cat_file


def test_what_is_verified_is_loaded_without_reading_it_again(folder, monkeypatch):
    save(folder, 1, 2)
    counter = ReadCounter(folder)
    monkeypatch.setattr(folder.filesystem, "cat_file", counter.cat_file)
    assert_holds(latest_checkpoint(folder)[0], 2)
    assert sorted(counter.names) == ["complete.json", "optimizer.safetensors", "state.json", "student.safetensors"]


def test_a_state_is_learned_without_reading_tensors(any_folder, monkeypatch):
    save(any_folder, 1, 2)
    counter = ReadCounter(any_folder)
    monkeypatch.setattr(any_folder.filesystem, "cat_file", counter.cat_file)
    checkpoint, complaints = latest_checkpoint(any_folder, verify_tensors=False)
    assert (checkpoint.state, complaints) == (state_of(2), [])
    assert sorted(set(counter.names)) == ["complete.json", "state.json"]
    assert_holds(checkpoint, 2)


@pytest.mark.parametrize("file", ["student.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_all_agree_once_what_is_damaged_is_withdrawn(folder, file, damage):
    save(folder, 1, 2)
    inflict, complaint = DAMAGES[damage]
    inflict(Path(folder.join(f"checkpoint_000000002/{file}")))
    checkpoint, complaints = withdraw_damaged(folder)
    assert_holds(checkpoint, 1)
    assert complaint in complaints[0]
    assert folder.exists("checkpoint_000000002/damaged.json")
    again, complaints = latest_checkpoint(folder, verify_tensors=False)
    assert (again, complaints) == (checkpoint, ["checkpoint_000000002 is left out: its save was cut off"])
    save(folder, 2, 3, keep=2)
    assert folder.names() == ["checkpoint_000000002", "checkpoint_000000003"]
    assert not folder.exists("checkpoint_000000002/damaged.json")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing"])
def test_files_of_another_size_are_seen_without_reading_them(any_folder, damage):
    save(any_folder, 1, 2)
    file = "checkpoint_000000002/student.safetensors"
    content = any_folder.read_bytes(file)
    any_folder.remove(file)
    if damage != "missing":
        any_folder.write_bytes(file, content[:-1] if damage == "truncated" else b"")
    checkpoint, complaints = latest_checkpoint(any_folder, verify_tensors=False)
    assert checkpoint.state == state_of(1)
    assert DAMAGES[damage][1] in complaints[0]


def fail_to_read(folder, monkeypatch, names):
    """Reading what lies below one of the ``names`` ends as on a bad sector."""
    read = folder.filesystem.cat_file

    def cat_file(path, **options):
        if any(f"/{name}/" in path for name in names):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return read(path, **options)

    monkeypatch.setattr(folder.filesystem, "cat_file", cat_file)


def test_a_bad_sector_makes_the_one_before_be_used(folder, monkeypatch):
    save(folder, 1, 2)
    fail_to_read(folder, monkeypatch, ["checkpoint_000000002"])
    checkpoint, complaints = withdraw_damaged(folder)
    assert_holds(checkpoint, 1)
    assert "checkpoint_000000002 is left out: complete.json cannot be read" in complaints[0]
    assert "Input/output error" in complaints[0]


def test_nothing_is_started_again_while_checkpoints_cannot_be_read(folder, monkeypatch):
    save(folder, 1, 2)
    fail_to_read(folder, monkeypatch, ["checkpoint_000000001", "checkpoint_000000002"])
    with pytest.raises(InputError, match=r"no checkpoint in .* can be used:\n  .*000002 .*\n  .*000001 .*\nMake them"):
        latest_checkpoint(folder)


@pytest.mark.parametrize(
    ("every", "step", "progress", "seconds", "expected"),
    [
        ({"every_steps": 4}, 8, 0.5, 1e9, True),
        ({"every_steps": 4}, 7, 0.5, 1e9, False),
        ({"every_steps": 4}, 7, 1.0, 0, True),
        ({"every_minutes": 2}, 8, 0.5, 119, False),
        ({"every_minutes": 2}, 7, 0.5, 121, True),
        ({"every_steps": 4, "every_minutes": 2}, 8, 0.5, 1, True),
        ({"every_steps": 4, "every_minutes": 2}, 7, 0.5, 121, True),
        ({"every_steps": 4, "every_minutes": 2}, 7, 0.5, 1, False),
    ],
)
def test_a_checkpoint_is_due_by_steps_or_by_time(folder, monkeypatch, every, step, progress, seconds, expected):
    clock = [1000.0]
    monkeypatch.setattr("distil_ray.training.checkpoint.time.monotonic", lambda: clock[0])
    writer = CheckpointWriter(folder, 1, **every)
    clock[0] += 500
    writer.save(state_of(1), parts_of(1))  # the time counts from here
    writer.wait()
    clock[0] += seconds
    assert writer.is_due(TrainState(step, progress=progress)) is expected


def test_what_changes_after_save_returns_is_not_in_it(folder):
    parts = parts_of(3, size=2_000_000)
    writer = CheckpointWriter(folder, 1)
    writer.save(state_of(3), parts)
    for tensors in parts.values():
        for tensor in tensors.values():
            tensor.zero_()
    writer.wait()
    assert_holds(latest_checkpoint(folder)[0], 3, size=2_000_000)


def test_the_other_workers_write_nothing(folder):
    writer = CheckpointWriter(folder, 1, is_active=False)
    writer.save(state_of(1), parts_of(1))
    writer.wait()
    assert folder.names() == []


def test_no_tensor_of_the_teacher_is_saved(folder):
    config = small_config()
    learner = small_learner(config)
    train(learner, config, range(2))
    writer = CheckpointWriter(folder, 1)
    writer.save(state_of(2), learner.tensors())
    writer.wait()
    checkpoint, _ = latest_checkpoint(folder)
    student = checkpoint.load("student")
    assert all(torch.equal(student[name], weight) for name, weight in weights_of(learner).items())
    assert student.keys() == weights_of(learner).keys()
    kinds = ("step", "exp_avg", "exp_avg_sq")
    assert checkpoint.load("optimizer").keys() == {f"{name}.{kind}" for name in student for kind in kinds}
    of_teacher = {parameter.detach().numpy().tobytes() for parameter in learner.teacher.parameters()}
    assert not of_teacher & {tensor.numpy().tobytes() for tensor in student.values()}


# A save that fails


def fail_on_a_full_disk(path, results):
    """Save with room for the first checkpoint's files only, as on a full disk; say what happened."""
    folder = RunFolder(path, "run")
    writer = CheckpointWriter(folder, 1)
    writer.save(state_of(1), parts_of(1))
    writer.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes per file
    writer.save(state_of(2), parts_of(2, size=1_000_000))  # returns: the failure comes later
    try:
        writer.save(state_of(3), parts_of(3))
    except Exception as error:
        results.put(f"next save: {error}")
    writer.save(state_of(4), parts_of(4, size=1_000_000))
    try:
        writer.wait()
    except Exception as error:
        results.put(f"wait: {error}")
    results.put(folder.names())
    writer.save(state_of(5), parts_of(5))
    writer.wait()


def test_a_full_disk_is_reported_and_leaves_the_checkpoint_before(tmp_path):
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=fail_on_a_full_disk, args=(str(tmp_path), results))
    process.start()
    failures = [results.get(timeout=60) for _ in range(2)]
    assert [failure.partition(":")[0] for failure in failures] == ["next save", "wait"]
    assert all("File too large" in failure for failure in failures)
    assert results.get(timeout=60) == ["checkpoint_000000001"]
    process.join()
    assert process.exitcode == 0
    assert_holds(latest_checkpoint(RunFolder(str(tmp_path), "run"))[0], 5)


# Being killed


def save_forever(path, first, keep, committed):
    """Save one checkpoint after the other, and note each that is committed."""
    torch.set_num_threads(1)
    writer = CheckpointWriter(RunFolder(path, "run"), keep)
    for step in itertools.count(first):
        writer.save(state_of(step), parts_of(step, size=20_000))
        writer.wait()
        committed.value = step


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_moment_leaves_the_last_committed_checkpoint(tmp_path, keep):
    folder = RunFolder(str(tmp_path), "run")
    committed = CONTEXT.Value("q", 0, lock=False)
    for round_ in range(8):
        before = committed.value
        process = CONTEXT.Process(target=save_forever, args=(str(tmp_path), before + 1, keep, committed))
        process.start()
        while committed.value == before:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(0.013 * round_)
        process.kill()
        process.join()
        checkpoint, complaints = latest_checkpoint(folder)
        assert committed.value <= checkpoint.state.step <= committed.value + 1
        assert_holds(checkpoint, checkpoint.state.step, size=20_000)
        assert all(complaint.endswith("its save was cut off") for complaint in complaints)
    assert committed.value >= 8


# A power cut


def test_all_is_on_disk_before_the_marker_and_the_marker_before_the_end(folder, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def spying_fsync(descriptor):
        fsync(descriptor)
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), folder.storage_path))

    def spying_replace(path, target):
        replace(path, target)
        events.append(("replaced", os.path.relpath(target, folder.storage_path)))

    monkeypatch.setattr(os, "fsync", spying_fsync)
    monkeypatch.setattr(Path, "replace", spying_replace)
    save(folder, 1)
    at_marker = events.index(("replaced", "run/checkpoint_000000001/complete.json"))
    files = {
        f"run/checkpoint_000000001/{name}" for name in ("student.safetensors", "optimizer.safetensors", "state.json")
    }
    assert {".", "run", "run/checkpoint_000000001", *files} <= set(events[:at_marker])
    assert re.fullmatch(r"run/checkpoint_000000001/complete\.json\.\w+\.tmp", events[at_marker - 1])
    assert events[at_marker + 1] == "run/checkpoint_000000001"


SHUT_DOWN, NO_LOG_FLUSH = 0x8004587D, 2  # ioctl of ext4 and xfs: as if the power were cut


@pytest.fixture
def ext4(tmp_path):
    """A function that cuts the power of a file system of its own, and the file system's place."""
    image, place = tmp_path / "image", tmp_path / "ext4"
    place.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 64 << 20)

    def call(*command):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not (
        call("mkfs.ext4", "-q", "-F", str(image)) and call("mount", "-o", "loop,commit=300", str(image), str(place))
    ):
        pytest.skip("this process may not mount")

    def cut_power():
        descriptor = os.open(place, os.O_RDONLY)
        fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(descriptor)
        assert call("umount", str(place))
        assert call("mount", "-o", "loop", str(image), str(place))

    yield place, cut_power
    call("umount", str(place))


def test_a_power_cut_takes_nothing_that_a_committed_checkpoint_counts_on(ext4):
    place, cut_power = ext4
    folder = RunFolder(str(place / "runs" / "deep"), "run")
    writer, metrics = CheckpointWriter(folder, 2), None
    for step in range(1, 4):
        if metrics is None:
            folder.check_writable()
            metrics = MetricsWriter(folder, -1)
        metrics.write_digest(step, step, 0, step)
        metrics.write({"step": step})
        metrics.sync()
        writer.save(state_of(step), parts_of(step, size=200_000))
        writer.wait()
    del metrics
    cut_power()
    checkpoint, complaints = latest_checkpoint(folder)
    assert complaints == []
    assert_holds(checkpoint, 3, size=200_000)
    assert [record["step"] for record in read_records(folder)] == [1, 2, 3]
    assert read_digests(folder) == ([f"{step:016x}" for step in (1, 2, 3)], [])
