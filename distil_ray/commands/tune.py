"""`distil-ray tune`: search for temperature, loss weights and other settings with Ray Tune."""

import argparse
import sys

from distil_ray.cli import add_previews, main_of, parser_of, program_of
from distil_ray.config import describe_keys

_AFTER_INTERRUPT = "the same command resumes the search, and each unfinished trial from its last checkpoint"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 no trial succeeded, 2 bad configuration or input."""
    return main_of(program_of("tune"), _tune, argv, after_interrupt=_AFTER_INTERRUPT)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    from distil_ray.studies.settings import SearchConfig

    parser = parser_of(
        "tune",
        "Search for the best settings: trials are runs side by side; the result is the best configuration.",
        f"{describe_keys(SearchConfig)}\n\n{describe_keys()}",
    )
    add_previews(parser, "check everything and show what would be tried; train nothing")
    parser.add_argument("--retry-failed", action="store_true", help="also run trials again that failed before")
    return parser


def _tune(argv: list[str] | None) -> None:
    arguments = make_parser().parse_intermixed_args(argv)
    # Imported late, so that a command that does not need them answers at once.
    from distil_ray.studies.settings import load_search

    plan = load_search(arguments.config, arguments.settings)
    if arguments.print_config:
        sys.stdout.write(plan.to_yaml())
        return
    from distil_ray.studies.tuner import dry_run, search

    if arguments.dry_run:
        dry_run(plan)
        return
    search(plan, retry_failed=arguments.retry_failed)
