"""`distil-ray schema [KIND]`: the JSON Schema of configuration files, for editors."""

import argparse
import json
from typing import Any

from distil_ray.cli import main_of, program_of


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return main_of(program_of("schema"), _schema, argv)


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of what ``--config`` takes (``run``) or ``--protocol`` (``protocol``)."""
    # Imported late, so that --help answers at once.
    from distil_ray.config import Config
    from distil_ray.config.json_schema import json_schema
    from distil_ray.evaluation.protocol import Protocol
    from distil_ray.studies.settings import AblationConfig, SearchConfig

    if kind == "protocol":
        return json_schema("Protocols of evaluations", Protocol, takes_empty=False)
    return json_schema("Runs, searches and ablations", Config, SearchConfig, AblationConfig)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=program_of("schema"),
        description="Print the JSON Schema of configuration files, with which editors complete and check them.",
    )
    parser.add_argument(
        "kind",
        nargs="?",
        choices=["run", "protocol"],
        default="run",
        help="run: what --config takes, with the sections of searches and ablations; protocol: what --protocol takes "
        "(default: run)",
    )
    return parser


def _schema(argv: list[str] | None) -> None:
    print(json.dumps(schema_of(make_parser().parse_args(argv).kind), indent=2, ensure_ascii=False))
