"""`distil-ray doctor`: check a cluster with a run's configuration before money is spent on it."""

import argparse

from distil_ray.cli import main_of, parser_of, program_of
from distil_ray.config import describe_keys, load_config
from distil_ray.errors import RunError


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 healthy, 1 a check failed, 2 bad configuration."""
    return main_of(program_of("doctor"), _doctor, argv)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    return parser_of(
        "doctor",
        "Check every node of a cluster with the configuration of a run: versions, storage, models, text, GPUs, labels, "
        "object store, the workers' network, authentication.",
        describe_keys(),
    )


def _doctor(argv: list[str] | None) -> None:
    arguments = make_parser().parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.settings)
    # Imported late, so that --help and configuration errors answer at once.
    from distil_ray.runs.console import Console
    from distil_ray.training.checkup import checkup

    console = Console()
    verdicts = checkup(config, console)
    for verdict in verdicts:
        console.line(f"{verdict.outcome:10}{verdict.check:16}{verdict.detail}")
    failed = [verdict.check for verdict in verdicts if verdict.outcome == "failed"]
    if failed:
        raise RunError(f"{len(failed)} of {len(verdicts)} checks failed: {', '.join(failed)}")
