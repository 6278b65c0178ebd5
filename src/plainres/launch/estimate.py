"""Estimate of the time that runs take on this machine, from the speeds that `plainres bench` has measured here."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from plainres.data.sources import AnySplit, Images
from plainres.data.streamed_split import StreamedSplit
from plainres.launch.speeds import Speed, kept, resolve_compile
from plainres.runs.record import Run

EXACT = 2  # up to this number of concurrent runs, the speed of any smaller number was measured, too


@dataclass(frozen=True)
class Estimate:
    """Time of the runs that are left.

    Args:
        seconds: the time until the last one finishes; None if it is not known.
        measured: the day of the oldest measurement that it follows from.
        note: why the time is not known; "" if it is.
        alone: the time that each run needs alone, by its folder, as far as it is known.
    """

    seconds: float | None = None
    measured: str | None = None
    note: str = ""
    alone: Mapping[Path, float] = field(default_factory=dict)


def estimate(
    runs: Sequence[Run], images: Mapping[Path, Images[AnySplit]], at_a_time: int, gpus: int, bench: str
) -> Estimate:
    """Return the time of runs on this machine. It is known only if the speed of each was measured here.

    Args:
        runs: the runs in the order in which they start, each from its newest checkpoint.
        images: the images of each run, by its folder.
        at_a_time: the number of concurrent runs.
        gpus: the number of GPUs.
        bench: the command that measures the speeds.
    """
    speeds: dict[Path, Speed] = {}
    of_networks: dict[str, Speed | None] = {}
    for run in runs:
        if reason := _not_measurable(run, images[run.folder], gpus if at_a_time > 1 else 1):
            return Estimate(note=f"the time is not known: plainres bench measures {reason}")
        network = repr(replace(run.config, seed=0))
        if network not in of_networks:
            of_networks[network] = kept(resolve_compile(run.config))
        if speed := of_networks[network]:
            speeds[run.folder] = speed
    alone = {
        run.folder: speeds[run.folder].seconds(run.config, images[run.folder], run.step)
        for run in runs
        if run.folder in speeds
    }
    if missing := len(runs) - len(speeds):
        which = "this run" if len(runs) == 1 else f"{missing} of the {len(runs)} runs"
        what = f"the speed of {which} was not measured on this machine with these settings; `{bench}` measures it"
        return Estimate(note=f"the time is not known: {what}", alone=alone)
    measured_at_a_time = {speed.at_a_time for speed in speeds.values()}
    if min(at_a_time, len(runs)) > 1 and measured_at_a_time != {at_a_time}:
        measured = " or ".join(map(str, sorted(measured_at_a_time)))
        what = f"{at_a_time} runs train at a time, but {measured} were measured; `{bench}` measures them"
        return Estimate(note=f"the time is not known: {what}", alone=alone)
    rates = [speeds[run.folder].gain / at_a_time for run in runs]
    seconds = makespan([alone[run.folder] for run in runs], rates, at_a_time)
    return Estimate(seconds, min((speed.measured for speed in speeds.values()), default=None), "", alone)


def _not_measurable(run: Run, images: Images[AnySplit], gpus: int) -> str:
    """Return what `plainres bench` measures if that is something else than this run, otherwise an empty string."""
    if run.config.trainer.processes > 1 or (run.config.trainer.accelerator == "gpu" and gpus > 1):
        return "runs on one device"
    return "images that are in memory" if isinstance(images.train, StreamedSplit) else ""


def makespan(alone: Sequence[float], rates: Sequence[float], at_a_time: int) -> float:
    """Return the time until all runs have finished, of which at most `at_a_time` train at any time.

    With more than two at a time it is an upper bound, because fewer concurrent runs may be faster than `rates`.

    Args:
        alone: the time that each run needs alone, in the order in which they start.
        rates: the speed of each run among concurrent ones, relative to its speed alone.
        at_a_time: the number of concurrent runs.
    """
    waiting = deque(zip(alone, rates, strict=True))
    training: list[tuple[float, float]] = []
    now = 0.0
    while waiting or training:
        while waiting and len(training) < at_a_time:
            training.append(waiting.popleft())
        speeds = [1.0] if len(training) == 1 else [rate for _, rate in training]
        passed = min(left / speed for (left, _), speed in zip(training, speeds, strict=True))
        now += passed
        after = [(left - passed * speed, rate) for (left, rate), speed in zip(training, speeds, strict=True)]
        training = [(left, rate) for left, rate in after if left > 1e-9]
    return now
