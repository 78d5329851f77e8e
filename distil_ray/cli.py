"""What the commands share: their arguments, and how a mistake or a failure ends them."""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TextIO

from distil_ray.errors import InputError, RunError, Stopped


def program_of(command: str) -> str:
    """What was typed to call a command: ``distil-ray train``, or ``python -m distil_ray.train``, as on clusters."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    typed = {f"distil_ray.{command}": f"distil_ray.{command}", "distil_ray.__main__": f"distil_ray {command}"}
    module = typed.get(main.name) if main is not None else None
    return f"python -m {module}" if module else f"distil-ray {command}"


def run_as_module(name: str, command: str) -> None:
    """What a module does that stands for a command, called ``name`` here: end with its status, as `python -m` runs it.

    It is no part of the API. Imported, it would take the place of what has its name in the package: `distil_ray.train`
    is a function. An import that fails does not, and the multiprocessing of a command may import its main module.

    Raises:
        ImportError: it is imported under its own name.
    """
    if name == "__main__":
        sys.exit(import_module(f"distil_ray.commands.{command}").main())
    if name != "__mp_main__":
        raise ImportError(
            f"{name} is a command, to be run: `distil-ray {command}` or `python -m {name}`; from Python, `import "
            "distil_ray` and call its functions",
            name=name,
        )


def parser_of(command: str, description: str, keys: str) -> argparse.ArgumentParser:
    """The parser of a command that takes a configuration; ``keys`` describes its keys."""
    parser = argparse.ArgumentParser(
        prog=program_of(command),
        description=description,
        epilog=f"configuration keys:\n\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file or its URL, or the name of a recipe; later ones override earlier ones",
    )
    add_settings(parser, "single settings in YAML syntax; they override files")
    return parser


def add_settings(parser: argparse.ArgumentParser, about: str) -> None:
    """Let the command take single settings of the configuration; ``about`` is the help text."""
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help=about)


def add_previews(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """Let the command show what it would do, ``dry_run`` says what of it."""
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and do nothing else"
    )
    parser.add_argument("--dry-run", action="store_true", help=dry_run)


def add_tasks(parser: argparse.ArgumentParser, *, tasks: str, protocol: str) -> None:
    """Let the command take tasks and how models are evaluated on them; ``tasks`` and ``protocol`` are help texts."""
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help=tasks)
    parser.add_argument(
        "--glue", default="nyu-mll/glue", metavar="SOURCE", help="folder laid out like the Hub's data set, or its id"
    )
    parser.add_argument("--protocol", action="append", default=[], metavar="FILE", help=protocol)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a single key of the protocol; overrides files"
    )


def add_license(parser: argparse.ArgumentParser) -> None:
    """Let the command take what a repository on the Hugging Face Hub is made with."""
    parser.add_argument("--private", action="store_true", help="make the repository private, if there is none yet")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="the student's license as the Hub spells it, such as apache-2.0, or NAME=URL for one that it lacks "
        "(default: the license of the teacher, if its card says so)",
    )


def main_of(
    prog: str,
    command: Callable[[list[str] | None], None],
    argv: list[str] | None,
    *,
    after_interrupt: str = "the same command starts from the beginning",
) -> int:
    """Run ``command`` and return the exit status: 0, 1 a failed run, 2 a user's mistake, 128 + n ended by signal n.

    Args:
        after_interrupt: what the same command does after an interrupt, for the message.
    """
    with _unbreakable_output(), _signals_as_interrupt() as received:
        try:
            command(argv)
        except InputError as error:
            return _complain(prog, error, 2)
        except RunError as error:
            return _complain(prog, error, 1)
        except Stopped as stop:
            return _complain(prog, stop, 128 + stop.signal_number)
        except KeyboardInterrupt:
            return _complain(prog, f"interrupted; {after_interrupt}", 128 + (received or [signal.SIGINT])[-1])
        return 0


def _complain(prog: str, message: object, status: int) -> int:
    sys.stdout.flush()
    print(f"{prog.removeprefix('python -m ')}: error: {message}", file=sys.stderr, flush=True)
    return status


@contextmanager
def _signals_as_interrupt() -> Iterator[list[int]]:
    """Let SIGTERM and a lost terminal interrupt the command, unless they are ignored, as the latter is under `nohup`;
    yield which were received.
    """
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------------- output


class _Unbreakable(io.FileIO):
    """A file descriptor to which writing never fails: what cannot be written is dropped."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:  # the other end of the pipe has gone, as with `| head`, or the terminal, or the disk is full
            return len(memoryview(content).cast("B"))


@contextmanager
def _unbreakable_output() -> Iterator[None]:
    """Within the block, neither a reader that has gone nor a character that a terminal lacks ends the command."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_unbreakable, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _unbreakable(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed, as by `>&-`
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper) or stream not in (sys.__stdout__, sys.__stderr__):  # not the process's
        return stream
    stream.flush()
    raw = _Unbreakable(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.isatty()
    )
