"""What pydantic finds wrong -> one line a problem, in the words of the configuration."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from distil_ray.config.checks import Inconsistent, Problem, problem, shown
from distil_ray.config.description import fields, is_mapping, section_of, type_text
from distil_ray.config.sections import Config, Section, listed
from distil_ray.errors import InputError

_STAND_INS = {"run.name": "x", "teacher.path": "x", "data.sources": "x"}  # for what must be there


class ConfigError(InputError):
    """Everything that is wrong with a configuration; ``problems``: one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"the configuration has {count}:", *problems]))
        self.problems = tuple(problems)


def across_problems(error: ValidationError) -> list[Problem]:
    """Return what `Config` found across settings; nothing if some setting is at fault by itself."""
    causes = [detail.get("ctx", {}).get("error") for detail in error.errors(include_url=False)]
    return [problem for cause in causes if isinstance(cause, Inconsistent) for problem in cause.problems]


def single_problems(error: ValidationError, given: Mapping[str, Any], root: type[Section] = Config) -> list[Problem]:
    """Put pydantic's findings about a ``root`` in the words of the configuration, one problem a setting."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _field_problem(detail, given, root)
        found.setdefault(problem.keys[0], problem)  # a union reports each of its members
    # A list whose items are faulty is also reported as too short.
    lists = {key.partition("[")[0] for key in found if "[" in key}
    return [problem for key, problem in found.items() if key not in lists]


def problems_of_the_rest(given: Mapping[str, Any], problems: Sequence[Problem]) -> list[Problem]:
    """Look across the settings that are not at fault: pydantic does so only if each is valid by itself."""
    at_fault = [key for problem in problems for key in problem.keys]
    try:
        Config.model_validate(_without(given, at_fault))
    except ValidationError as error:
        return [
            problem
            for problem in across_problems(error)
            if not any(_touches(key, fault) for key in problem.keys for fault in at_fault)
        ]
    return []


def _field_problem(detail: ErrorDetails, given: Mapping[str, Any], root: type[Section]) -> Problem:
    location = detail["loc"]
    if detail["type"] == "invalid_key":  # a number, for example
        location = (*location[:-1], str(location[-1]))
    section = root
    key, expected, description = "", "mapping", None
    value: Any = given
    is_name = False  # whether the next part is one that the user gave
    for part in location:
        if is_name:
            key, value, is_name = f"{key}.{part}", value.get(part), False
            continue
        if isinstance(part, int):
            key, value, expected = f"{key}[{part}]", listed(value)[part], type_text(section)
            continue
        if part not in section.model_fields:
            return _unknown_key(key, part, section, root)
        field = section.model_fields[part]
        key, value = f"{key}.{part}" if key else part, value.get(part)
        expected, description = type_text(field.annotation, field.metadata), field.description
        nested = section_of(field.annotation)
        if nested is None:
            break  # what follows tells the members of a union and the items of a list apart
        section, is_name = nested, is_mapping(field)
    if detail["type"] == "value_error":
        return problem((key,), str(detail["ctx"]["error"]))
    if detail["type"] == "missing":
        return problem((key,), f"missing, expected {expected}. {description}")
    hint = " (put it in quotes)" if isinstance(value, int | float) and "text" in expected else ""
    return problem((key,), f"given {shown(value)}, expected {expected}{hint}")


def _unknown_key(prefix: str, name: str, section: type[Section], root: type[Section]) -> Problem:
    """Name the valid key of the most similar spelling: of the same section if there is one, else of any."""
    if section is Config and name == "search":
        return Problem(("search",), "search: belongs to python -m distil_ray.tune; expected no such section here")
    key = f"{prefix}.{name}" if prefix else name
    siblings = {sibling: f"{prefix}.{sibling}" if prefix else sibling for sibling in section.model_fields}
    others = {other.rpartition(".")[2]: other for other, _ in fields(root)}
    for candidates in (siblings, others):
        for nearest in difflib.get_close_matches(name, candidates, n=1):
            suggestion = candidates[nearest]
            return Problem((key, suggestion), f"unknown key {key}, did you mean {suggestion}?")
    return Problem((key,), f"unknown key {key}, expected one of {', '.join(siblings.values())}")


def _without(given: Mapping[str, Any], at_fault: Sequence[str]) -> dict[str, Any]:
    """Return the settings without those at fault, with stand-ins for those that must be there."""
    settings = {section: dict(keys) if isinstance(keys, Mapping) else keys for section, keys in given.items()}
    for key in at_fault:
        section, _, name = key.partition(".")
        name = re.split(r"[.\[]", name)[0]
        if isinstance(settings.get(section), dict) and name:
            settings[section].pop(name, None)
        else:
            settings.pop(section, None)
    for key, stand_in in _STAND_INS.items():
        section, _, name = key.partition(".")
        if section != "teacher" or settings.get(section) is not None:
            settings.setdefault(section, {}).setdefault(name, stand_in)
    settings.setdefault("optim", {})
    return settings


def _touches(key: str, fault: str) -> bool:
    return key == fault or key.startswith((f"{fault}.", f"{fault}["))
