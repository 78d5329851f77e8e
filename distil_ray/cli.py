"""What the commands share: their arguments, and how a mistake or a failure ends them."""

import argparse
import signal
import sys
from collections.abc import Callable

from distil_ray.errors import InputError, RunError, Stopped

_INTERRUPTED = 128 + signal.SIGINT


def parser_of(prog: str, description: str, keys: str) -> argparse.ArgumentParser:
    """The arguments of a command that takes a configuration with these ``keys``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=description,
        epilog=f"configuration keys:\n\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML file or its URL; of several, later ones win"
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="section.key=value",
        help="single settings in YAML syntax; they win over files",
    )
    return parser


def add_previews(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """Let the command show what it would do, ``dry_run`` says what of it."""
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and do nothing else"
    )
    parser.add_argument("--dry-run", action="store_true", help=dry_run)


def main_of(prog: str, command: Callable[[list[str] | None], None], argv: list[str] | None) -> int:
    """Run ``command`` and return the exit status: 0, 1 a failed run, 2 a user's mistake, 128 + n ended by signal n."""
    try:
        command(argv)
    except InputError as error:
        return _complain(prog, error, 2)
    except RunError as error:
        return _complain(prog, error, 1)
    except Stopped as stop:
        return _complain(prog, stop, 128 + stop.signal_number)
    except KeyboardInterrupt:
        return _complain(prog, "interrupted; the same command goes on from the last checkpoint", _INTERRUPTED)
    return 0


def _complain(prog: str, message: object, status: int) -> int:
    sys.stdout.flush()
    print(f"{prog}: error: {message}", file=sys.stderr, flush=True)
    return status
