"""`distil-ray quickstart`: a small student with and without its teacher's losses, compared on one page."""

import argparse
from pathlib import Path

from distil_ray.cli import add_settings, main_of, program_of
from distil_ray.config import load_config
from distil_ray.errors import InputError

_RECIPE = "quickstart"
_VARIANTS: dict[str, list[str]] = {
    "": [],
    "-mlm-only": ["distill.alpha_ce=0", "distill.alpha_cos=0"],
    "-from-scratch": ["distill.alpha_ce=0", "distill.alpha_cos=0", "student.init=random"],
}
"""What follows the run's name, and the settings of the run."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 a run failed, 2 bad settings."""
    after = "the same command keeps finished runs and resumes the interrupted one from its last checkpoint"
    return main_of(program_of("quickstart"), _quickstart, argv, after_interrupt=after)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=program_of("quickstart"),
        description="Distil the small teacher that comes with the package into half its layers, on the docstrings of "
        "the installed packages; train the same student twice without the teacher's losses, the second time from "
        "random weights; and compare them in report.html. Ten minutes on two CPU cores; nothing is downloaded. What is "
        "finished is not repeated, what was interrupted is resumed.",
    )
    add_settings(
        parser,
        "settings of all three runs, such as run.storage_path=DIR (default: runs) or optim.num_steps=100; "
        "`distil-ray train --help` lists them",
    )
    return parser


def _quickstart(argv: list[str] | None) -> None:
    settings = make_parser().parse_args(argv).settings
    name = load_config([_RECIPE], settings).run.name
    configs = [
        load_config([_RECIPE], [*settings, f"run.name={name}{suffix}", *own]) for suffix, own in _VARIANTS.items()
    ]
    folder = configs[0].run.folder
    if "://" in folder:
        raise InputError(f"run.storage_path: given {configs[0].run.storage_path}, expected a local folder")
    # Imported late, so that --help and mistakes answer at once.
    from distil_ray.evaluation.comparison import compare
    from distil_ray.reporting.report import NAME, publish
    from distil_ray.runs.console import Console
    from distil_ray.training.history import read_history
    from distil_ray.training.launcher import launch

    for config in configs:
        launch(config, Console())
    publish(compare([read_history(config.run.folder) for config in configs]), Path(folder) / NAME)
