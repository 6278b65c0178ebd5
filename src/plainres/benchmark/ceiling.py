"""Speed of large matrix products, which no training step exceeds."""

import time

import torch

from plainres.benchmark.loops import wait_for

SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # rows and columns, by device type; larger ones are not faster
REPETITIONS = 5
DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.bfloat16}


def matrix_product_flop_per_s(device: torch.device, precision: str) -> float:
    """Return the floating-point operations per second of the fastest of a few products of square matrices."""
    size = SIZE[device.type]
    a, b = (torch.ones(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    fastest = float("inf")
    for _ in range(REPETITIONS):
        wait_for(device)
        started = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest
