"""Freed memory of this process, which the C library keeps for the next tensor or returns to the system."""

import ctypes
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters in malloc.h
NEVER = -1  # as a threshold for trimming
LARGEST = (2**30, 2**25)  # bytes; a GiB, or 32 MiB, the documented limit, which some versions of glibc enforce


def keep_freed_memory() -> None:
    """Let this process use freed memory again, on Linux with glibc. Do nothing elsewhere.

    By default glibc returns the memory of a large tensor to the system, and the system fills that of the next one with
    zeros, page by page. In training on the CPU this takes up to a quarter of a step, see
    experiments/throughput/freed_memory.py.
    """
    libc: Any = ctypes.CDLL(None)  # what this process has loaded
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
        for size in LARGEST:
            if libc.mallopt(M_MMAP_THRESHOLD, size):
                break


def return_freed_memory() -> None:
    """Return freed memory to the system, on Linux with glibc. Do nothing elsewhere."""
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
