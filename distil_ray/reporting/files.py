"""A report -> its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distil_ray.errors import InputError, RunError
from distil_ray.reporting.text import show

NAME = "report"


def make_folder(folder: Path) -> None:
    """Make the folder of a report, before hours go into what it will hold.

    Raises:
        InputError: nothing can be written there.
    """
    probe = folder / f".{NAME}.writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_text("whether there is room\n", encoding="utf-8")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"--output: cannot write into {folder}: {error.strerror}; name another folder, or free space"
        ) from error


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn a failed write of ``file`` within the block into RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {file}: {error.strerror}; what was written before is kept, the same command does the rest"
        ) from error


def write_report(folder: Path, *, json: str, html: str, markdown: str) -> None:
    """Write ``report.json``, ``.html`` and ``.md``.

    Raises:
        RunError: one cannot be written.
    """
    for suffix, text in (("json", json), ("html", html), ("md", markdown)):
        file = folder / f"{NAME}.{suffix}"
        with writing(file):
            file.write_text(text, encoding="utf-8")


def show_report(folder: Path, markdown: str) -> None:
    """Print a report, and where its files are."""
    show(f"\n{markdown}\nreport: {(folder / NAME).absolute()}.html, .md, .json")
