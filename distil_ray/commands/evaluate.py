"""`distil-ray evaluate --teacher T --student S [S…]`: how much smaller, how much faster, how good."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from distil_ray.cli import add_tasks, main_of, program_of
from distil_ray.errors import InputError

if TYPE_CHECKING:
    from distil_ray.evaluation.protocol import Protocol
    from distil_ray.evaluation.tasks import Task


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 fine-tunings failed, 2 bad input."""
    return main_of(program_of("evaluate"), _evaluate, argv, after_interrupt="the same command keeps what is done")


def _evaluate(argv: list[str] | None) -> None:
    arguments = make_parser().parse_args(argv)
    # Imported late, here and below, so that --help and mistakes answer at once.
    from distil_ray.evaluation.naming import name_models
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
    held = holding(RunFolder.at(str(output)), "distil-ray evaluate", console.line)
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


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    from distil_ray.config import describe_keys
    from distil_ray.evaluation.protocol import Protocol

    parser = argparse.ArgumentParser(
        prog=program_of("evaluate"),
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
