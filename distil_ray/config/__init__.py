"""The configuration of a run: what can be set, how it is read, and which settings decide what is learned.

A configuration comes from YAML files and then from dotted `section.key=value` settings, later ones winning
(`load_config`), or from a plain mapping (`parse_config`). Either way all problems are reported at once, in
one `InputError` with one line per problem. What comes out is frozen and complete; nothing rewrites it later.

This package imports neither torch nor Ray, so that `--help` and a mistyped key answer at once.
"""

from distil_ray.config.description import describe_keys
from distil_ray.config.identity import difference, dotted, learned
from distil_ray.config.reading import (
    ConfigError,
    Given,
    dump_yaml,
    load_config,
    load_settings,
    parse_config,
    parse_mapping,
    parse_section,
    parse_sources,
    to_settings,
    to_yaml,
    with_settings,
)
from distil_ray.config.sections import Config, Section, Source, output_path, shown

__all__ = [
    "Config",
    "ConfigError",
    "Given",
    "Section",
    "Source",
    "describe_keys",
    "difference",
    "dotted",
    "dump_yaml",
    "learned",
    "load_config",
    "load_settings",
    "output_path",
    "parse_config",
    "parse_mapping",
    "parse_section",
    "parse_sources",
    "shown",
    "to_settings",
    "to_yaml",
    "with_settings",
]
