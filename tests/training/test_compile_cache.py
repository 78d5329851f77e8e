"""What was compiled once is not compiled again after a restart, and a file that does not fit is no error."""

import os
import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.compiler._cache import CacheArtifactManager
from training_parts import CPU, small_config, small_pair, train, weights_of

from distil_ray.runs.storage import COMPILED_FILE, RunFolder
from distil_ray.training.compile_cache import CompileCache
from distil_ray.training.learner import Learner


def start(folder):
    """Do an update as after a start on a machine that has compiled nothing; the weights, and what was compiled."""
    torch.compiler.reset()
    CacheArtifactManager.clear()
    counters.clear()
    config = small_config(runtime__compile=True)
    with fresh_cache():
        cache = CompileCache(folder, is_active=True, is_main=True)
        cache.load()
        learner = Learner(config, *small_pair(num_layers=1), CPU, "fp32")
        train(learner, config, range(1))
        cache.save()
    found = counters["inductor"]
    return weights_of(learner), found["fxgraph_cache_miss"], found["fxgraph_cache_hit"]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler")
def test_a_restart_compiles_nothing(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    weights, num_compiled, _ = start(folder)
    assert num_compiled > 0
    restarted, num_compiled, num_loaded = start(folder)
    assert (num_compiled, num_loaded > 0) == (0, True)
    assert all(torch.equal(restarted[name], weight) for name, weight in weights.items())


def test_a_damaged_file_is_passed_over(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    folder.write_bytes(COMPILED_FILE, b"damaged")
    CompileCache(folder, is_active=True, is_main=True).load()


@pytest.mark.parametrize(("is_active", "is_main", "expected"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_one_worker_writes_once(tmp_path, monkeypatch, is_active, is_main, expected):
    folder, written = RunFolder(str(tmp_path), "run"), []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"made", None))
    monkeypatch.setattr(folder, "write_bytes", lambda name, content: written.append((name, content)))
    cache = CompileCache(folder, is_active=is_active, is_main=is_main)
    cache.load()
    cache.save()
    cache.save()
    assert written == [(COMPILED_FILE, b"made")] * expected
