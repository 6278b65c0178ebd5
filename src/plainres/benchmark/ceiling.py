"""Speed of large matrix products, which no training step exceeds."""

import time
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F

from plainres.benchmark.loops import wait_for

SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # rows and columns, by device type; larger ones are not faster
REPETITIONS = 5
DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.bfloat16}


def matrix_product_flop_per_s(device: torch.device, precision: str) -> float:
    """Return the floating-point operations per second of the fastest of a few products of square matrices.

    On a CPU, oneDNN, which computes the convolutions, multiplies as well. In float32 torch leaves products to MKL,
    which takes twice as long on CPUs of AMD with AVX-512.
    """
    size = SIZE[device.type]
    a, b = (torch.ones(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    fastest = _seconds(lambda: torch.mm(a, b), device)
    if device.type == "cpu" and precision != "64-true" and torch.backends.mkldnn.is_available():
        with torch.inference_mode(), suppress(RuntimeError):  # CPUs without AVX-512 lack its products in bfloat16
            blocked_a, blocked_b = a.to_mkldnn(), b.to_mkldnn()
            fastest = min(fastest, _seconds(lambda: F.linear(blocked_a, blocked_b), device))
    return 2 * size**3 / fastest


def _seconds(multiply: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Return the shortest of a few durations."""
    durations = []
    for _ in range(REPETITIONS):
        wait_for(device)
        started = time.perf_counter()
        multiply()
        wait_for(device)
        durations.append(time.perf_counter() - started)
    return min(durations)
