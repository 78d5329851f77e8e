"""What is freed is kept: counted in pages that the system had to find, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, threading
import torch
from distil_ray.models.host_memory import keep_freed_memory

def work():
    keep_freed_memory(torch.device(sys.argv[1]))
    for is_warm in (False, True):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(16 * 2**20)  # 64 MiB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

worker = threading.Thread(target=work)  # as in Ray Train
worker.start(), worker.join()
"""
PAGES = 10 * 64 * 2**20 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize(("device", "expected"), [("cpu", (0, PAGES // 100)), ("meta", (PAGES // 2, 2 * PAGES))])
def test_pages_of_what_is_freed_are_found_once_on_the_processor_and_each_time_elsewhere(device, expected):
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}  # as a Ray that is started here sets it
    faults = int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, device], env=environment))
    assert expected[0] <= faults <= expected[1]
