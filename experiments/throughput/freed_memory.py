"""Speed of training when freed memory is kept (`plainres.processes.memory`), and when glibc returns it to the system.

    python experiments/throughput/freed_memory.py [OVERRIDES] [--steps 10] [--rounds 5]

Each measurement is a bare loop in a process of its own, since the C library's behaviour cannot be undone. The two ways
alternate.
"""

import argparse
import resource
import time
from statistics import median
from typing import NamedTuple

import torch

from plainres.arithmetic import set_arithmetic
from plainres.benchmark.loops import BareLoop
from plainres.config.compose import compose
from plainres.config.instantiate import source_of
from plainres.config.schema import Config
from plainres.processes.forkserver import call_in_processes, forkserver
from plainres.processes.memory import keep_freed_memory
from plainres.runs.provenance import peak_memory_mib

WARM_STEPS = 5


class Measured(NamedTuple):
    """Seconds and page faults per step, and the peak memory of the process in MiB."""

    seconds: float
    faults: float
    memory: float


def measure(config: Config, steps: int, *, keep: bool) -> Measured:
    """Measure training steps in this process, which should be a fresh one."""
    set_arithmetic(config.trainer.threads)
    if keep:
        keep_freed_memory()
    source = source_of(config)
    loop = BareLoop(config, source.load(), source, torch.device("cpu"))
    loop.run(WARM_STEPS)
    faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    loop.run(steps)
    seconds = (time.perf_counter() - started) / steps
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / steps
    return Measured(seconds, faults, peak_memory_mib("cpu") or 0)


def returned(config: Config, steps: int) -> Measured:
    """Measure with the C library's default."""
    return measure(config, steps, keep=False)


def kept(config: Config, steps: int) -> Measured:
    """Measure as plainres trains."""
    return measure(config, steps, keep=True)


def main() -> None:
    """Print both speeds and their ratio."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="steps in a measurement, after 5 others (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way (default: 5)")
    given, overrides = parser.parse_known_args()
    config = compose(overrides)[0]
    context = forkserver(["plainres.benchmark.loops"])
    ways = {returned: [], kept: []}
    for _ in range(given.rounds):
        for way, measured in ways.items():
            measured.extend(call_in_processes(context, [(way, config, given.steps)]))
    for way, measured in ways.items():
        seconds, faults, memory = (median(values) for values in zip(*measured, strict=True))
        print(f"{way.__name__:8} {1000 * seconds:8.1f} ms/step {faults:8.0f} page faults/step {memory:8.0f} MiB")
    ratios = sorted(other.seconds / own.seconds for other, own in zip(ways[returned], ways[kept], strict=True))
    print(f"kept is {median(ratios):.2f} times as fast ({ratios[0]:.2f} .. {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
