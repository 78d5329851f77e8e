"""`python -m distil_ray.schema [KIND]`: the JSON Schema of configuration files, for editors."""

import argparse
import json
import sys
from functools import partial

from distil_ray.cli import main_of
from distil_ray.config import Config
from distil_ray.config.json_schema import json_schema
from distil_ray.evaluation.protocol import Protocol
from distil_ray.studies.settings import AblationConfig, SearchConfig

_SCHEMAS = {
    "run": partial(json_schema, "Runs, searches and ablations", Config, SearchConfig, AblationConfig),
    "protocol": partial(json_schema, "Protocols of evaluations", Protocol, takes_empty=False),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return main_of("distil_ray.schema", _schema, argv)


def _schema(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distil_ray.schema",
        description="Print the JSON Schema of configuration files, with which editors complete and check them.",
    )
    parser.add_argument(
        "kind",
        nargs="?",
        choices=_SCHEMAS,
        default="run",
        help="run: what --config takes, with the sections of searches and ablations; protocol: what --protocol takes "
        "(default: run)",
    )
    arguments = parser.parse_args(argv)
    print(json.dumps(_SCHEMAS[arguments.kind](), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
