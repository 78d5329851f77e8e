"""`python -m distil_ray.train`: distil a student, from raw text to a Hugging Face folder."""

import sys

from distil_ray.cli import add_previews, main_of, parser_of
from distil_ray.config import describe_keys, load_config, to_yaml

_AFTER_INTERRUPT = "the same command resumes from the last checkpoint"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 the run failed, 2 bad configuration or input."""
    return main_of("distil_ray.train", _train, argv, after_interrupt=_AFTER_INTERRUPT)


def _train(argv: list[str] | None) -> None:
    parser = parser_of(
        "distil_ray.train", "Distil a masked language model: raw text in, a Hugging Face student out.", describe_keys()
    )
    add_previews(parser, "resolve everything, show models, data, memory and one batch; train nothing")
    arguments = parser.parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.settings)
    if arguments.print_config:
        sys.stdout.write(to_yaml(config))
        return
    # Imported late, so that --help, --print-config and configuration errors answer at once.
    from distil_ray.runs.console import Console

    if arguments.dry_run:
        from distil_ray.training.dry_run import dry_run

        dry_run(config, Console())
        return
    from distil_ray.training.launcher import launch

    launch(config, Console())


if __name__ == "__main__":
    sys.exit(main())
