"""What is freed is kept on the processor, and given back elsewhere: the memory of a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

MEASURE = """
import sys, threading
import psutil, torch
from distil_ray.models.host_memory import keep_freed_memory

def work():
    keep_freed_memory(torch.device(sys.argv[1]))
    before = psutil.Process().memory_info().rss
    torch.ones(32 * 2**20)
    print((psutil.Process().memory_info().rss - before) // 2**20)

worker = threading.Thread(target=work)  # as in Ray Train
worker.start()
worker.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize(("device", "expected"), [("cpu", range(120, 140)), ("meta", range(-10, 10))])
def test_128_mebibytes_after_they_are_freed(device, expected):
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}  # as a Ray that is started here sets it
    assert int(subprocess.check_output([sys.executable, "-c", MEASURE, device], env=environment)) in expected
