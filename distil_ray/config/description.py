"""The sections -> text for people: every key with its type, default and description."""

import textwrap
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from distil_ray.config.sections import Config, Section, Source, shown


def describe_keys(root: type[Section] = Config) -> str:
    """Return every key with its type, default and description, as text for ``--help``."""
    lines = []
    section = ""
    for key, field in fields(root):
        name, _, rest = key.partition(".")
        if name != section:
            section = name
            lines += ["", f"{section}: {_about(root.model_fields[section], root)}"]
        if not rest:
            continue
        default = "required" if field.is_required() else f"default {shown(field.default)}"
        lines += [
            f"  {section}.{rest}  ({type_text(field.annotation, field.metadata)}; {default})",
            textwrap.indent(field.description or "", "      "),
        ]
    return "\n".join(lines[1:])


def fields(
    section: type[Section] = Config, prefix: str = "", seen: set[type[Section]] | None = None
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key below ``section`` and its field; of a section that occurs several times, the first only."""
    seen = set() if seen is None else seen
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        nested = section_of(field.annotation)
        if prefix or is_mapping(field):
            yield key, field
        if nested is not None and nested not in seen:
            seen.add(nested)
            below = "[]" if nested is Source else ".<name>" if is_mapping(field) else ""
            yield from fields(nested, f"{key}{below}.", seen)


def is_mapping(field: FieldInfo) -> bool:
    """Whether a field holds sections by names that the user gives."""
    return get_origin(field.annotation) is dict and section_of(field.annotation) is not None


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a type is, or that it holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)


def type_text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Put a type and its limits in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return ", or ".join(type_text(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(arguments)
    limits = list(_limits(metadata))
    if origin is tuple and arguments[-1] is Ellipsis:
        return " ".join([*limits, f"list of ({type_text(arguments[0])})"])
    if origin is tuple:
        return f"[{', '.join(type_text(argument) for argument in arguments)}]"
    if origin is dict:
        return "mapping" if Any in arguments else f"mapping of {' to '.join(map(type_text, arguments))}"
    words = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        NoneType: "null",
        Source: "path or mapping",
    }
    word = words.get(annotation, "mapping")
    return " ".join([*limits, word] if annotation is str else [word, " and ".join(limits)]).strip()


def _about(field: FieldInfo, root: type[Section]) -> str | None:
    return field.description if is_mapping(field) else (section_of(field.annotation) or root).__doc__


def _limits(metadata: Iterable[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _limits(item.metadata)
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            limit = getattr(item, name, None)
            if limit is not None:
                yield f"{sign} {limit}"
        if getattr(item, "min_length", None):
            yield "non-empty"
