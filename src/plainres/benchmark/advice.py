"""Advice on the options that decide a run's speed on this machine: precision, threads and compilation.

Each combination trains a bare loop, and the loops take turns. Combinations of precision and threads come first. Only
the fastest of them is compiled too, because compilation takes up to a minute.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import torch

from plainres.arithmetic import has_bfloat16, set_arithmetic
from plainres.benchmark.loops import BareLoop, Windows, wait_for
from plainres.config.instantiate import source_of
from plainres.config.schema import Config
from plainres.console import aligned, duration
from plainres.data.sources import Images, Source
from plainres.errors import first_line
from plainres.processes.memory import keep_freed_memory
from plainres.training.epoch_loop import cuda_graph

PRECISIONS = ("32-true", "bf16-mixed")  # 64-true is not chosen for its speed
WARM_STEPS = 3
NOTICEABLE = 1.03  # a smaller gain may be noise


@dataclass
class Speedup:
    """Speed of a combination of options relative to the given configuration.

    Args:
        overrides: what the combination changes, as overrides.
        compile: whether it is compiled.
        ratios: images/s relative to the given configuration, one for each round.
        step: the time of a step in seconds, at the machine's speed in the first comparison.
        first: the time of the first step in seconds, with compilation.
    """

    overrides: list[str]
    compile: bool
    ratios: list[float]
    step: float
    first: float

    def seconds(self, steps: int) -> float:
        """Return the time of a run of this number of steps, without evaluation."""
        return self.first + (steps - 1) * self.step


@dataclass
class Advice:
    """Speeds of combinations of options for one run that trains alone.

    Args:
        steps: the length of the run in optimizer steps.
        given: the given configuration.
        others: the other combinations.
        notes: what was not measured, and why.
    """

    steps: int
    given: Speedup
    others: list[Speedup] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fastest(self) -> Speedup:
        """The combination in which the whole run takes least time; the given one unless another gains noticeably."""
        best = min([self.given, *self.others], key=lambda each: each.seconds(self.steps))
        return best if self.given.seconds(self.steps) > NOTICEABLE * best.seconds(self.steps) else self.given

    def __str__(self) -> str:
        best, compiled = self.fastest, next((each for each in self.others if each.compile), None)
        lines = ["  options of one run that trains alone, by images/s relative to the given ones:"]
        rows = [
            [" ".join(each.overrides), f"{median(each.ratios):.2f} ({min(each.ratios):.2f} .. {max(each.ratios):.2f})"]
            for each in sorted(self.others, key=lambda each: -median(each.ratios))
        ]
        lines += aligned(rows, indent="    ") if rows else []
        if compiled:
            first = duration(compiled.first)
            lines.append(f"  compilation took {first} (longer if torch has not cached it), and {self._pays(compiled)}")
        keep = best is self.given
        lines.append("  advice: keep the given options" if keep else f"  advice: add {' '.join(best.overrides)}")
        if any(override.startswith("precision") for override in best.overrides):
            lines.append("  another precision makes it another run; docs/speed.md says when bf16-mixed is safe")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def _pays(self, compiled: Speedup) -> str:
        """Say from how many steps a run is faster compiled than in the fastest way without compilation."""
        eager = min((each for each in (self.given, *self.others) if not each.compile), key=lambda each: each.step)
        if eager.step <= compiled.step:
            return "does not pay"
        return f"pays from {math.ceil((compiled.first - eager.first) / (eager.step - compiled.step)):,} steps"


class _Loop:
    """Bare loop with some options, and its speed.

    Args:
        config: configuration with these options.
        given: the given configuration.
        images: images of the run.
        source: source of these images.
    """

    def __init__(self, config: Config, given: Config, images: Images, source: Source) -> None:
        self.config, self.overrides = config, _overrides(config, given)
        self.device = torch.device(config.trainer.device_type)
        capture = cuda_graph if config.trainer.cuda_graph else None
        self.loop = BareLoop(config, images, source, self.device, capture)
        self.first = self.window(1)
        self.window(WARM_STEPS)

    def window(self, steps: int) -> float:
        """Take steps, and return the seconds per step."""
        torch.set_num_threads(self.config.trainer.threads)
        wait_for(self.device)
        started = time.perf_counter()
        self.loop.run(steps)
        wait_for(self.device)
        return (time.perf_counter() - started) / steps


def advise(config: Config, windows: Windows, cores: int) -> Advice:
    """Measure combinations of options in this process, which should be a fresh one.

    Args:
        config: configuration of a run on one device, after `resolve_compile`.
        windows: number and length of the timing windows.
        cores: the largest number of threads.
    """
    set_arithmetic(config.trainer.threads)
    keep_freed_memory()
    source = source_of(config)
    images = source.load()
    device = config.trainer.device_type
    numbers = sorted({1, cores, config.trainer.threads}) if device == "cpu" else [config.trainer.threads]
    precisions, notes = [config.precision], []
    if config.precision in PRECISIONS:
        if has_bfloat16(device):
            precisions = list(PRECISIONS)
        else:
            notes.append(
                f"this {'CPU' if device == 'cpu' else 'GPU'} lacks bfloat16 arithmetic; bf16-mixed is left out"
            )
    eager = [
        _Loop(with_options(config, precision, threads, compile=False), config, images, source)
        for precision in precisions
        for threads in numbers
    ]
    given = next((loop for loop in eager if not loop.overrides), None) or _Loop(config, config, images, source)
    loops = [given, *(loop for loop in eager if loop is not given)]
    speedups = _compare(loops, windows)
    best = min(eager, key=lambda loop: speedups[loops.index(loop)].step)
    compiled = with_options(config, best.config.precision, best.config.trainer.threads, compile=True)
    if compiled != config:
        try:
            loop = _Loop(compiled, config, images, source)
        except Exception as error:  # for instance, there is no C++ compiler
            notes.append(f"torch.compile failed ({type(error).__name__}: {first_line(error)})")
        else:
            _, measured = _compare([given, loop], windows)
            # the machine's speed may have changed since the first comparison
            speedups.append(replace(measured, step=speedups[0].step / median(measured.ratios)))
    steps = config.optim.length(len(images.train) // config.optim.batch_size)
    return Advice(steps, speedups[0], speedups[1:], notes)


def with_options(config: Config, precision: str, threads: int, *, compile: bool) -> Config:
    """Return a configuration with other options."""
    return replace(config, precision=precision, trainer=replace(config.trainer, threads=threads, compile=compile))


def _overrides(config: Config, given: Config) -> list[str]:
    """Return the overrides that change one configuration to another."""
    pairs = {
        "precision": (given.precision, config.precision),
        "trainer.threads": (given.trainer.threads, config.trainer.threads),
        "trainer.compile": (given.trainer.compile, config.trainer.compile),
    }
    return [f"{key}={str(after).lower()}" for key, (before, after) in pairs.items() if before != after]


def _compare(loops: Sequence[_Loop], windows: Windows) -> list[Speedup]:
    """Let loops take turns, and return the speed of each relative to the first."""
    lengths = [max(1, round(windows.seconds / loop.window(WARM_STEPS))) for loop in loops]
    rounds = [[loop.window(steps) for loop, steps in zip(loops, lengths, strict=True)] for _ in range(windows.rounds)]
    return [
        Speedup(
            loop.overrides,
            loop.config.trainer.compile is True,
            [times[0] / times[number] for times in rounds],
            median(times[number] for times in rounds),
            loop.first,
        )
        for number, loop in enumerate(loops)
    ]
