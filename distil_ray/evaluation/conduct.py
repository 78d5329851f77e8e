"""A whole evaluation: from the names of models and tasks to a published report.

Imports little: a mistake is found before anything heavy is loaded.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distil_ray.config import output_path, parse_sources
from distil_ray.errors import InputError
from distil_ray.evaluation.protocol import Protocol

if TYPE_CHECKING:
    from distil_ray.evaluation.scoreboard import Scoreboard

_TEACHER = "teacher"


def conduct(
    teacher: str,
    students: Sequence[str],
    protocol: Protocol,
    *,
    output: str,
    tasks: Sequence[str],
    glue: str,
    num_seeds: int,
    with_second_step: bool,
    text: Sequence[str | Mapping[str, Any]],
    device_task: str | None,
    with_card: bool,
) -> "Scoreboard":
    """Evaluate the models, or do the rest of it, and write the report's files. Messages name the command's options.

    Args:
        students: folders or Hub ids, or NAME=MODEL.
        tasks: of GLUE and of the protocol; without names all, or none if there is ``text``.

    Raises:
        InputError: a model, a task, text or an earlier result cannot be used.
        RunError: fine-tunings failed; the others are kept.
    """
    given = name_models(teacher, students)
    if num_seeds < 1:
        raise InputError(f"--seeds: given {num_seeds}, expected at least 1")
    # Imported late, so that mistakes answer at once.
    from distil_ray.evaluation.evaluate import Request, evaluate
    from distil_ray.evaluation.models import Model
    from distil_ray.evaluation.scoreboard import add_to_card, check_card, report_on
    from distil_ray.evaluation.tasks import chosen_tasks
    from distil_ray.models.origin import resolve
    from distil_ray.reporting.report import NAME, publish
    from distil_ray.runs.console import Console
    from distil_ray.runs.lease import holding
    from distil_ray.runs.storage import RunFolder

    folder = Path(output_path(output))
    names = [*tasks, *filter(None, [device_task])]
    chosen = chosen_tasks(names, glue, protocol.tasks) if names or not text else []
    sources = parse_sources(text) if text else ()
    # Resolved once, here: workers have other working folders, and a branch on the Hub may move meanwhile.
    models = [Model(name, resolve(path, None)) for name, path in given.items()]
    carded = models[1:] if with_card else []
    for model in carded:
        check_card(model.name, model.path)
    request = Request(models, chosen, num_seeds, folder, with_second_step, sources, device_task)
    console = Console()
    held = holding(RunFolder.at(str(folder)), "distil-ray evaluate", console.line)
    with ExitStack() as stack:
        board = evaluate(request, protocol, console, hold=lambda: stack.enter_context(held))
        publish(report_on(board), folder / NAME)
        for model in carded:
            add_to_card(model.path, board)
    return board


def name_models(teacher: str, students: Sequence[str]) -> dict[str, str]:
    """Paths by the name of their row: of a student, NAME of NAME=PATH, or its run's or folder's name.

    Anything that exists is a path; a NAME has no "/".

    Raises:
        InputError: two have the same name, or one has none.
    """
    models = {_TEACHER: teacher}
    for given in students:
        name, equals, path = given.partition("=")
        if not equals or "/" in name or os.path.exists(os.path.expanduser(given)):
            name, path = _name_of(given), given
        if not path or not name or name in (".", "..") or name.endswith(" (D)"):
            raise InputError(
                f"--student: given {given!r}, expected MODEL or NAME=MODEL, where NAME does not end in (D)"
            )
        if name in models:
            raise InputError(f"--student: two models would be called {name}; name them: --student {name}-2={path}")
        models[name] = path
    return models


def _name_of(path: str) -> str:
    if os.path.exists(os.path.expanduser(path)):
        path = os.path.abspath(os.path.expanduser(path))
    parts = [part for part in path.rstrip("/").split("/") if part]
    if len(parts) > 1 and parts[-1] == "export":
        return parts[-2]
    return parts[-1] if parts else ""
