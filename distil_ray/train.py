"""`python -m distil_ray.train`: the same as `distil-ray train`, as a module that can be run."""

from distil_ray.cli import run_as_module

run_as_module(__name__, "train")
