"""`distil-ray export RUN`: a run's student as it was at a checkpoint, of unfinished runs, too."""

import argparse
from pathlib import Path

from distil_ray.cli import main_of, program_of
from distil_ray.config import output_path


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a storage or the Hub failed, 2 bad input."""
    return main_of(program_of("export"), _export, argv)


def _export(argv: list[str] | None) -> None:
    arguments = make_parser().parse_args(argv)
    output = Path(output_path(arguments.output))
    # Imported late, so that --help answers at once.
    from distil_ray.runs.console import Console
    from distil_ray.training.snapshot import export_checkpoint

    export_checkpoint(arguments.run, output, arguments.step, Console())


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=program_of("export"),
        description="Write a run's student as it was at a checkpoint: weights, tokenizer and model card, like the "
        "export/ of a finished run. Works for runs that are not finished, and beside a run that goes on.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, here or as a URL")
    parser.add_argument("--step", type=int, metavar="N", help="of the checkpoint (default: the newest)")
    parser.add_argument("--output", required=True, metavar="DIR", help="local folder, which is new or empty")
    return parser
