"""The sections -> a JSON Schema, with which editors complete, describe and check the YAML of a configuration.

A file may hold a part of a configuration, as others and the command line give the rest. So no key is required, and
rules across keys are left to the command. Made for draft 7, which every editor's YAML support knows.
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from distil_ray.config.description import section_of
from distil_ray.config.sections import Section

_GROUPED_DIGITS = {"type": "string", "pattern": "^[-+]?[0-9]+(_[0-9]+)+$"}
"""10_000: a number for YAML 1.1 and so for the commands, but text for editors, which read YAML 1.2."""


def json_schema(title: str, *roots: type[Section], takes_empty: bool = True) -> dict[str, Any]:
    """Return the schema of files that hold the top-level keys of ``roots``.

    Args:
        takes_empty: whether a section with nothing below it, which reads as null, means its defaults.
    """
    parts = [root.model_json_schema(schema_generator=_Generator, mode="validation") for root in roots]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        "type": "object",
        "additionalProperties": False,
        "properties": {
            key: _described(schema, section_of(root.model_fields[key].annotation), takes_empty)
            for root, part in zip(roots, parts, strict=True)
            for key, schema in part["properties"].items()
        },
        "$defs": {name: schema for part in parts for name, schema in sorted(part.get("$defs", {}).items())},
    }


def _described(schema: JsonSchemaValue, section: type[Section] | None, takes_empty: bool) -> JsonSchemaValue:
    """The schema of a top-level key: that of a section takes its description from the section's class."""
    if "description" in schema:
        return schema
    assert section is not None
    reference = {"$ref": f"#/$defs/{section.__name__}"}
    is_nullable = takes_empty or {"type": "null"} in schema.get("anyOf", ())
    forms = [reference, {"type": "null"}] if is_nullable else [reference]
    return {"description": section.__doc__, "anyOf": forms}


class _Generator(GenerateJsonSchema):
    """Pydantic's schema with what draft 7 and YAML want, and without titles, which only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _GROUPED_DIGITS]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _GROUPED_DIGITS]}

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        """Of a pair, both have the same type; draft 7 does not know `prefixItems`."""
        made = super().tuple_schema(schema)
        if "prefixItems" in made:
            first, *others = made.pop("prefixItems")
            assert all(other == first for other in others)
            made["items"] = first
        return made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        made.pop("required", None)
        made.pop("title", None)
        return made
