"""What a shell may complete: commands, options, files, recipes, keys and their values. Loads no other command.

Switched on in bash and zsh by `eval "$(register-python-argcomplete distil-ray)"`.
"""

import argparse
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import argcomplete
from argcomplete.completers import FilesCompleter

from distil_ray.commands import COMMANDS

_NUM_PLACES = 16  # in a line where settings may stand, with options between them


def complete() -> None:
    """Answer the shell's question, which is in the environment, and end the process."""
    argcomplete.autocomplete(_parser(_command_in(os.environ.get("COMP_LINE", ""))), always_complete_options=False)


def _command_in(line: str) -> str | None:
    """The command that a line names, after the program."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open; the command has none
        words = line.split()
    return next((word for word in words[1:] if word in COMMANDS), None)


def _parser(command: str | None) -> argparse.ArgumentParser:
    """A parser of all commands' names, and of the arguments of one."""
    parser = argparse.ArgumentParser(prog="distil-ray")
    parser.add_argument("--version", action="store_true")
    parsers = parser.add_subparsers()
    for name, about in COMMANDS.items():
        if name == command:
            own = import_module(f"distil_ray.commands.{name}").make_parser()
            _set_completers(own, name)
            parsers.add_parser(name, help=about, parents=[own], add_help=False)
        else:
            parsers.add_parser(name, help=about)
    return parser


def _set_completers(parser: argparse.ArgumentParser, command: str) -> None:
    completers: dict[str, Callable[..., Iterable[str]]] = {
        "settings": partial(_settings, command),
        "set": partial(_settings, "protocol"),
        "config": _configurations,
        "protocol": _configurations,
    }
    if any(action.dest == "settings" for action in parser._actions):
        # Without options between them argparse takes all settings at once, and none that come after one.
        for _ in range(_NUM_PLACES):
            parser.add_argument("settings", nargs="+")
    for action in parser._actions:
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]


def _settings(of: str, prefix: str, **_others: object) -> list[str]:
    """`section.key=` of each key, and what may follow it where that is one of a few words."""
    from distil_ray.config import Config
    from distil_ray.config.description import fields
    from distil_ray.config.sections import Section
    from distil_ray.evaluation.protocol import Protocol
    from distil_ray.studies.settings import AblationConfig, SearchConfig

    roots: dict[str, list[type[Section]]]
    roots = {"tune": [SearchConfig, Config], "ablate": [AblationConfig, Config], "protocol": [Protocol]}
    known = {
        key: field
        for root in roots.get(of, [Config])
        for key, field in fields(root)
        if "[" not in key and "<" not in key
    }
    key, equals, _ = prefix.partition("=")
    if not equals:
        return [f"{one}=" for one in known]
    return [f"{key}={word}" for word in _words(known[key].annotation)] if key in known else []


def _words(annotation: Any) -> Iterator[str]:
    """What a value may be spelled like, as far as the type lists it."""
    if annotation in (bool, NoneType):
        yield from ("true", "false") if annotation is bool else ("null",)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is not tuple:  # of which a word is one item
        for argument in get_args(annotation):
            yield from _words(argument)


def _configurations(prefix: str, **others: object) -> list[str]:
    from distil_ray.shipped import recipe_names

    return [*FilesCompleter(("yaml", "yml"))(prefix, **others), *recipe_names()]
