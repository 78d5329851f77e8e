"""`distil-ray report RUN [RUN…]`: the results of runs, or of a search, on one page and in a short table."""

import argparse
from pathlib import Path

from distil_ray.cli import main_of, program_of
from distil_ray.config import output_path
from distil_ray.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 2 bad input."""
    return main_of(program_of("report"), _report, argv)


def _report(argv: list[str] | None) -> None:
    arguments = make_parser().parse_args(argv)
    stem = _stem(arguments.runs[0], arguments.output)
    # Imported late, so that --help answers at once.
    from distil_ray.evaluation.comparison import compare
    from distil_ray.reporting.report import make_folder, publish
    from distil_ray.studies.search_report import is_search, read_search, report_on
    from distil_ray.training.history import read_history

    if any(map(is_search, arguments.runs)):
        if len(arguments.runs) > 1:
            raise InputError("a search has its own page: expected one folder of a search, or folders of runs")
        plan, trials = read_search(arguments.runs[0])
        make_folder(stem.parent)
        publish(report_on(plan, trials), stem)
        return
    histories = [read_history(path) for path in arguments.runs]
    make_folder(stem.parent)
    for complaint in (line for history in histories for line in history.complaints):
        print(complaint)
    publish(compare(histories), stem)


def _stem(run: str, output: str | None) -> Path:
    """The path of the report's files without their suffixes."""
    if "://" in run and not output:
        raise InputError("--output: missing; for a run that is not on this machine, name a local file")
    file = Path(output_path(output) if output else f"{run}/report.html").expanduser()
    return file.with_suffix("") if file.suffix in (".html", ".md", ".json") else file


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=program_of("report"),
        description="Report the results of runs: figures, costs, curves, guesses; comparable runs are compared. "
        "Or report the results of a search.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or a search")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page, a local file, with .md and .json next to it (default: report.html in the first run's folder)",
    )
    return parser
