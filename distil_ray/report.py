"""`python -m distil_ray.report RUN [RUN…]`: what runs, or a search, led to, on one page and in a short table."""

import argparse
import sys
from pathlib import Path

from distil_ray.cli import main_of
from distil_ray.config import output_path
from distil_ray.errors import InputError
from distil_ray.reporting.text import show


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 2 bad input."""
    return main_of("distil_ray.report", _report, argv)


def _report(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    output = _output(arguments.runs[0], arguments.output)
    # Imported late, here and below, so that --help answers at once.
    from distil_ray.studies.search_report import is_search

    if any(map(is_search, arguments.runs)):
        _report_search(arguments.runs, output)
        return
    from distil_ray.evaluation.comparison import compare, to_html, to_text
    from distil_ray.training.history import read_history

    histories = [read_history(path) for path in arguments.runs]
    for complaint in (line for history in histories for line in history.complaints):
        print(complaint)
    page = compare(histories)
    _write(output, to_html(page))
    students = [f"student of {name}: {folder}" for name, folder in page.students]
    show("\n".join([f"\n{to_text(page)}\n", *students, f"report: {output.absolute()}"]))


def _report_search(paths: list[str], output: Path) -> None:
    from distil_ray.studies.search_report import read_search, to_html, to_text

    if len(paths) > 1:
        raise InputError("a search has a page of its own: expected its folder alone, or folders of runs only")
    plan, trials = read_search(paths[0])
    _write(output, to_html(plan, trials))
    show(f"\n{to_text(plan, trials)}\n\nreport: {output.absolute()}")


def _output(run: str, output: str | None) -> Path:
    """Where the page goes."""
    if "://" in run and not output:
        raise InputError("--output: missing; for a run that is not on this machine, name a local file for the page")
    return Path(output_path(output, "--output") if output else f"{run}/report.html").expanduser()


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output: cannot write {file}: {error.strerror}; name another file") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distil_ray.report",
        description="Write what runs led to: figures, costs, curves, guesses. Runs that can be compared are compared. "
        "Or write what a search led to.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or a search")
    parser.add_argument("--output", metavar="FILE", help="the page (default: report.html in the first run's folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
