"""`python -m distil_ray.report RUN [RUN…]`: what runs led to, on one page and in a short table."""

import argparse
import sys
from pathlib import Path

from distil_ray.cli import main_of
from distil_ray.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 2 bad input."""
    return main_of("distil_ray.report", _report, argv)


def _report(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    # Imported late, so that --help answers at once.
    from distil_ray.evaluation.comparison import compare
    from distil_ray.evaluation.page import to_html, to_text
    from distil_ray.training.history import read_history

    output = Path(arguments.output or f"{arguments.runs[0]}/report.html")
    if "://" in str(arguments.runs[0]) and not arguments.output:
        raise InputError("--output: missing; for a run that is not on this machine, name a local file for the page")
    page = compare([read_history(path) for path in arguments.runs])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(to_html(page), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output: cannot write {output}: {error.strerror}; name another file") from error
    print(f"\n{to_text(page)}\n")
    for name, folder in page.students:
        print(f"student of {name}: {folder}")
    print(f"report: {output.absolute()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distil_ray.report",
        description="Write what runs led to: figures, costs, curves, guesses. Runs that can be compared are compared.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, <run.storage_path>/<run.name>")
    parser.add_argument("--output", metavar="FILE", help="the page (default: report.html in the first run's folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
