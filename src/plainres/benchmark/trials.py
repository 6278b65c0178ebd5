"""Trials in which plainres and a bare loop, in one process, and DataLoader loops take turns.

Each has one timing window of steps in each round, so that other load on the machine affects all of them. Nothing is
evaluated within a window.
"""

import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from plainres.arithmetic import set_arithmetic
from plainres.benchmark.ceiling import matrix_product_flop_per_s
from plainres.benchmark.loops import BareLoop, Loop, Windows, evaluate, wait_for
from plainres.benchmark.measurement import BARE, DATALOADERS, OURS, Measurement
from plainres.benchmark.remote import RemoteLoop
from plainres.config.instantiate import description_of, source_of
from plainres.config.schema import Config, Loggers
from plainres.data.datamodule import ImageBatches
from plainres.errors import StoppedError
from plainres.runs.provenance import device_name, peak_memory_mib
from plainres.runs.record import Run
from plainres.training.classifier import Classifier
from plainres.training.epoch_loop import cuda_graph
from plainres.training.train import train

WARM_STEPS = 5  # before the first window, because the first steps are slower
PART_STEPS = 20  # maximum number of steps for timing the parts of a step


def measure(config: Config, network: str, contenders: Sequence[str], windows: Windows, threads: int) -> Measurement:
    """Measure one network in this process, which should be a fresh one.

    Args:
        config: configuration of a run on one device, after `resolve_compile`.
        network: name of the network.
        contenders: which of `CONTENDERS` take part; plainres and the bare loop always do.
        windows: number and length of the timing windows.
        threads: torch's default number of threads, which a DataLoader loop has as it is often written.

    Raises:
        InputError: as `train`.
    """
    loops = {name: RemoteLoop(config, style, threads) for name, style in DATALOADERS.items() if name in contenders}
    recipe = config.optim
    settings = {"optim.batch_size": recipe.batch_size, "precision": config.precision}
    settings |= {f"trainer.{key}": value for key, value in asdict(config.trainer).items()}
    settings |= {"dataloader threads": threads}
    measurement = Measurement(network, settings, device_name(config.trainer.accelerator), recipe.batch_size)
    measurement.multiply_adds = description_of(config, source_of(config)).multiply_adds
    try:
        train_endlessly(config, _Trials(config, loops, windows, measurement))
    finally:
        for loop in loops.values():
            loop.close()
    return measurement


def compilation_s(config: Config) -> float:
    """Return the time in seconds that compilation takes in this process, which should be a fresh one.

    The network has been compiled on this machine before, so that torch's cache on the disk is filled.
    """
    source, device = source_of(config), torch.device(config.trainer.device_type)
    set_arithmetic(config.trainer.threads)
    loop = BareLoop(config, source.load(), source, device, cuda_graph if config.trainer.cuda_graph else None)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        loop.run(1)
        wait_for(device)
        times.append(time.perf_counter() - started)
    first, second = times
    return max(0.0, first - second)


def train_endlessly(config: Config, observer: Callback) -> None:
    """Train as `plainres train` does, in a temporary folder and without W&B, until the observer stops the training."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(io.StringIO()):  # hides the progress bar
        endless = replace(config.optim, epochs=None, steps=10**9, milestones=[])
        try:
            train(Run.of(replace(config, optim=endless, runs=scratch, logger=Loggers())), [observer])
        except StoppedError as stop:
            if stop.number:
                raise


class Stopwatch(Callback):
    """Callback with a clock that stands still during evaluations."""

    def __init__(self) -> None:
        self.started = self.evaluating_since = 0.0
        self.device = torch.device("cpu")

    def clock(self) -> float:
        """Return the time when all queued work is done."""
        wait_for(self.device)
        return time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn the device."""
        self.device = pl_module.device

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.evaluating_since = self.clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again, as if no time had passed."""
        self.started += self.clock() - self.evaluating_since


class _Trials(Stopwatch):
    """Callback that lets the other contenders take turns with a training run, and stops it after the last round."""

    def __init__(
        self,
        config: Config,
        dataloaders: Mapping[str, Loop],
        windows: Windows,
        measurement: Measurement,
    ) -> None:
        super().__init__()
        self.config, self.dataloaders, self.windows = config, dataloaders, windows
        self.measurement = measurement
        self.others: dict[str, Loop] = {}
        self.steps = 0  # since the beginning of the window
        self.round = -1  # -1 while warming up

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the peak memory of the GPU."""
        super().on_train_start(trainer, pl_module)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step. At the end of a window, time a window of each other contender."""
        self.steps += 1
        if self.round < 0:
            if self.steps == WARM_STEPS - 1:
                self.started = self.clock()
            if self.steps == WARM_STEPS:
                self._prepare(trainer, pl_module, self.clock() - self.started)
                self.round, self.steps, self.started = 0, 0, self.clock()
        elif self.steps == self.measurement.steps[OURS]:
            self.measurement.windows.setdefault(OURS, []).append(self.clock() - self.started)
            others = list(self.others)
            for contender in others if self.round % 2 else reversed(others):
                self.measurement.windows.setdefault(contender, []).append(
                    self._window(contender, self.measurement.steps[contender])
                )
            self.measurement.ceiling.append(matrix_product_flop_per_s(self.device, self.config.precision))
            self.round += 1
            if self.round == self.windows.rounds:
                raise StoppedError("measured", 0)
            self.steps, self.started = 0, self.clock()

    def _window(self, contender: str, steps: int) -> float:
        """Return the seconds that a contender takes for the given number of steps."""
        loop = self.others[contender]
        if contender in self.dataloaders:
            time.sleep(0.2)  # until its workers have prefetched batches, as in steady state
        started = self.clock()
        loop.run(steps)
        elapsed = self.clock() - started
        if contender in self.dataloaders:
            time.sleep(0.2)  # until its workers are idle
        return elapsed

    def _prepare(self, trainer: pl.Trainer, classifier: pl.LightningModule, step: float) -> None:
        """Record evaluation and peak memory, warm up the contenders, and choose the lengths of windows."""
        steps = max(1, round(self.windows.seconds / step))
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, ImageBatches)
        assert isinstance(classifier, Classifier)
        for _ in range(2):  # the first evaluation is slower
            started = self.clock()
            evaluate(classifier.network, data.test, mixed=self.config.precision == "bf16-mixed")
            self.measurement.evaluation = self.clock() - started
        self.measurement.peak_memory = peak_memory_mib(self.config.trainer.accelerator)
        capture = cuda_graph if self.config.trainer.cuda_graph else None
        bare = BareLoop(self.config, data.images, data.source, self.device, capture)
        bare.run(2)
        self.measurement.parts = bare.parts(min(steps, PART_STEPS))
        self.others = {BARE: bare}
        self.measurement.steps = {OURS: steps, BARE: steps}
        for contender, loop in self.dataloaders.items():
            self.others[contender] = loop
            self._window(contender, WARM_STEPS)
            # windows of equal time, not of equal steps, because on a GPU the DataLoader may be ten times slower
            own = self._window(contender, WARM_STEPS) / WARM_STEPS
            self.measurement.steps[contender] = max(1, min(steps, round(self.windows.seconds / own)))
