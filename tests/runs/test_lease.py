"""A folder has one owner at a time: real processes that contend for it, are killed and are suspended."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import lease_holder
import pytest
import yaml

from distil_ray.errors import InputError
from distil_ray.runs import lease
from distil_ray.runs.lease import Claim, LeaseLostError, holding
from distil_ray.runs.storage import RunFolder

pytest_plugins = ("local_s3",)

HEARTBEAT = 1.0  # seconds; a lease then expires after six


@pytest.fixture(params=["local", "s3"])
def path(request, tmp_path) -> str:
    """The folder that is contended for."""
    if request.param == "local":
        return str(tmp_path / "runs" / "a")
    request.getfixturevalue("bucket")
    return "s3://runs/below/a"


class Command:
    """A process that holds the folder, or tries to."""

    def __init__(self, path: str, name: str, machine: str = "") -> None:
        script = Path(lease_holder.__file__)
        environment = os.environ | {"TEST_MACHINE": machine, "PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(
            [sys.executable, str(script), path, name, str(HEARTBEAT)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.rstrip())

    def says(self, *beginnings: str, seconds: float = 90) -> str:
        """The next line with one of these beginnings."""
        end = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(end - time.monotonic(), 0.01))
            if line.startswith(beginnings):
                return line

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def start(path) -> Iterator[Callable[..., Command]]:
    """Starts commands, and ends those that are left."""
    commands: list[Command] = []

    def start(name: str, machine: str = "") -> Command:
        commands.append(Command(path, name, machine))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


def leases(path: str) -> list[str]:
    return [name for name in RunFolder.at(path).names() if name.startswith("lease_")]


def end(path: str) -> None:
    RunFolder.at(path).write_text("end", "")


def test_one_of_several_gets_the_folder_and_the_others_learn_who(path, start):
    names = ["train-0", "train-1", "train-2"]
    commands = {name: start(name) for name in names}
    said = {name: command.says("held", "refused") for name, command in commands.items()}
    (owner,) = [name for name in names if said[name] == "held"]
    assert len(leases(path)) == 1
    for name in names:
        if name != owner:
            assert f"is in use by `{owner}` (process {commands[owner].pid} on " in said[name]
            assert "), since 20" in said[name]
            assert "Ctrl-C or SIGTERM" in said[name]
    end(path)
    commands[owner].says("released")
    assert leases(path) == []


def test_one_on_another_machine_is_refused_at_the_next_sign_of_life(path, start):
    start("first", "here").says("held")
    second = start("second", "there")
    assert "last used by `first`" in second.says("")
    assert "is in use by `first`" in second.says("refused", "held")


def test_a_killed_owner_is_succeeded_at_once_on_its_machine(path, start):
    first = start("first")
    first.says("held")
    first.send(signal.SIGKILL)  # and nobody waits for it: a zombie is dead, too
    assert start("second").says("") == "held"
    assert leases(path) == ["lease_000002.json"]


def test_a_killed_owner_on_another_machine_is_succeeded_once_it_has_expired(path, start):
    first = start("first", "there")
    first.says("held")
    first.kill()
    killed_at = time.monotonic()
    second, third = start("second", "here"), start("third", "here")
    said = {second.says("held", "refused")[:4], third.says("held", "refused")[:4]}
    assert time.monotonic() - killed_at > 4 * HEARTBEAT
    assert said == {"held", "refu"}  # one of the two that waited
    assert leases(path) == ["lease_000002.json"]


@pytest.fixture
def suspended(start) -> Command:
    """The owner of the folder, which has given no sign of life for so long that its lease has expired."""
    first = start("first")
    first.says("held")
    first.send(signal.SIGSTOP)
    time.sleep(6.5 * HEARTBEAT)
    return first


def test_a_suspended_owner_loses_the_folder_and_writes_nothing_more(path, start, suspended):
    second = start("second")
    assert "last used by `first`" in second.says("")
    second.says("held")
    suspended.send(signal.SIGCONT)
    assert "was taken over by `second`" in suspended.says("lost", "released", "refused")
    folder = RunFolder.at(path)
    while not folder.exists("writer.txt") or not folder.read_bytes("writer.txt").startswith(b"second"):
        time.sleep(HEARTBEAT)  # until the test's own time limit
    assert leases(path) == ["lease_000002.json"]
    end(path)
    second.says("released")


def test_an_owner_that_wakes_up_in_time_keeps_the_folder(path, start, suspended):
    second = start("second")
    second.says(RunFolder.at(path).path)
    suspended.send(signal.SIGCONT)
    assert "is in use by `first`" in second.says("held", "refused")
    end(path)
    suspended.says("released")


@pytest.fixture
def folder(path) -> RunFolder:
    return RunFolder.at(path)


def nobody(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize("error", [None, InputError("bad"), KeyboardInterrupt(), SystemExit(3)])
def test_the_end_of_the_block_releases_whatever_ends_it(folder, error):
    def hold() -> None:
        with holding(folder, "train", nobody):
            assert folder.names() == ["lease_000001.json"]
            if error is not None:
                raise error

    if error is None:
        hold()
    else:
        with pytest.raises(type(error)) as caught:
            hold()
        assert caught.value is error
    assert folder.names() == []
    assert not os.path.exists(folder.path)  # nothing is left of a command that wrote nothing


def test_what_the_owner_wrote_stays(folder):
    with holding(folder, "train", nobody):
        folder.write_text("x.txt", "")
    assert folder.names() == ["x.txt"]


def hold_in_vain(folder: RunFolder) -> None:
    with holding(folder, "tune", nobody):
        raise AssertionError("the folder is held twice")


def test_a_second_attempt_of_the_same_process_is_refused(folder):
    with holding(folder, "train", nobody):
        with pytest.raises(InputError, match=rf"is in use by `train` \(process {os.getpid()} on "):
            hold_in_vain(folder)
        assert folder.names() == ["lease_000001.json"]


def test_a_process_id_that_another_process_has_now_is_not_the_owner(folder):
    facts = lease._describe("owner", "train").decode()
    folder.write_text("lease_000007.json", facts.replace('"pid_started": ', '"pid_started": 1'))
    with holding(folder, "train", nobody):
        assert folder.names() == ["lease_000008.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\0\0"])
def test_a_damaged_lease_expires_like_any_other(folder, content, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 0.5)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.1)
    folder.write_text("lease_000001.json", content)
    said = []
    with holding(folder, "train", said.append):
        assert folder.names() == ["lease_000002.json"]
    assert "was last used by an unknown command: waiting up to " in said[0]


def take_over(folder: RunFolder) -> None:
    """What another command does that takes this one for lost."""
    assert folder.create("lease_000002.json", lease._describe("another", "tune"))


def test_a_guarded_folder_and_those_below_refuse_to_change_once_it_is_lost(path, folder):
    with holding(folder, "train", nobody, on_lost=lambda: None) as claim:
        guarded, below = claim.guard(folder), claim.guard(RunFolder.at(f"{path}/trials"))
        guarded.write_text("a.txt", "")
        below.write_text("b.txt", "")
        take_over(folder)
        for place in (guarded, below):
            with pytest.raises(LeaseLostError, match="taken over by `tune`"):
                place.write_text("c.txt", "")
    assert sorted(folder.names()) == ["a.txt", "lease_000001.json", "lease_000002.json", "trials"]
    with pytest.raises(LeaseLostError):
        claim.check()


def test_a_claim_is_gone_after_the_release(folder):
    with holding(folder, "train", nobody) as claim:
        claim.check()
    with pytest.raises(LeaseLostError, match="not held by this command any more"):
        claim.guard(folder).write_text("late.txt", "")


def test_losing_the_folder_interrupts_the_main_thread(folder, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)

    def lose() -> None:
        with holding(folder, "train", nobody):
            take_over(folder)
            time.sleep(60)

    with pytest.raises(LeaseLostError, match="taken over by `tune`"):
        lose()


@pytest.mark.parametrize("error", [FileNotFoundError("x.txt.tmp"), KeyboardInterrupt()])
def test_what_comes_of_losing_the_folder_is_told_as_the_loss(folder, error):
    def hold() -> None:
        with holding(folder, "train", nobody, on_lost=lambda: None):
            take_over(folder)
            raise error

    with pytest.raises(LeaseLostError, match="taken over by `tune`") as caught:
        hold()
    assert caught.value.__cause__ is error


def test_one_that_notices_the_loss_by_itself_is_not_interrupted(folder, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    interrupted = threading.Event()

    def hold() -> None:
        with holding(folder, "train", nobody, on_lost=interrupted.set) as claim:
            take_over(folder)
            time.sleep(0.3)  # the heart has noticed it by now, too
            claim.check()

    with pytest.raises(LeaseLostError):
        hold()
    time.sleep(2 * lease._GRACE_SECONDS)
    assert not interrupted.is_set()


def test_what_a_killed_owner_was_writing_is_swept_away(folder):
    folder.write_text("digests.csv.0a1b.tmp", "half")
    folder.write_text("trials/x.tmp", "another's")
    with holding(folder, "train", nobody):
        assert folder.names() == ["lease_000001.json", "trials"]


def test_what_another_command_is_probing_the_storage_with_is_left_to_it(folder):
    folder.write_text(".writable-0a1b.2c3d.tmp", "half")
    with holding(folder, "train", nobody):
        assert ".writable-0a1b.2c3d.tmp" in folder.names()


def test_a_claim_travels_to_other_processes(folder):
    with holding(folder, "train", nobody) as claim:
        again: Claim = pickle.loads(pickle.dumps(claim))
        pickle.loads(pickle.dumps(claim.guard(folder))).write_text("x.txt", "")
        again.check()
    with pytest.raises(LeaseLostError):
        again.check()


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_run_on_a_full_disk_is_refused_without_a_traceback(settings, tmp_path, is_resumed):
    folder = tmp_path / "runs" / "run"
    if is_resumed:
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    arguments = [sys.executable, "-m", "distil_ray.train", "--config", str(tmp_path / "config.yaml")]
    limit = (4096, 4096)  # bytes per file: a disk without room, for a process that may not mount one
    result = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert result.returncode == 2, result.stderr
    assert f"error: run.storage_path: cannot write to {folder}: " in result.stderr
    assert "free some space there" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in folder.glob("*")] == (["metrics.jsonl"] if is_resumed else [])
    assert folder.exists() == is_resumed
