"""Checkpoints: what was saved comes back bit for bit, and whatever happens to one, an intact one is found."""

import itertools
import resource
import time
from pathlib import Path

import pytest
import torch
from processes import CONTEXT
from training_parts import small_config, small_learner, train, weights_of

from distil_ray.data.schedule import Position
from distil_ray.training.checkpoint import CheckpointWriter, TrainState, latest_checkpoint
from distil_ray.training.storage import RunFolder

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
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes a file
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
