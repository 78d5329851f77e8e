"""What comes with the package: recipes by their names, and the quickstart's teacher."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
_RECIPES = _PACKAGE / "configs"  # in the repository a link to its top folder of that name; in a wheel a folder


def recipe_names() -> list[str]:
    """The names of the recipes, in the order of the alphabet."""
    return sorted(file.stem for file in _RECIPES.glob("*.yaml"))


def recipe_of(name: str) -> str | None:
    """The file of the recipe that is meant by what was given as a file; None if that cannot be a recipe's name.

    Anything that exists is a file; a recipe's name has no suffix and no "/".
    """
    if os.path.exists(os.path.expanduser(name)) or "/" in name or Path(name).suffix:
        return None
    return str(_RECIPES / f"{name}.yaml")


def shipped_path(path: str) -> str | None:
    """Where something of the package lies that is named from the package's own folder; None for any other path.

    So ``distil_ray/quickstart/teacher`` is the same in every working folder that has nothing of that name. (It is no id
    on the Hub, which has one "/" at most.)
    """
    place = _PACKAGE.parent / path
    is_named = path.startswith(f"{_PACKAGE.name}/") and path.count("/") > 1
    return str(place) if is_named and place.exists() else None
