"""Freed memory that a process keeps, or returns to the system."""

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")

PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from plainres.processes.memory import keep_freed_memory, return_freed_memory

def resident():  # MiB
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def faults(repetitions):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repetitions):
        tensors = [torch.ones(2**21) for _ in range(8)]  # 64 MiB
        del tensors
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / repetitions

if sys.argv[1] == "keep":
    keep_freed_memory()
empty = resident()
faults(2)
print(faults(50), resident() - empty)
return_freed_memory()
print(resident() - empty)
"""


def measured(how: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def test_kept_memory_is_used_again_without_asking_the_system_for_pages() -> None:
    pages = 64 * 2**20 / 2**12
    faults, _, _ = measured("default")
    assert faults > pages / 10
    faults, kept, rest = measured("keep")
    assert faults < pages / 100
    assert kept > 50
    assert rest < 10
