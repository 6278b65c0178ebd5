"""Freed memory that a process keeps, or returns to the system."""

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")

PROGRAM = '''
import resource, sys
from pathlib import Path
import torch
from plainres.processes.memory import keep_freed_memory, return_freed_memory

def resident():  # MiB
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def faults(sizes):
    """Allocate and free a tensor of each size in MiB; return the number of pages that the system has provided."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in sizes:
        torch.ones(size * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
empty = resident()
growing = range(8, 32)  # since by default glibc may keep what is smaller than before
print(faults(growing), faults(growing), resident() - empty)
return_freed_memory()
print(resident() - empty)
'''


def measured(how: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def test_kept_memory_is_used_again_without_asking_the_system_for_pages() -> None:
    pages = sum(range(8, 32)) * 2**20 / 2**12
    first, *_ = measured("default")
    assert first > pages / 2
    _, second, kept, rest = measured("keep")
    assert second < pages / 100
    assert kept > 30
    assert rest < 10
