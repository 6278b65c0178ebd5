"""Measurement of the training speed of plainres, a bare loop and a DataLoader, and estimate of a study's time.

The three contenders take turns in one process, one timing window of steps each, so that other load on the machine
affects all of them. Each evaluates the test set when an epoch ends within a window.
"""

import io
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from plainres.benchmark.baselines import PARTS, BareLoop, DataLoaderBaseline, Loop, evaluate, wait_for
from plainres.config.instantiate import check, description_of, source_of
from plainres.config.schema import Config
from plainres.console import bar, duration, say
from plainres.data.datamodule import ImageBatches
from plainres.data.streamed_split import StreamedSplit
from plainres.errors import InputError, StoppedError
from plainres.launch.preflight import slots
from plainres.launch.speeds import Speed, keep, resolve_compile
from plainres.processes.forkserver import call_in_processes, forkserver
from plainres.reporting.families import labelled
from plainres.runs.identity import identity
from plainres.runs.provenance import device_name, peak_memory_mib, versions
from plainres.runs.record import Run
from plainres.training.classifier import Classifier
from plainres.training.epoch_loop import cuda_graph
from plainres.training.train import train

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

OURS = "plainres"
CONTENDERS = ("bare", OURS, "dataloader")
NAMES = {"bare": "bare loop", OURS: "plainres", "dataloader": "DataLoader"}
WARM_STEPS = 5  # before the first window, because the first steps are slower
PART_STEPS = 20  # maximum number of steps for timing the parts of a step
WAIT_S = 600  # timeout when several processes wait for each other
SETUP_S = 20  # approximate time to start and warm up a network's contenders
PRELOADED = ["plainres.benchmark.measure"]


@dataclass
class Measurement:
    """Measurement of one network on this machine, with times in seconds and memory in MiB."""

    network: str
    settings: dict[str, Any]
    device: str
    batch_size: int
    steps: dict[str, int] = field(default_factory=dict)  # steps in a window of each contender
    multiply_adds: int = 0  # of the forward pass of one image
    windows: dict[str, list[float]] = field(default_factory=dict)  # times of each contender's windows, one per round
    parts: dict[str, float] = field(default_factory=dict)  # times of the parts of a step in the bare loop
    evaluation: float = 0.0  # time to evaluate the test set
    peak_memory: float | None = None  # of training and evaluation by plainres
    side_by_side: int = 1  # concurrent runs in a sweep on this machine
    gains: list[float] = field(default_factory=list)  # images/s of concurrent runs relative to one run, one per round
    versions: dict[str, str] = field(default_factory=versions)

    def step(self, contender: str) -> float:
        """Return the median seconds per step."""
        return median(self.windows[contender]) / self.steps[contender]

    def ratios(self, contender: str) -> list[float]:
        """Return the ratios of images/s of plainres to those of another contender in each round, sorted."""
        steps = self.steps[OURS] / self.steps[contender]
        return sorted(
            steps * other / ours for ours, other in zip(self.windows[OURS], self.windows[contender], strict=True)
        )

    def __str__(self) -> str:
        lines = [self.network, f"  {'':14} {'images/s':>10} {'ms/step':>10}   from .. to"]
        for contender in CONTENDERS:
            times = sorted(1000 * window / self.steps[contender] for window in self.windows[contender])
            rate = self.batch_size / self.step(contender)
            lines.append(
                f"  {NAMES[contender]:14} {rate:10,.0f} {median(times):10.2f}   {times[0]:.2f} .. {times[-1]:.2f}"
            )
        rounds = len(self.windows[OURS])
        for contender in ("bare", "dataloader"):
            ratios = self.ratios(contender)
            spread = f"{ratios[0]:.3f} .. {ratios[-1]:.3f}"
            lines.append(
                f"  images/s of plainres / {NAMES[contender]}: {median(ratios):.3f} ({spread}; {rounds} rounds)"
            )
        shares = ", ".join(f"{name} {100 * self.parts[name] / sum(self.parts.values()):.0f} %" for name in PARTS)
        added = 1000 * (self.step(OURS) - self.step("bare"))
        lines.append(f"  a step of the bare loop: {shares}")
        lines.append(f"  a step of plainres takes {abs(added):.2f} ms {'more' if added >= 0 else 'less'}")
        rate = 6 * self.multiply_adds * self.batch_size / self.step(OURS)  # backward costs twice the forward pass
        lines.append(f"  {rate / 1e9:,.1f} GFLOP/s; evaluation of the test set {self.evaluation:.2f} s")
        if self.peak_memory is not None:
            lines.append(f"  peak memory {self.peak_memory:,.0f} MiB")
        if self.gains:
            spread = f"{min(self.gains):.2f} .. {max(self.gains):.2f}"
            lines.append(
                f"  {self.side_by_side} runs side by side: {self.gain:.2f} times the images/s of one ({spread})"
            )
        return "\n".join(lines)

    @property
    def gain(self) -> float:
        """Median images/s of concurrent runs relative to a single run."""
        return median(self.gains) if self.gains else 1.0


class _Trials(Callback):
    """Callback that lets the baselines take turns with a training run, and stops it after the last round."""

    def __init__(self, config: Config, rounds: int, seconds: float, threads: int, measurement: Measurement) -> None:
        self.config, self.rounds, self.seconds, self.threads = config, rounds, seconds, threads
        self.measurement = measurement
        self.baselines: dict[str, Loop] = {}
        self.steps = 0  # since the beginning of the window
        self.round = -1  # -1 while warming up

    def _clock(self) -> float:
        wait_for(self.device)
        return time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the peak memory of the GPU."""
        self.device = pl_module.device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step. At the end of a window, time a window of each baseline."""
        self.steps += 1
        if self.round < 0:
            if self.steps == WARM_STEPS - 1:
                self.started = self._clock()
            if self.steps == WARM_STEPS:
                self._prepare(trainer, pl_module, self._clock() - self.started)
                self.round, self.steps, self.started = 0, 0, self._clock()
        elif self.steps == self.measurement.steps[OURS]:
            self.measurement.windows.setdefault(OURS, []).append(self._clock() - self.started)
            baselines = list(self.baselines)
            for contender in baselines if self.round % 2 else reversed(baselines):
                self.measurement.windows.setdefault(contender, []).append(
                    self._window(contender, self.measurement.steps[contender])
                )
            self.round += 1
            if self.round == self.rounds:
                raise StoppedError("measured", 0)
            self.steps, self.started = 0, self._clock()

    def _window(self, contender: str, steps: int) -> float:
        """Return the seconds that a baseline takes for the given number of steps."""
        if contender == "dataloader":
            torch.set_num_threads(self.threads)
            time.sleep(0.2)  # until its workers have prefetched batches, as in steady state
        started = self._clock()
        self.baselines[contender].run(steps)
        elapsed = self._clock() - started
        if contender == "dataloader":
            torch.set_num_threads(self.config.trainer.threads)
            time.sleep(0.2)  # until its workers are idle
        return elapsed

    def _prepare(self, trainer: pl.Trainer, classifier: pl.LightningModule, step: float) -> None:
        """Choose the length of a window, record evaluation time and peak memory, and warm up the baselines."""
        steps = max(1, round(self.seconds / step))
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, ImageBatches)
        assert isinstance(classifier, Classifier)
        for _ in range(2):  # the first evaluation is slower
            started = self._clock()
            evaluate(classifier.network, data.test, mixed=self.config.precision == "bf16-mixed")
            self.measurement.evaluation = self._clock() - started
        self.measurement.peak_memory = peak_memory_mib(self.config.trainer.accelerator)
        capture = cuda_graph if self.config.trainer.cuda_graph else None
        bare = BareLoop(self.config, data.images, data.source, self.device, capture)
        bare.run(2)
        self.measurement.parts = bare.parts(min(steps, PART_STEPS))
        self.baselines = {
            "bare": bare,
            "dataloader": DataLoaderBaseline(self.config, data.images, data.source, self.device),
        }
        for contender in self.baselines:
            self._window(contender, WARM_STEPS)
        baseline = self._window("dataloader", WARM_STEPS) / WARM_STEPS
        # windows of equal time, not of equal steps, because on a GPU the DataLoader may be ten times slower
        self.measurement.steps = {
            OURS: steps,
            "bare": steps,
            "dataloader": max(1, min(steps, round(self.seconds / baseline))),
        }


def _train_endlessly(config: Config, observer: Callback) -> None:
    """Train as `plainres train` does, in a temporary folder, until the observer stops the training."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(io.StringIO()):  # hides the progress bar
        endless = replace(config.optim, epochs=None, steps=10**9, milestones=[])
        try:
            train(Run.of(replace(config, optim=endless, runs=scratch)), [observer])
        except StoppedError as stop:
            if stop.number:
                raise


def measure(config: Config, network: str, rounds: int, seconds: float, threads: int) -> Measurement:
    """Measure one network in this process, which should be a fresh one.

    Args:
        config: configuration of a run on one device, after `resolve_compile`.
        network: name of the network.
        rounds: number of windows of each contender.
        seconds: approximate length of a window.
        threads: number of threads of the DataLoader baseline.

    Raises:
        InputError: as `train`.
    """
    recipe = config.optim
    settings = {"optim.batch_size": recipe.batch_size, "precision": config.precision}
    settings |= {f"trainer.{key}": value for key, value in asdict(config.trainer).items()}
    settings |= {"dataloader threads": threads}
    measurement = Measurement(network, settings, device_name(config.trainer.accelerator), recipe.batch_size)
    measurement.multiply_adds = description_of(config, source_of(config)).multiply_adds
    _train_endlessly(config, _Trials(config, rounds, seconds, threads, measurement))
    return measurement


class _SideBySide(Callback):
    """Callback of one of several concurrent runs. In each round the first run trains alone, then all train together."""

    def __init__(self, number: int, barrier: "Barrier", rounds: int, window: int) -> None:
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
            wait_for(pl_module.device)
            self.times.append(time.perf_counter() - self.started)
        if self.steps in (0, self.window):
            wait_for(pl_module.device)
            self.barrier.wait(WAIT_S)
            while len(self.times) < len(self.participates) and not self.participates[len(self.times)]:
                self.times.append(None)
                self.barrier.wait(WAIT_S)
            if len(self.times) == len(self.participates):
                raise StoppedError("measured", 0)
            self.steps, self.started = 0, time.perf_counter()


def _one_of_several(config: Config, number: int, barrier: "Barrier", rounds: int, window: int) -> list[float | None]:
    """Train one of several concurrent runs, and return the times of its windows, None where it did not take part."""
    observer = _SideBySide(number, barrier, rounds, window)
    try:
        _train_endlessly(replace(config, seed=config.seed + number), observer)
    except BaseException:
        barrier.abort()  # so that the other runs do not wait
        raise
    return observer.times


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


def bench(configs: Sequence[Config], rounds: int, seconds: float) -> tuple[list[Measurement], str]:
    """Measure each network of a study once, after printing how long that takes, and keep its speed.

    Args:
        configs: configurations of the runs.
        rounds: number of windows of each contender.
        seconds: approximate length of a window.

    Returns:
        The measurements, and an estimate of the time of the study as text.

    Raises:
        InputError: a configuration is invalid, or needs several devices.
        RunFailedError: the training diverged or ran out of memory.
    """
    threads = torch.get_num_threads()
    groups: dict[str, list[Config]] = {}
    for config in configs:
        if config.trainer.processes > 1:
            raise InputError("plainres bench measures runs on one device; add trainer.devices=1 trainer.num_nodes=1")
        check(config)
        seedless = replace(config, seed=0)
        groups.setdefault(json.dumps([identity(seedless), asdict(seedless.trainer)]), []).append(config)
    families = labelled([Run.of(config) for config in configs])
    networks = []
    for members in groups.values():
        source = source_of(members[0])
        source.prepare()
        if isinstance(source.load().train, StreamedSplit):
            raise InputError(
                "plainres bench measures images that are in memory, but these are decoded while training; use other "
                "data, and measure decoding with experiments/throughput/streaming.py"
            )
        networks.append(resolve_compile(members[0]))  # the measured training is endless, so it cannot decide this
    say(announcement(networks, rounds, seconds))
    measurements, speeds, alone, together = [], [], 0.0, 0.0
    with bar("measuring", "network", len(groups), leave=False) as progress:
        for config, members in zip(networks, groups.values(), strict=True):
            model, name = config.model, families[Run.of(config).name][0]
            network = f"{name}, depth {model['depth']}, width {model['width']}, on {config.options['data']}"
            progress.set_postfix_str(network)
            call = (measure, config, network, rounds, seconds, threads)
            (measurement,) = call_in_processes(forkserver(PRELOADED), [call])
            measurement.side_by_side = _concurrent_runs(config)
            if measurement.side_by_side > 1:
                window = measurement.steps[OURS]
                measurement.gains = side_by_side(config, measurement.side_by_side, rounds, window)
            measurements.append(measurement)
            images = source_of(config).load()
            speed = speed_of(measurement, len(images.train) // config.optim.batch_size)
            speeds.append((config, speed))
            alone += len(members) * speed.seconds(config, images)
            together += len(members) * speed.seconds(config, images) / speed.gain
            progress.update()
    for config, speed in speeds:  # not earlier, since it opens the GPU in this process
        keep(config, speed)
    return measurements, _estimate(configs, alone, together)


def announcement(configs: Sequence[Config], rounds: int, seconds: float) -> str:
    """Say how long the benchmark of some networks takes, in a line.

    Args:
        configs: one configuration for each network, after `resolve_compile`.
        rounds: number of windows of each contender.
        seconds: approximate length of a window.
    """
    windows = [rounds * (len(CONTENDERS) + (2 if _concurrent_runs(config) > 1 else 0)) for config in configs]
    total = sum(windows) * seconds + SETUP_S * len(configs)
    networks = "1 network" if len(configs) == 1 else f"{len(configs)} networks"
    text = f"measuring {networks}, about {duration(total)}: {sum(windows)} timing windows of {seconds:g} s, and setup"
    compiled = any(config.trainer.compile is True for config in configs)
    return f"{text}; torch.compile may add a minute per network" if compiled else text


def _concurrent_runs(config: Config) -> int:
    return len(slots([Run.of(config)], 1, ""))


def speed_of(measurement: Measurement, steps_per_epoch: int) -> Speed:
    """Return the measured speed of plainres, with the evaluations that a window contains apart from its steps."""
    window = measurement.steps[OURS]
    evaluations = window // steps_per_epoch * measurement.evaluation
    step = measurement.step(OURS) - evaluations / window
    today = date.today().isoformat()
    return Speed(step, measurement.evaluation, measurement.side_by_side, measurement.gain, today)


def _estimate(configs: Sequence[Config], alone: float, together: float) -> str:
    if len(configs) == 1:
        return f"the run: {duration(alone)} of training and evaluation"
    text = f"{len(configs)} runs: {duration(alone)} of training and evaluation one after another"
    return f"{text}, {duration(together)} as a sweep with concurrent runs" if together < alone else text
