"""`distil-ray`, also as `python -m distil_ray`: finds the command that is named, and loads no other."""

# PYTHON_ARGCOMPLETE_OK
import argparse
import os
import sys
from importlib import import_module

from distil_ray import __version__
from distil_ray.cli import main_of
from distil_ray.commands import COMMANDS
from distil_ray.errors import InputError, did_you_mean


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 it failed, 2 a user's mistake, 128 + n ended by signal n."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could follow
        from distil_ray.commands.completion import complete

        complete()
    arguments = sys.argv[1:] if argv is None else argv
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return int(import_module(f"distil_ray.commands.{name}").main(arguments[1:]))
    return main_of("distil-ray", _answer, [name])


def _answer(argv: list[str] | None) -> None:
    """Answer what names no command."""
    parser = argparse.ArgumentParser(
        prog="distil-ray",
        usage="distil-ray [--help] [--version] COMMAND …",
        description="Distil masked language models on a Ray cluster, the DistilBERT way.",
        epilog=f"{_listed()}\n\n`distil-ray COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"distil-ray {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    name = parser.parse_args(argv).command
    raise InputError(f"{name}: no such command{did_you_mean(name, COMMANDS)}; expected one of {', '.join(COMMANDS)}")


def _listed() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(["commands:", *(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())])


if __name__ == "__main__":
    sys.exit(main())
