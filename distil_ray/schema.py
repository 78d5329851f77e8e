"""`python -m distil_ray.schema`: the same as `distil-ray schema`, as a module that can be run."""

from distil_ray.cli import run_as_module

run_as_module(__name__, "schema")
