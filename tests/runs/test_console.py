"""What is shown of a run: plain lines, and a bar where there is a terminal."""

import fcntl
import os
import pty
import queue
import re
import struct
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from distil_ray.runs.console import Console, format_record, format_seconds

TRAINING = {
    "step": 1200,
    "run/progress": 0.3,
    "train/loss": 1.25,
    "train/loss_ce": 1.5,
    "train/loss_mlm": 2.0,
    "perf/tokens_per_second": 12345.6,
    "eta_seconds": 3725.0,
}
EVALUATION = {
    "eval/mlm_loss": 2.5,
    "eval/mlm_accuracy": 0.5125,
    "eval/kl_to_teacher": 0.75,
    "eval/teacher_agreement": 0.625,
}
TRAINING_TEXT = "step  1,200   30.0%  loss 1.2500 (ce 1.5000  mlm 2.0000)  12,346 tokens/s  1:02:05 left"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (TRAINING, TRAINING_TEXT),
        (
            TRAINING | {"train/loss": None, "train/loss_ce": None, "eta_seconds": None},
            "step  1,200   30.0%  loss not finite (ce not finite  mlm 2.0000)  12,346 tokens/s",
        ),
        (
            {"step": 0, "run/progress": 0.0, "eta_seconds": None} | EVALUATION,
            "step      0    0.0%  held out: mlm_loss 2.5000, accuracy 51.2%, kl_to_teacher 0.7500, agreement 62.5%",
        ),
        (
            {"step": 7, "run/progress": 1.0, "eta_seconds": 0.0, "eval/mlm_loss": 2.5, "eval/mlm_accuracy": 0.5},
            "step      7  100.0%  held out: mlm_loss 2.5000, accuracy 50.0%",
        ),
        ({"step": 5, "run/progress": 0.5, "eval/mlm_loss": None}, "step      5   50.0%"),
    ],
)
def test_a_record_as_a_line(record, text):
    assert format_record(record) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_seconds_as_a_clock(seconds, text):
    assert format_seconds(seconds) == text


def test_without_a_terminal_there_are_plain_lines(capfd):
    events = queue.Queue()
    with Console().following(events):
        events.put(("line", "hello"))
        events.put(("record", TRAINING))
    out, err = capfd.readouterr()
    assert out == f"hello\n{TRAINING_TEXT}\n"
    assert err == ""


def test_what_comes_last_is_shown_too(capfd):
    """However long a run is silent; events of its end may still be on their way when it returns."""
    events = queue.Queue()
    with Console().following(events):
        time.sleep(0.7)
        late = threading.Timer(0.2, events.put, [("line", "the end")])
        late.start()
    late.join()
    assert capfd.readouterr().out == "the end\n"


class Broken:
    """A queue whose actor dies after one event."""

    def __init__(self):
        self.events = [("line", "before")]

    def get(self, *, timeout):
        if not self.events:
            raise ConnectionError("the actor died")
        return self.events.pop()


def test_a_queue_that_breaks_down_ends_the_following_and_no_more(capfd):
    console = Console()
    with console.following(Broken()):
        time.sleep(0.1)
    console.line("after")
    assert capfd.readouterr().out == "before\nafter\n"


_ESCAPE = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")  # colors and movements of the cursor


@contextmanager
def terminal(monkeypatch):
    """Put standard output and error on a pseudo-terminal; the result holds all that was shown when the block ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = []

    def read():
        with suppress(OSError):  # the other end is closed
            while True:
                shown.append(os.read(ours, 4096))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield shown
    reader.join()
    os.close(ours)


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    events = queue.Queue()
    with terminal(monkeypatch) as chunks, Console().following(events):
        events.put(("line", "hello"))
        events.put(("record", TRAINING))
        time.sleep(0.2)  # the bar is drawn ten times a second
        events.put(("record", TRAINING | {"step": 2000, "run/progress": 0.5} | EVALUATION))
    lines = [line.rstrip() for line in _ESCAPE.sub("", b"".join(chunks).decode()).replace("\r", "\n").split("\n")]
    bars = [line for line in lines if "━" in line]
    assert bars[0].startswith("  0.0% ━")
    brief = "━ step 1,200  1:02:05 left  loss 1.2500  12,346 tokens/s"
    assert any(bar.startswith(" 30.0% ━") and bar.endswith(brief) for bar in bars)
    assert bars[-1].startswith(" 50.0% ━")
    assert "hello" in lines
    # Progress is the bar's matter; an evaluation stays on the screen.
    assert not [line for line in lines if line.startswith("step  1,200")]
    assert [line for line in lines if line.startswith("step  2,000") and "mlm_loss 2.5000" in line]
