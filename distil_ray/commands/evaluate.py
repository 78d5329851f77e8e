"""`distil-ray evaluate --teacher T --student S [S…]`: how much smaller, how much faster, how good."""

import argparse

from distil_ray.cli import add_tasks, main_of, program_of


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 fine-tunings failed, 2 bad input."""
    return main_of(program_of("evaluate"), _evaluate, argv, after_interrupt="the same command keeps what is done")


def _evaluate(argv: list[str] | None) -> None:
    arguments = make_parser().parse_args(argv)
    # Imported late, so that --help answers at once.
    from distil_ray.evaluation.conduct import conduct
    from distil_ray.evaluation.protocol import load_protocol

    conduct(
        arguments.teacher,
        arguments.student,
        load_protocol(arguments.protocol, arguments.set),
        output=arguments.output,
        tasks=arguments.tasks,
        glue=arguments.glue,
        num_seeds=arguments.seeds,
        with_second_step=arguments.second_step,
        text=arguments.text,
        device_task=arguments.on_device,
        with_card=arguments.card,
    )


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
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="local folder for report.html, .md, .json and each result"
    )
    parser.add_argument(
        "--card", action="store_true", help="add each student's tables to its model card, the README.md in its folder"
    )
    return parser
