"""`python -m distil_ray.tune`: search for temperature, loss weights and other settings with Ray Tune."""

import sys

from distil_ray.cli import add_previews, main_of, parser_of
from distil_ray.config import describe_keys

_AFTER_INTERRUPT = "the same command resumes the search, and each unfinished trial from its last checkpoint"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 no trial succeeded, 2 bad configuration or input."""
    return main_of("distil_ray.tune", _tune, argv, after_interrupt=_AFTER_INTERRUPT)


def _tune(argv: list[str] | None) -> None:
    # Imported late, here and below, so that a command that does not need them answers at once.
    from distil_ray.studies.settings import SearchConfig, load_search

    parser = parser_of(
        "distil_ray.tune",
        "Search for the best settings: trials are runs side by side; the result is the best configuration.",
        f"{describe_keys(SearchConfig)}\n\n{describe_keys()}",
    )
    add_previews(parser, "check everything and show what would be tried; train nothing")
    parser.add_argument("--retry-failed", action="store_true", help="also run trials again that failed before")
    arguments = parser.parse_intermixed_args(argv)
    plan = load_search(arguments.config, arguments.settings)
    if arguments.print_config:
        sys.stdout.write(plan.to_yaml())
        return
    from distil_ray.studies.tuner import dry_run, search

    if arguments.dry_run:
        dry_run(plan)
        return
    search(plan, retry_failed=arguments.retry_failed)


if __name__ == "__main__":
    sys.exit(main())
