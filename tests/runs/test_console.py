"""What is shown of a run: plain lines, and live figures where there is a terminal."""

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

from records import EVALUATION, TRAINING, TRAINING_TEXT

from distil_ray.runs.console import Console


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


def test_on_a_terminal_there_are_live_figures(monkeypatch):
    events = queue.Queue()
    with terminal(monkeypatch) as chunks, Console().following(events):
        events.put(("line", "hello"))
        events.put(("record", TRAINING))
        time.sleep(0.6)  # they are drawn four times a second
        events.put(("record", TRAINING | {"step": 2000, "run/progress": 0.5} | EVALUATION))
        events.put(("record", TRAINING | {"step": 2400, "run/progress": 0.6} | EVALUATION | {"eval/mlm_loss": 2.25}))
    lines = [line.rstrip() for line in _ESCAPE.sub("", b"".join(chunks).decode()).replace("\r", "\n").split("\n")]
    bars = [line for line in lines if "━" in line]
    assert bars[0].startswith("  0.0% ━")
    assert any(
        bar.startswith(" 30.0% ━") and bar.endswith("━ step 1,200  1:02:05 left  12,346 tokens/s") for bar in bars
    )
    assert bars[-1].startswith(" 60.0% ━")
    assert "hello" in lines
    assert "  loss 1.2500 (ce 1.5000  mlm 2.0000)" in lines
    last = lines[lines.index(bars[-1]) :]
    assert "  held out: mlm_loss       2.2500  █▁" in last
    assert "  held out: agreement       62.5%  ▁▁" in last
    # Progress is the bar's matter; an evaluation stays on the screen.
    assert not [line for line in lines if line.startswith("step  1,200")]
    assert [line for line in lines if line.startswith("step  2,000") and "mlm_loss 2.5000" in line]
