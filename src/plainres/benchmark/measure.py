"""How fast training is on this machine, against a bare loop and a DataLoader, and how long a study would take.

The three take turns in one process, a window of steps each, so that whatever else the machine does meets all of them.
Where an epoch ends in a window, each evaluates the test set.
"""

import io
import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from plainres.benchmark.baselines import PARTS, BareLoop, DataLoaderBaseline, Loop, evaluate, wait_for
from plainres.config.instantiate import check, description_of, source_of
from plainres.config.schema import AUTO, Config
from plainres.console import bar, duration
from plainres.data.datamodule import ImageBatches
from plainres.errors import InputError, StoppedError
from plainres.launch.preflight import slots
from plainres.processes.forkserver import call_in_processes, forkserver
from plainres.reporting.families import labelled
from plainres.runs.identity import identity
from plainres.runs.provenance import device_name, peak_memory_mib, versions
from plainres.runs.record import Run
from plainres.training.classifier import Classifier
from plainres.training.compilation import pays
from plainres.training.epoch_loop import cuda_graph
from plainres.training.train import train

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

OURS = "plainres"
CONTENDERS = ("bare", OURS, "dataloader")
NAMES = {"bare": "bare loop", OURS: "plainres", "dataloader": "DataLoader"}
WARM_STEPS = 5  # which pay for what is done once
PART_STEPS = 20  # at most, for the parts of a step
WAIT_S = 600  # for the slowest of several processes
PRELOADED = ["plainres.benchmark.measure"]


@dataclass
class Measured:
    """What one network needs on this machine; times in seconds, memory in MiB."""

    network: str
    settings: dict[str, Any]
    device: str
    batch_size: int
    steps: dict[str, int] = field(default_factory=dict)  # of a window of each contender
    multiply_adds: int = 0  # of one image forward
    windows: dict[str, list[float]] = field(default_factory=dict)  # of each contender, a time for each round
    parts: dict[str, float] = field(default_factory=dict)  # of a step of the bare loop
    evaluation: float = 0.0  # of the test set
    peak_memory: float = 0.0  # of training and evaluating as we do
    side_by_side: int = 1  # runs that a sweep has on this machine at a time
    gains: list[float] = field(default_factory=list)  # their images/s together over those of one alone, in each round
    versions: dict[str, str] = field(default_factory=versions)

    def step(self, contender: str) -> float:
        """The median of the seconds per step."""
        return median(self.windows[contender]) / self.steps[contender]

    def ratios(self, contender: str) -> list[float]:
        """Of images per second, ours to another contender's, round by round, sorted."""
        steps = self.steps[OURS] / self.steps[contender]
        return sorted(
            steps * theirs / ours for ours, theirs in zip(self.windows[OURS], self.windows[contender], strict=True)
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
            found = self.ratios(contender)
            spread = f"{found[0]:.3f} .. {found[-1]:.3f}"
            lines.append(
                f"  images/s of plainres / {NAMES[contender]}: {median(found):.3f} ({spread}; {rounds} rounds)"
            )
        shares = ", ".join(f"{name} {self.parts[name] / sum(self.parts.values()):.0%}" for name in PARTS)
        added = 1000 * (self.step(OURS) - self.step("bare"))
        lines.append(f"  a step of the bare loop: {shares}; plainres adds {added:+.2f} ms")
        rate = 6 * self.multiply_adds * self.batch_size / self.step(OURS)  # backward costs twice the forward pass
        lines.append(f"  {rate / 1e9:,.1f} GFLOP/s; evaluation of the test set {self.evaluation:.2f} s")
        lines.append(f"  peak memory {self.peak_memory:,.0f} MiB")
        if self.gains:
            spread = f"{min(self.gains):.2f} .. {max(self.gains):.2f}"
            lines.append(
                f"  {self.side_by_side} runs side by side: {self.gain:.2f} times the images/s of one ({spread})"
            )
        return "\n".join(lines)

    @property
    def gain(self) -> float:
        """By how much more runs side by side get done than one alone."""
        return median(self.gains) if self.gains else 1.0


class _Trials(Callback):
    """Lets the others take their turns in the middle of a training, and ends it after the last round."""

    def __init__(self, config: Config, rounds: int, seconds: float, threads: int, found: Measured) -> None:
        self.config, self.rounds, self.seconds, self.threads, self.found = config, rounds, seconds, threads, found
        self.others: dict[str, Loop] = {}
        self.steps = 0  # since the last look at the clock
        self.round = -1  # before the first: warming up

    def _clock(self) -> float:
        wait_for(self.device)
        return time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to warm up."""
        self.device = pl_module.device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a window, if it is time."""
        self.steps += 1
        if self.round < 0:
            if self.steps == WARM_STEPS - 1:
                self.started = self._clock()
            if self.steps == WARM_STEPS:
                self._prepare(trainer, pl_module, self._clock() - self.started)
                self.round, self.steps, self.started = 0, 0, self._clock()
        elif self.steps == self.found.steps[OURS]:
            self.found.windows.setdefault(OURS, []).append(self._clock() - self.started)
            others = list(self.others)
            for contender in others if self.round % 2 else reversed(others):
                self.found.windows.setdefault(contender, []).append(
                    self._window(contender, self.found.steps[contender])
                )
            self.round += 1
            if self.round == self.rounds:
                raise StoppedError("measured", 0)
            self.steps, self.started = 0, self._clock()

    def _window(self, contender: str, steps: int) -> float:
        """The seconds that another contender takes for a window."""
        if contender == "dataloader":
            torch.set_num_threads(self.threads)
            time.sleep(0.2)  # its workers have something ready, as they do all the time
        started = self._clock()
        self.others[contender].run(steps)
        taken = self._clock() - started
        if contender == "dataloader":
            torch.set_num_threads(self.config.trainer.threads)
            time.sleep(0.2)  # its workers come to rest
        return taken

    def _prepare(self, trainer: pl.Trainer, classifier: pl.LightningModule, step: float) -> None:
        """Choose the window; note what only we have needed so far; warm the others up."""
        steps = max(1, round(self.seconds / step))
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, ImageBatches)
        assert isinstance(classifier, Classifier)
        for _ in range(2):  # the first pays for what is done once
            started = self._clock()
            evaluate(classifier.network, data.test, mixed=self.config.precision == "bf16-mixed")
            self.found.evaluation = self._clock() - started
        self.found.peak_memory = peak_memory_mib(self.config.trainer.accelerator)
        capture = cuda_graph if self.config.trainer.cuda_graph else None
        bare = BareLoop(self.config, data.images, data.source, self.device, capture)
        bare.run(2)
        self.found.parts = bare.parts(min(steps, PART_STEPS))
        self.others = {
            "bare": bare,
            "dataloader": DataLoaderBaseline(self.config, data.images, data.source, self.device),
        }
        for contender in self.others:
            self._window(contender, WARM_STEPS)
        baseline = self._window("dataloader", WARM_STEPS) / WARM_STEPS
        # as long as ours, not as many steps: on a GPU it may be ten times slower
        self.found.steps = {
            OURS: steps,
            "bare": steps,
            "dataloader": max(1, min(steps, round(self.seconds / baseline))),
        }


def _train_endlessly(config: Config, observer: Callback) -> None:
    """Train as `plainres train` does, in a folder that goes away, until the observer has seen enough."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(io.StringIO()):  # without the progress bar
        endless = replace(config.optim, epochs=None, steps=10**9, milestones=[])
        try:
            train(Run.of(replace(config, optim=endless, runs=scratch)), [observer])
        except StoppedError as stop:
            if stop.number:
                raise


def measure(config: Config, network: str, rounds: int, seconds: float, threads: int) -> Measured:
    """Measure one network in this process, which should be a fresh one.

    Args:
        config: of a run on one device, `decided`.
        network: what it is called.
        rounds: windows of each contender.
        seconds: about the length of one of our windows.
        threads: that the DataLoader baseline has.

    Raises:
        InputError: as `train`.
    """
    recipe = config.optim
    settings = {"optim.batch_size": recipe.batch_size, "precision": config.precision}
    settings |= {f"trainer.{key}": value for key, value in asdict(config.trainer).items()}
    settings |= {"dataloader threads": threads}
    found = Measured(network, settings, device_name(config.trainer.accelerator), recipe.batch_size)
    found.multiply_adds = description_of(config, source_of(config)).multiply_adds
    _train_endlessly(config, _Trials(config, rounds, seconds, threads, found))
    return found


def decided(config: Config) -> Config:
    """The configuration with `trainer.compile` true or false, as its own length decides: what is measured has none."""
    if config.trainer.compile != AUTO:
        return config
    source = source_of(config)
    steps = config.optim.length(len(source.load().train) // config.optim.batch_size)
    compile = pays(config, description_of(config, source).multiply_adds, steps)
    return replace(config, trainer=replace(config.trainer, compile=compile))


class _SideBySide(Callback):
    """One of several trainings at a time: in each round the first takes a window alone, then all do together."""

    def __init__(self, number: int, barrier: "Barrier", rounds: int, window: int) -> None:
        self.barrier, self.window = barrier, window
        # the windows in which this one takes part
        self.turns = [number == 0 or together for _ in range(rounds) for together in (False, True)]
        self.times: list[float | None] = []
        self.steps = -WARM_STEPS

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a window, if it is time, and begin the next when all are ready."""
        self.steps += 1
        if self.steps == self.window:
            wait_for(pl_module.device)
            self.times.append(time.perf_counter() - self.started)
        if self.steps in (0, self.window):
            wait_for(pl_module.device)
            self.barrier.wait(WAIT_S)
            while len(self.times) < len(self.turns) and not self.turns[len(self.times)]:
                self.times.append(None)
                self.barrier.wait(WAIT_S)
            if len(self.times) == len(self.turns):
                raise StoppedError("measured", 0)
            self.steps, self.started = 0, time.perf_counter()


def _one_of_several(config: Config, number: int, barrier: "Barrier", rounds: int, window: int) -> list[float | None]:
    """The times of the windows of one of several trainings."""
    observer = _SideBySide(number, barrier, rounds, window)
    try:
        _train_endlessly(replace(config, seed=config.seed + number), observer)
    except BaseException:
        barrier.abort()  # the others need not wait
        raise
    return observer.times


def side_by_side(config: Config, runs: int, rounds: int, window: int) -> list[float]:
    """How much more so many runs get done together than one alone, in each round."""
    context = forkserver(PRELOADED)
    barrier = context.Barrier(runs)
    calls = [(_one_of_several, config, number, barrier, rounds, window) for number in range(runs)]
    found = call_in_processes(context, calls)
    gains = []
    for turn in range(0, 2 * rounds, 2):
        alone, together = (found[0][turn], [times[turn + 1] for times in found])
        gains.append(runs * alone / max(together))
    return gains


def bench(configs: Sequence[Config], rounds: int, seconds: float) -> tuple[list[Measured], str]:
    """Measure each of the networks of a study once; return what was found, and how long the study would take.

    Args:
        configs: of the runs.
        rounds: windows of each contender.
        seconds: about the length of a window of ours.

    Raises:
        InputError: a configuration cannot be carried out, or wants several devices.
        RunFailedError: the training diverged, or ran out of memory.
    """
    threads = torch.get_num_threads()
    groups: dict[str, list[Config]] = {}
    for config in configs:
        if config.trainer.processes > 1:
            raise InputError("plainres bench measures a run on one device: trainer.devices=1 trainer.num_nodes=1")
        check(config)
        like = replace(config, seed=0)
        groups.setdefault(json.dumps([identity(like), asdict(like.trainer)]), []).append(config)
    families = labelled([Run.of(config) for config in configs])
    found, alone, together = [], 0.0, 0.0
    with bar("measuring", "network", len(groups), leave=False) as done:
        for members in groups.values():
            config = members[0]
            model, name = config.model, families[Run.of(config).name][0]
            network = f"{name}, depth {model['depth']}, width {model['width']}, on {config.options['data']}"
            done.set_postfix_str(network)
            source_of(config).prepare()
            config = decided(config)
            (one,) = call_in_processes(forkserver(PRELOADED), [(measure, config, network, rounds, seconds, threads)])
            one.side_by_side = len(slots([Run.of(config)], 1, ""))
            if one.side_by_side > 1:
                one.gains = side_by_side(config, one.side_by_side, rounds, one.steps[OURS])
            found.append(one)
            alone += len(members) * _run_seconds(config, one)
            together += len(members) * _run_seconds(config, one) / one.gain
            done.update()
    return found, _estimate(configs, alone, together)


def _run_seconds(config: Config, found: Measured) -> float:
    """How long a run takes: its steps, the evaluation of the test set after each epoch and of both sets at the end."""
    images = source_of(config).load()
    train, test = len(images.train), len(images.test)
    per_epoch = train // config.optim.batch_size
    steps = config.optim.length(per_epoch)
    evaluations = math.ceil(steps / per_epoch) + 1 + train / test
    window = found.steps[OURS]
    in_windows = window // per_epoch * found.evaluation  # of the whole epochs in a window
    return steps * (found.step(OURS) - in_windows / window) + evaluations * found.evaluation


def _estimate(configs: Sequence[Config], alone: float, together: float) -> str:
    if len(configs) == 1:
        return f"the run: {duration(alone)} of training and evaluation"
    text = f"{len(configs)} runs: {duration(alone)} of training and evaluation one after another"
    return f"{text}, {duration(together)} as a sweep has them, side by side" if together < alone else text
