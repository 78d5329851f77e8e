"""What the rows of a comparison are called. Imports little: a mistake is found before anything heavy is loaded."""

import os
from collections.abc import Sequence

from distil_ray.errors import InputError

_TEACHER = "teacher"


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
