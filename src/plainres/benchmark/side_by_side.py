"""Throughput of concurrent runs, relative to that of a single run."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from plainres.benchmark.loops import wait_for
from plainres.benchmark.trials import WARM_STEPS, Stopwatch, train_endlessly
from plainres.config.schema import Config
from plainres.errors import StoppedError
from plainres.processes.forkserver import call_in_processes, forkserver

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

WAIT_S = 600  # timeout when several processes wait for each other
PRELOADED = ["plainres.benchmark.bench"]  # by the server of all processes of a benchmark


def side_by_side(config: Config, runs: int, rounds: int, window: int) -> list[float]:
    """Return the images/s of concurrent runs relative to those of a single run, in each round."""
    context = forkserver(PRELOADED)
    barrier = context.Barrier(runs)
    calls = [(_one_of_several, config, number, barrier, rounds, window) for number in range(runs)]
    results = call_in_processes(context, calls)
    gains = []
    for window_alone in range(0, 2 * rounds, 2):
        alone, together = (results[0][window_alone], [times[window_alone + 1] for times in results])
        gains.append(runs * alone / max(together))
    return gains


class _SideBySide(Stopwatch):
    """Callback of one of several concurrent runs. In each round the first run trains alone, then all train together."""

    def __init__(self, number: int, barrier: "Barrier", rounds: int, window: int) -> None:
        super().__init__()
        self.barrier, self.window = barrier, window
        # whether this run takes part in each window
        self.participates = [number == 0 or together for _ in range(rounds) for together in (False, True)]
        self.times: list[float | None] = []
        self.steps = -WARM_STEPS

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step. At the end of a window, record its time and wait for the other runs."""
        self.steps += 1
        if self.steps == self.window:
            self.times.append(self.clock() - self.started)
        if self.steps in (0, self.window):
            wait_for(self.device)
            self.barrier.wait(WAIT_S)
            while len(self.times) < len(self.participates) and not self.participates[len(self.times)]:
                self.times.append(None)
                self.barrier.wait(WAIT_S)
            if len(self.times) == len(self.participates):
                raise StoppedError("measured", 0)
            self.steps, self.started = 0, self.clock()


def _one_of_several(config: Config, number: int, barrier: "Barrier", rounds: int, window: int) -> list[float | None]:
    """Train one of several concurrent runs, and return the times of its windows, None where it did not take part."""
    observer = _SideBySide(number, barrier, rounds, window)
    try:
        train_endlessly(replace(config, seed=config.seed + number), observer)
    except BaseException:
        barrier.abort()  # so that the other runs do not wait
        raise
    return observer.times
