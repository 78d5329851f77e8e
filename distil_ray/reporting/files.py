"""A report -> its files."""

import os
from pathlib import Path

from distil_ray.errors import InputError

NAME = "report"


def make_folder(folder: Path) -> None:
    """Make the folder of a report, before hours go into what it will hold.

    Raises:
        InputError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = None if os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        problem = error.strerror
    if problem:
        raise InputError(f"--output: cannot write into {folder}: {problem}; name another folder")


def write_report(folder: Path, *, json: str, html: str, markdown: str) -> None:
    """Write ``report.json``, ``.html`` and ``.md``, show the last, and say where they are."""
    for suffix, text in (("json", json), ("html", html), ("md", markdown)):
        (folder / f"{NAME}.{suffix}").write_text(text, encoding="utf-8")
    print(f"\n{markdown}\nreport: {(folder / NAME).absolute()}.html, .md, .json")
