"""`python -m distil_ray.drain`: the same as `distil-ray drain`, as a module that can be run."""

from distil_ray.cli import run_as_module

run_as_module(__name__, "drain")
