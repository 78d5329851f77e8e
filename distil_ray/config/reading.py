"""YAML files and dotted settings -> a checked configuration, or one line per problem; and back to YAML."""

import copy
import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from distil_ray.config.description import fields, is_mapping, section_of, type_text
from distil_ray.config.sections import Config, Problem, Section, Source, Sources, listed, problem, shown
from distil_ray.errors import InputError, did_you_mean
from distil_ray.shipped import recipe_names, recipe_of

_STAND_INS: dict[str, dict[str, Any]] = {  # for what must be given
    "run": {"name": "x", "storage_path": "/"},
    "teacher": {"path": "x"},
    "data": {"sources": "x"},
    "optim": {},
}


class ConfigError(InputError):
    """Everything that is wrong with a configuration; ``problems``: one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"the configuration has {count}:", *problems]))
        self.problems = tuple(problems)


SECTIONS = tuple(Config.model_fields)
_LISTS_OF_SOURCES = ("data.sources", "data.eval_sources")


Given: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config


def load_config(files: Sequence[Given], overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from YAML files and dotted settings.

    Args:
        files: paths or URLs of YAML files, or names of recipes that come with the package. Mappings of later files are
            merged into those of earlier ones, key by key; anything else that a later file gives replaces what was
            there. From Python also such mappings, at whose top a key may be dotted, and configurations.
        overrides: settings such as ``optim.learning_rate=1e-4``. Each counts like one more file with that one
            line; a value that is not YAML, such as ``*.parquet``, is taken as text.

    Raises:
        InputError: with one line per problem, all problems at once.
    """
    return parse_config(load_settings(files, overrides))


def load_settings(files: Sequence[Given], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read and merge what `load_config` checks.

    Raises:
        InputError: with one line for each file or setting that cannot be read.
    """
    settings: dict[str, Any] = {}
    problems: list[str] = []
    readers: list[Callable[[], dict[str, Any]]] = [partial(_read, file) for file in files]
    for read in readers + [partial(_read_override, override) for override in overrides]:
        try:
            _merge(settings, read())
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return settings


def with_settings(settings: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``settings`` into which values by dotted key are merged, later ones winning."""
    merged: dict[str, Any] = {}
    _merge(merged, settings)
    for name, value in dotted.items():
        _merge(merged, _nested(name.split("."), value))
    return merged


def parse_sources(given: Sequence[str | Mapping[str, Any]]) -> tuple[Source, ...]:
    """Read sources as a command line gives them: paths, or YAML mappings like ``{docstrings: installed}``. From Python
    also such mappings.

    Raises:
        InputError: with one line per problem.
    """
    values = []
    for text in given:
        try:
            if isinstance(text, str) and text.lstrip().startswith("{"):
                values.append(yaml.load(text, _Loader))
            else:
                values.append(_plain(text))
        except yaml.YAMLError as error:
            raise InputError(f"{text}{_yaml_fault(error)}") from None
    try:
        return parse_section(_SourceList, {"sources": values}).sources
    except ConfigError as error:
        message = str(error).replace("the configuration has", "the sources have")
        raise InputError(re.sub(r"\bsources\[(\d+)\]", lambda found: str(given[int(found[1])]), message)) from None


class _SourceList(Section):
    sources: Sources


SectionType = TypeVar("SectionType", bound=Section)


def parse_section(section: type[SectionType], settings: Mapping[str, Any]) -> SectionType:
    """Check settings that are not a whole `Config`.

    Raises:
        InputError: with one line per problem, all problems at once.
    """
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        raise ConfigError([problem.line for problem in _complaints(error, settings, section)]) from None


def parse_config(settings: Mapping[str, Any]) -> Config:
    """Check a configuration given as a mapping of sections, and complete it with the defaults.

    Raises:
        InputError: with one line per problem, all problems at once.
    """
    # An empty section reads as null and means its defaults.
    given: dict[str, Any] = {section: {} for section in SECTIONS if section != "teacher"}
    given |= {key: value for key, value in settings.items() if value is not None or key not in given}
    try:
        config = Config.model_validate(given)
        problems = _conflicts(config)
    except ValidationError as error:
        problems = _complaints(error, given, Config)
        problems += _conflicts_of_the_rest(given, [key for problem in problems for key in problem.keys])
    if problems:
        raise ConfigError([problem.line for problem in problems])
    return config


def _conflicts(config: Config) -> list[Problem]:
    """Return what is wrong across settings that are each valid."""
    sections = (getattr(config, name) for name in SECTIONS)
    return [problem for section in sections if section is not None for problem in section.problems(config)]


def _complaints(error: ValidationError, given: Mapping[str, Any], root: type[Section]) -> list[Problem]:
    """Put pydantic's findings in the words of the configuration, one problem per setting."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _complaint(detail, given, root)
        found.setdefault(problem.keys[0], problem)  # a union reports each of its members
    # A list whose items are faulty is also reported as too short.
    lists = {key.partition("[")[0] for key in found if "[" in key}
    return [problem for key, problem in found.items() if key not in lists]


def _complaint(detail: ErrorDetails, given: Mapping[str, Any], root: type[Section]) -> Problem:
    section, key = root, ""
    value: Any = given
    expected, description = "mapping", None
    is_name = False  # whether the next part is a name that the user chose
    for part in detail["loc"]:
        if isinstance(part, int) and detail["type"] != "invalid_key":
            key, value = f"{key}[{part}]", listed(value)[part]
            expected = type_text(section)
            continue
        name = str(part)
        field = section.model_fields.get(name)
        if field is None and not is_name:
            return _unknown_key(key, name, section, root)
        key, value = f"{key}.{name}" if key else name, value.get(name)
        if is_name or field is None:
            is_name = False
            continue
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
    """Suggest the valid key of the most similar spelling: of the same section if there is one, otherwise of any."""
    if section is Config and name == "search":
        return Problem(("search",), "search: belongs to distil-ray tune; expected no such section here")
    key = f"{prefix}.{name}" if prefix else name
    siblings = {sibling: f"{prefix}.{sibling}" if prefix else sibling for sibling in section.model_fields}
    others = {other.rpartition(".")[2]: other for other, _ in fields(root)}
    for candidates in (siblings, others):
        for nearest in difflib.get_close_matches(name, candidates, n=1):
            suggestion = candidates[nearest]
            return Problem((key, suggestion), f"unknown key {key}, did you mean {suggestion}?")
    return Problem((key,), f"unknown key {key}, expected one of {', '.join(siblings.values())}")


def _conflicts_of_the_rest(given: Mapping[str, Any], at_fault: Sequence[str]) -> list[Problem]:
    """Check the settings that are not at fault against each other, with defaults or stand-ins for those that are."""
    settings = {name: {**keys} if isinstance(keys, dict) else keys for name, keys in given.items()}
    for key in at_fault:
        section, _, name = key.partition(".")
        if name and isinstance(settings.get(section), dict):
            settings[section].pop(re.split(r"[.\[]", name)[0], None)
        else:
            settings.pop(section, None)
    for section, required in _STAND_INS.items():
        if section != "teacher" or settings.get(section) is not None:
            settings[section] = required | settings.get(section, {})
    try:
        config = Config.model_validate(settings)
    except ValidationError:  # such as a key with a dot in its name: one problem at a time, then
        return []
    return [
        problem
        for problem in _conflicts(config)
        if not any(f"{key}.".startswith((f"{fault}.", f"{fault}[")) for key in problem.keys for fault in at_fault)
    ]


# YAML 1.2's floats: YAML 1.1, which PyYAML reads, takes 5e-4 for text.
_FLOAT_TAG, _TIMESTAMP_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_FLOAT = re.compile(
    r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Reads floats like YAML 1.2 and dates as text, and refuses a mapping that has a key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way to set a loader up)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT_TAG, _TIMESTAMP_TAG)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(name or id(key))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would read as a float."""


for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))


def _read(given: Given) -> dict[str, Any]:
    if isinstance(given, Config):
        return to_settings(given)
    if isinstance(given, Mapping):
        return with_settings({}, {str(key): _plain(value) for key, value in given.items()})
    return _read_file(os.fspath(given))


def _plain(value: Any) -> Any:
    """What YAML would give for a value from Python."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _read_file(file: str) -> dict[str, Any]:
    import fsspec  # late: takes 50 ms, and --help does without it

    recipe = recipe_of(file)
    try:
        with fsspec.open(recipe or file, "rt", encoding="utf-8") as content:
            text = content.read()
    except OSError as error:
        if recipe is not None:
            names = recipe_names()
            raise InputError(
                f"{file}: no such file, and no such recipe{did_you_mean(file, names)}; expected a YAML file, or one of "
                f"{', '.join(names)}"
            ) from None
        raise InputError(f"{file}: cannot be read ({error.strerror or error}), expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start}), expected a YAML file") from None
    except (ImportError, ValueError) as error:
        raise InputError(f"{file}: cannot be opened: {error}") from None
    return parse_mapping(text, file)


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """Read the text of one YAML file, which messages call ``name``, without checking what it sets.

    Raises:
        InputError: it is not YAML, or not a mapping.
    """
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{name}{_yaml_fault(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{name}: given {shown(content)}, expected a mapping of sections ({', '.join(SECTIONS)})")
    return content


def _read_override(override: str) -> dict[str, Any]:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"{override}: expected section.key=value, such as optim.learning_rate=1e-4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.constructor.ConstructorError as error:
        raise InputError(f"{override}{_yaml_fault(error)}") from None
    except yaml.YAMLError:
        value = text
    return _nested(keys, value)


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """``[a, b], 1`` -> ``{a: {b: 1}}``."""
    first, *rest = keys
    return {first: _nested(rest, value) if rest else value}


def _yaml_fault(error: yaml.YAMLError) -> str:
    """Return where the fault is and what it is, to follow the name of what was read."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f", line {error.problem_mark.line + 1}: {error.problem}"
    return f": {' '.join(str(error).split())}"


def _merge(into: dict[str, Any], settings: Mapping[str, Any], prefix: str = "") -> None:
    """Merge ``settings`` into ``into``: mappings key by key, the rest by replacing what was there."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict) and name not in _LISTS_OF_SOURCES:
            _merge(into[key], value, f"{name}.")
        elif not (value is None and name in SECTIONS and name != "teacher"):
            into[key] = copy.deepcopy(value)


def to_yaml(config: Config) -> str:
    """Return the whole configuration as YAML, which reads back as an equal one."""
    return dump_yaml(to_settings(config))


def to_settings(config: Config) -> dict[str, Any]:
    """Return the whole configuration as a mapping of sections, which `parse_config` reads back as an equal one."""
    unused = {"data": {"eval_fraction"}} if config.data.eval_sources is not None else None
    return config.model_dump(mode="json", exclude=unused)


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML that `load_settings` reads back as they are."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
