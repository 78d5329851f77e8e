"""`distil-ray push RUN OWNER/NAME`: a finished run's student into a repository on the Hugging Face Hub."""

import argparse

from distil_ray.cli import add_license, main_of, program_of

_AFTER_INTERRUPT = "nothing has been committed, and the same command sends what is missing"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 the Hub failed, 2 bad input."""
    return main_of(program_of("push"), _push, argv, after_interrupt=_AFTER_INTERRUPT)


def _push(argv: list[str] | None) -> None:
    arguments = make_parser().parse_args(argv)
    # Imported late, so that --help answers at once.
    from distil_ray.runs.console import Console
    from distil_ray.training.publishing import Publication, push

    publication = Publication.of(
        arguments.repository,
        license_=arguments.license,
        is_private=arguments.private,
        revision=arguments.revision,
        overwrite=arguments.overwrite,
    )
    push(arguments.run, publication, Console())


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=program_of("push"),
        description="Push the student of a finished run to the Hugging Face Hub: model, tokenizer and model card, in "
        "one commit. A repository that is not there is made; one that holds something else is left alone.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, here or as a URL")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the token has to be allowed to write there")
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch, which is made if there is none")
    add_license(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what the repository holds, which stays in its history, if it is not of this run",
    )
    return parser
