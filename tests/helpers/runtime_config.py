"""A configuration that is only asked what it takes of a cluster."""

from typing import Any

from distil_ray.config import Config, parse_config


def config(**runtime: Any) -> Config:
    """One of 12 rows a step, with these keys of ``runtime``."""
    return parse_config(
        {
            "run": {"name": "run"},
            "teacher": {"path": "org/teacher"},
            "data": {"sources": "/text"},
            "optim": {"num_steps": 10, "global_batch_size": 12},
            "runtime": {"data_cpus": 1, **runtime},
        }
    )
