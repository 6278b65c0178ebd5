"""Warning about steps on the CPU that have become many times slower, as they do when other programs use the cores."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

WINDOW_S = 10  # seconds of steps in a window; a compiler or a browser may take the cores for less
WINDOW_STEPS = 5  # at least, so that two pauses of a suspended process, each in one step, do not move the median
# Sharing cores with as many other programs makes steps twice as slow, a hot or throttled processor up to three times.
# Threads that wait in each operation for one that has lost its core made them 10 to 25 times as slow.
FACTOR = 5


class SlowSteps:
    """Training step that warns once if steps become many times slower than earlier in this attempt.

    The speed is the inverse of a window's median step. Only the forward pass, the backward pass and the optimizer are
    timed: neither waiting for images nor evaluation, probes, saving or compilation before the first step. On a GPU the
    times would be those of launching its kernels, which say nothing.

    Args:
        step: trains on a batch, on the CPU.
        threads: the value of trainer.threads.
        warn: receives the warning, one line.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        step: Callable[[Any], None],
        threads: int,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.step, self.threads, self.warn, self.clock = step, threads, warn, clock
        self.window: list[float] = []  # durations of steps in seconds
        self.total = 0.0  # their sum
        self.fastest = float("inf")  # the smallest median of a window
        self.warned = False

    def __call__(self, batch: Any) -> None:
        """Train on a batch."""
        started = self.clock()
        self.step(batch)
        seconds = self.clock() - started
        self.window.append(seconds)
        self.total += seconds
        if self.total >= WINDOW_S and len(self.window) >= WINDOW_STEPS:
            self._compare(median(self.window))
            self.window, self.total = [], 0.0

    def _compare(self, typical: float) -> None:
        """Compare the median of a window with that of the fastest one."""
        if typical >= FACTOR * self.fastest and not self.warned:
            self.warned = True
            self.warn(warning(1 / typical, 1 / self.fastest, self.threads))
        self.fastest = min(self.fastest, typical)


def warning(now: float, before: float, threads: int) -> str:
    """Return the warning about slow steps.

    Args:
        now: steps/s.
        before: the largest steps/s earlier in this attempt.
        threads: the value of trainer.threads.
    """
    text = f"{now:.3g} steps/s instead of {before:.3g}: other programs probably use the cores"
    if threads == 1:
        return text
    return (
        f"{text}, and with trainer.threads={threads} each step waits for the slowest thread; to continue from here "
        "with one thread, press Ctrl-C and repeat the command with trainer.threads=1 (rounding changes then, so that a "
        "report does not compare the run with others)"
    )
