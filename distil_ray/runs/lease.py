"""One owner of a folder at a time: two commands that write to the same run, search or comparison would ruin it.

A lease is a file ``lease_<generation>.json`` in the folder, made only where there is none (see `RunFolder.create`). Its
owner touches it every few seconds. A command that finds one watches it: an owner that gives a sign of life keeps the
folder, and one that gives none for a minute, or whose process on this machine has ended, is succeeded by the next
generation. No machine's clock is compared with another's.
"""

import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distil_ray.errors import InputError, OutageError, RunError
from distil_ray.outages import Patience
from distil_ray.runs.storage import TEMPORARY, RunFolder

HEARTBEAT_SECONDS = 10.0
EXPIRES_SECONDS = 60.0
"""An owner that has given no sign of life for so long counts as lost."""
_WATCH_HEARTBEATS = 2.5  # an owner that wakes up, as on a laptop that was asleep, gives a sign of life within one
_POLL_SECONDS = 1.0
_GRACE_SECONDS = 1.0  # for a process that noticed the loss itself to end without being interrupted
_SETTLE_SECONDS = 1.0  # on a storage that may let two create the same file, the later one has won by then

_NAME = re.compile(r"lease_(\d{6,})\.json")
_UNKNOWN = "an unknown command"


class LeaseLostError(RunError):
    """Another command has taken the folder over, as after minutes in which this process was suspended."""


@dataclass(frozen=True)
class _Holder:
    """What a lease says of its owner."""

    generation: int
    content: bytes

    @property
    def facts(self) -> dict[str, Any]:
        """By name; empty if the file is damaged."""
        try:
            facts = json.loads(self.content)
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}

    def __str__(self) -> str:
        facts = self.facts
        if not facts:
            return _UNKNOWN
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(facts.get("since", 0)))
        return f"`{facts.get('command', _UNKNOWN)}` (process {facts.get('pid')} on {facts.get('host')}), since {since}"


@dataclass(frozen=True)
class Claim:
    """The right to write to a folder, which may be handed to other processes.

    Attributes:
        folder: that is held.
        generation: of the lease.
        owner: what no other lease has.
    """

    folder: RunFolder
    generation: int
    owner: str

    def check(self) -> None:
        """Make sure that the folder is still held.

        Raises:
            LeaseLostError: it is not.
            OutageError: a remote storage did not answer.
        """
        holder = _newest(self.folder)
        if holder is None:
            raise LeaseLostError(f"{self.folder.path} is not held by this command any more; nothing more is written")
        if holder.generation != self.generation or holder.facts.get("owner") != self.owner:
            raise LeaseLostError(
                f"{self.folder.path} was taken over by {holder}: this command had given no sign of life for more than "
                f"{EXPIRES_SECONDS:.0f} s; it writes nothing more"
            )

    def guard(self, folder: RunFolder) -> RunFolder:
        """The same folder (this one, or one below), which refuses to change once the claim is lost."""
        return folder.guarded(replace(self, folder=self.folder.patient(folder.patience)).check)

    def release(self) -> None:
        """Give the folder back, unless it is another's by now."""
        with suppress(LeaseLostError):
            self.check()
            self.folder.remove(_name_of(self.generation))


def _interrupt_main() -> None:
    """Interrupt the main thread by a real signal, which ends a sleep as well."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextmanager
def holding(
    folder: RunFolder,
    command: str,
    tell: Callable[[str], None],
    *,
    on_lost: Callable[[], None] = _interrupt_main,
) -> Iterator[Claim]:
    """Hold a folder while the block runs.

    Args:
        command: what holds it, for the message that another command gets.
        tell: gets a line if finding out whether the last owner is alive takes time.
        on_lost: called in a thread when the folder is lost; by default it interrupts the main thread like Ctrl-C.

    Raises:
        InputError: another command holds the folder, or it cannot be written to.
        LeaseLostError: the folder was lost, however the block ended.
    """
    claim = _acquire(folder, command, tell)
    impatient = replace(claim, folder=folder.patient(Patience(0.0)))
    heartbeat = _Heartbeat(impatient, on_lost)
    heartbeat.start()
    try:
        yield claim
    except BaseException as error:
        try:
            heartbeat.stop()
        except KeyboardInterrupt:  # by `on_lost`, while an error of a guarded folder was on its way
            heartbeat.stop()
        loss = heartbeat.loss or _loss_of(impatient)
        if loss is not None and loss is not error:  # what came of it, such as a file that the new owner has removed
            raise loss from error
        raise
    finally:
        heartbeat.stop()
        with suppress(InputError, OutageError):  # it expires by itself
            claim.release()
        folder.remove_if_empty()  # of a command that was refused before it wrote anything


def _loss_of(claim: Claim) -> LeaseLostError | None:
    """Why the folder is not held any more, None if it is, or if that cannot be found out now."""
    try:
        claim.check()
    except LeaseLostError as loss:
        return loss
    except (InputError, OutageError):
        return None
    return None


class _Heartbeat(threading.Thread):
    """Gives signs of life, and notices when the folder is lost."""

    def __init__(self, claim: Claim, on_lost: Callable[[], None]) -> None:
        super().__init__(name="lease", daemon=True)
        self._claim = claim
        self._on_lost = on_lost
        self._at_end = threading.Event()
        self._ending = threading.Lock()
        self.loss: LeaseLostError | None = None

    def run(self) -> None:
        beat = 0
        while not self._at_end.wait(HEARTBEAT_SECONDS):
            beat += 1
            try:
                self._claim.check()
                _beat(self._claim, beat)
            except LeaseLostError as loss:
                self.loss = loss
                self._at_end.wait(_GRACE_SECONDS)
                with self._ending:
                    if not self._at_end.is_set():
                        self._on_lost()
                return
            except Exception:  # the storage does not answer; while it does not, no other command can take over either
                continue

    def stop(self) -> None:
        """Give no further sign of life."""
        with self._ending:
            self._at_end.set()
        self.join(timeout=HEARTBEAT_SECONDS)  # a storage that does not answer holds nobody up


def _acquire(folder: RunFolder, command: str, tell: Callable[[str], None]) -> Claim:
    folder.check_writable()
    while True:
        last = _newest(folder)
        if last is not None and not _is_over(folder, last, tell):
            continue
        claim = Claim(folder, 1 if last is None else last.generation + 1, uuid.uuid4().hex)
        if not folder.create(_name_of(claim.generation), _describe(claim.owner, command)):
            continue
        if not folder.is_local:
            time.sleep(_SETTLE_SECONDS)
        try:
            claim.check()
        except LeaseLostError:
            continue
        _sweep(claim)
        return claim


def _sweep(claim: Claim) -> None:
    """Remove what former owners have left: their leases, and what they were writing when they were killed."""
    for name in claim.folder.names():
        match = _NAME.fullmatch(name)
        is_former = match is not None and int(match[1]) < claim.generation
        # Of another command that is trying to get a lease: the lease, or what it probes the storage with.
        is_attempt = name.startswith(("lease_", "."))
        is_partial = name.endswith(TEMPORARY) and not is_attempt
        if is_former or is_partial:
            claim.folder.remove(name)


def _is_over(folder: RunFolder, last: _Holder, tell: Callable[[str], None]) -> bool:
    """Whether the owner of a lease is lost, once that is known; false if the lease has gone or changed hands.

    Raises:
        InputError: the owner is alive.
    """
    is_here = last.facts.get("machine") == _machine()
    if is_here and _has_ended(last.facts.get("pid", 0), last.facts.get("pid_started", 0)):
        return True
    try:
        age = folder.age(_name_of(last.generation))
    except FileNotFoundError:
        return False
    if is_here and age is not None and 0 <= age < EXPIRES_SECONDS:
        raise _refusal(folder, last)
    seconds = max(EXPIRES_SECONDS - max(age or 0.0, 0.0), _WATCH_HEARTBEATS * HEARTBEAT_SECONDS)
    tell(f"{folder.path} was last used by {last}: waiting up to {seconds:.0f} s for a sign of life from there")
    end, sign = time.monotonic() + seconds, _sign_of_life(folder, last)
    while time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        now = _newest(folder)
        if now is None or now.generation != last.generation or now.facts.get("owner") != last.facts.get("owner"):
            return False
        if _sign_of_life(folder, now) != sign:
            raise _refusal(folder, now)
    return True


def _refusal(folder: RunFolder, holder: _Holder) -> InputError:
    return InputError(
        f"{folder.path} is in use by {holder}, which is alive; two commands would destroy each other's work. Wait for "
        "its end, stop it there (Ctrl-C or SIGTERM: it saves first), or give this one its own run.name or --output"
    )


def _newest(folder: RunFolder) -> _Holder | None:
    """The lease that counts: of the highest generation."""
    while True:
        generation = max(_generations(folder), default=None)
        if generation is None:
            return None
        with suppress(FileNotFoundError):  # released in between
            return _Holder(generation, folder.read_bytes(_name_of(generation)))


def _generations(folder: RunFolder) -> list[int]:
    return [int(match[1]) for name in folder.names() if (match := _NAME.fullmatch(name))]


def _name_of(generation: int) -> str:
    return f"lease_{generation:06d}.json"


def _beat(claim: Claim, beat: int) -> None:
    """Give a sign of life; on a local disk one that needs no room there."""
    name = _name_of(claim.generation)
    if claim.folder.is_local:
        os.utime(claim.folder.join(name))
    else:
        facts = claim.folder.read_json(name)
        claim.folder.write_json(name, facts | {"beat": beat})


def _sign_of_life(folder: RunFolder, holder: _Holder) -> tuple[bytes, int]:
    """What a beat changes."""
    path = Path(folder.join(_name_of(holder.generation)))
    with suppress(FileNotFoundError):
        return holder.content, path.stat().st_mtime_ns if folder.is_local else 0
    return holder.content, 0


def _describe(owner: str, command: str) -> bytes:
    facts = {
        "owner": owner,
        "command": command,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_started": _state(os.getpid())[1],
        "machine": _machine(),
        "since": time.time(),
        "beat": 0,
    }
    return (json.dumps(facts, indent=2) + "\n").encode()


def _machine() -> str:
    """What is the same for two processes only if they see each other's process ids: not in two containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def _has_ended(pid: int, started: int) -> bool:
    """Whether a process of this machine has ended; another one may have its id by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    state, now = _state(pid)
    return state in ("Z", "X") or (state != "" and now != started)


def _state(pid: int) -> tuple[str, int]:
    """A process's state, such as "Z", and when it started, in clock ticks since boot; ("", 0) if it cannot be read."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return state, int(fields[18])
