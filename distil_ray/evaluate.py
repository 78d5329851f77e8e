"""`python -m distil_ray.evaluate --teacher T --student S [S…]`: how much smaller, how much faster, how good."""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from distil_ray.cli import add_tasks, main_of
from distil_ray.errors import InputError

if TYPE_CHECKING:
    from distil_ray.evaluation.protocol import Protocol
    from distil_ray.evaluation.tasks import Task

_TEACHER = "teacher"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 fine-tunings failed, 2 bad input."""
    return main_of("distil_ray.evaluate", _evaluate, argv, after_interrupt="the same command keeps what is done")


def _evaluate(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    # Imported late, here and below, so that --help and mistakes answer at once.
    from distil_ray.evaluation.protocol import load_protocol

    protocol = load_protocol(arguments.protocol, arguments.set)
    given = name_models(arguments.teacher, arguments.student)
    if arguments.seeds < 1:
        raise InputError(f"--seeds: given {arguments.seeds}, expected at least 1")
    from distil_ray.config import output_path, parse_sources
    from distil_ray.evaluation.evaluate import Request, evaluate
    from distil_ray.evaluation.models import Model
    from distil_ray.evaluation.scoreboard import add_to_card, check_card, report_on
    from distil_ray.models.origin import resolve
    from distil_ray.reporting.report import NAME, publish
    from distil_ray.runs.console import Console
    from distil_ray.runs.lease import holding
    from distil_ray.runs.storage import RunFolder

    output = Path(output_path(arguments.output, "--output"))
    tasks, text = _tasks(arguments, protocol), parse_sources(arguments.text) if arguments.text else ()
    # Resolved once, here: workers have other working folders, and a branch on the Hub may move meanwhile.
    models = [Model(name, resolve(path, None)) for name, path in given.items()]
    with_card = models[1:] if arguments.card else []
    for model in with_card:
        check_card(model.name, model.path)
    request = Request(
        models,
        tasks,
        arguments.seeds,
        output,
        with_second_step=arguments.second_step,
        text=text,
        device_task=arguments.on_device,
    )
    console = Console()
    held = holding(RunFolder.at(str(output)), "distil_ray.evaluate", console.line)
    with ExitStack() as stack:
        board = evaluate(request, protocol, console, hold=lambda: stack.enter_context(held))
        publish(report_on(board), output / NAME)
        for model in with_card:
            add_to_card(model.path, board)


def _tasks(arguments: argparse.Namespace, protocol: "Protocol") -> "list[Task]":
    """The tasks that are named. Without names: GLUE's and the protocol's, or none if --text is given."""
    from distil_ray.evaluation.tasks import chosen_tasks

    names = [*arguments.tasks, *filter(None, [arguments.on_device])]
    if arguments.text and not names:
        return []
    return chosen_tasks(names, arguments.glue, protocol.tasks)


def name_models(teacher: str, students: list[str]) -> dict[str, str]:
    """Paths by the name of their row: of a student, NAME of NAME=PATH, or its run's or folder's name.

    Anything that exists is a path; a NAME has no "/".

    Raises:
        InputError: two have the same name, or one has none.
    """
    models = {_TEACHER: teacher}
    for given in students:
        name, equals, path = given.partition("=")
        if not equals or "/" in name or os.path.exists(os.path.expanduser(given)):
            name, path = _name_of(given), given
        if not path or not name or name in (".", "..") or name.endswith(" (D)"):
            raise InputError(
                f"--student: given {given!r}, expected MODEL or NAME=MODEL, where NAME does not end in (D)"
            )
        if name in models:
            raise InputError(f"--student: two models would be called {name}; name them: --student {name}-2={path}")
        models[name] = path
    return models


def _name_of(path: str) -> str:
    if os.path.exists(os.path.expanduser(path)):
        path = os.path.abspath(os.path.expanduser(path))
    parts = [part for part in path.rstrip("/").split("/") if part]
    if len(parts) > 1 and parts[-1] == "export":
        return parts[-2]
    return parts[-1] if parts else ""


def _parser() -> argparse.ArgumentParser:
    from distil_ray.config import describe_keys
    from distil_ray.evaluation.protocol import Protocol

    parser = argparse.ArgumentParser(
        prog="python -m distil_ray.evaluate",
        description="Fine-tune a teacher and students on GLUE and other tasks, each (model, task, seed) as a Ray task, "
        "measure their size and speed, and write tables like the DistilBERT paper's. The same command resumes.",
        epilog=f"protocol keys:\n\n{describe_keys(Protocol)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="folder or Hub id")
    parser.add_argument(
        "--student", required=True, nargs="+", metavar="MODEL", help="folders or Hub ids; NAME=MODEL names the row"
    )
    add_tasks(
        parser,
        tasks="tasks of GLUE and of the protocol (default: all), or stsb-similarity, which fine-tunes nothing",
        protocol="YAML file with the keys below",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        metavar="N",
        help="fine-tunings of each model on each task (default: %(default)s)",
    )
    parser.add_argument(
        "--second-step",
        action="store_true",
        help="also fine-tune each student with the soft targets of the fine-tuned teacher: rows NAME (D)",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="SOURCE",
        help="evaluate the models by masked language modeling on this text, which none has seen (like data.sources)",
    )
    parser.add_argument(
        "--on-device", metavar="TASK", help="export each model, fine-tuned for this task, to ONNX and int8, and compare"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="for report.html, .md, .json and each result")
    parser.add_argument(
        "--card", action="store_true", help="add each student's tables to its model card, the README.md in its folder"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
