"""`distil-ray train`: distil a student, from raw text to a Hugging Face folder."""

import argparse
import sys
from pathlib import Path

from distil_ray.cli import add_license, add_previews, main_of, parser_of, program_of
from distil_ray.config import describe_keys, load_config, to_yaml
from distil_ray.errors import InputError

_AFTER_INTERRUPT = "the same command resumes from the last checkpoint"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 the run failed, 2 bad configuration or input."""
    return main_of(program_of("train"), _train, argv, after_interrupt=_AFTER_INTERRUPT)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = parser_of(
        "train", "Distil a masked language model: raw text in, a Hugging Face student out.", describe_keys()
    )
    add_previews(
        parser,
        "resolve everything, show models, data, memory and one batch, and estimate time and price; train nothing",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        metavar="SHARE",
        help="with --dry-run: share of the GPUs' peak FLOP/s that the estimate assumes, as a run's perf/mfu "
        "reports it (default: 0.3)",
    )
    parser.add_argument(
        "--cluster",
        type=Path,
        metavar="FILE",
        help="with --dry-run: a cluster's YAML with prices, such as cluster/aws.yaml; says what the run costs there",
    )
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="push the student to this repository on the Hugging Face Hub at the end"
    )
    add_license(parser)
    return parser


def _train(argv: list[str] | None) -> None:
    arguments = make_parser().parse_intermixed_args(argv)
    for option in ("mfu", "cluster"):
        if getattr(arguments, option) is not None and not arguments.dry_run:
            raise InputError(f"--{option}: is for the estimate of a dry run; expected --dry-run beside it")
    if arguments.push and arguments.dry_run:
        raise InputError("--push: a dry run makes no student to push; expected only one of --push and --dry-run")
    if not arguments.push and (arguments.private or arguments.license):
        raise InputError("--private, --license: are for the repository to push to; expected --push OWNER/NAME beside")
    config = load_config(arguments.config, arguments.settings)
    if arguments.print_config:
        sys.stdout.write(to_yaml(config))
        return
    # Imported late, so that --help, --print-config and configuration errors answer at once.
    from distil_ray.runs.console import Console

    if arguments.dry_run:
        from distil_ray.training.dry_run import dry_run

        dry_run(config, Console(), mfu=arguments.mfu, cluster=arguments.cluster)
        return
    from distil_ray.training.launcher import launch

    if not arguments.push:
        launch(config, Console())
        return
    from distil_ray.training.publishing import Publication, check_before_training, push_trained

    publication = Publication.of(arguments.push, license_=arguments.license, is_private=arguments.private)
    check_before_training(publication, config)
    launch(config, Console())
    push_trained(config, publication, Console())
