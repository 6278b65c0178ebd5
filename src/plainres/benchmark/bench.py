"""`plainres bench`: measures each network of a study, advises, and estimates the time of the study."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from datetime import date
from typing import Any

import joblib
from tqdm import tqdm

from plainres.benchmark.advice import advise
from plainres.benchmark.loops import Windows
from plainres.benchmark.measurement import BARE, CONTENDERS, OURS, Measurement
from plainres.benchmark.side_by_side import PRELOADED, side_by_side
from plainres.benchmark.trials import compilation_s, measure
from plainres.config.instantiate import check, description_of, source_of
from plainres.config.schema import Config
from plainres.console import bar, duration, say
from plainres.data.streamed_split import StreamedSplit
from plainres.errors import InputError
from plainres.launch.estimate import EXACT, makespan
from plainres.launch.preflight import slots
from plainres.launch.speeds import Speed, keep, resolve_compile
from plainres.processes.forkserver import call_in_processes, forkserver
from plainres.reporting.families import labelled
from plainres.runs.identity import identity
from plainres.runs.option_values import neutral
from plainres.runs.record import Run
from plainres.runs.tuning import runs_of

TRIALS, TOGETHER, ADVICE = "trials", "side by side", "advice"  # parts of the measurement of a network
SETUP_S = {TRIALS: 20, TOGETHER: 10, ADVICE: 50}  # approximate time to start and warm up; the advice compiles once
OPTIONS = 6  # approximate number of timing windows in a round of the advice


def bench(configs: Sequence[Config], rounds: int, seconds: float) -> tuple[list[Measurement], str]:
    """Measure each network of a study once, after printing how long that takes, and keep its speed.

    Only the network with the most arithmetic is compared with DataLoader loops, and gets the advice.

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
    windows = Windows(rounds, seconds)
    groups: dict[str, list[Config]] = {}
    runs = runs_of(configs)
    for config in (run.config for run in runs):
        if config.trainer.processes > 1:
            raise InputError("plainres bench measures runs on one device; add trainer.devices=1 trainer.num_nodes=1")
        check(config)
        seedless = neutral(config, config.sweep.tune.option)
        groups.setdefault(json.dumps([identity(seedless), asdict(seedless.trainer)]), []).append(config)
    families = labelled([Run.of(members[0]) for members in groups.values()])
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
    measurements, speeds = [], []
    times: list[
        tuple[float, float]
    ] = []  # of each run: seconds alone, and speed among concurrent ones relative to that
    with bar("measuring", "part", sum(map(len, _parts(networks))), leave=False) as progress:
        for config, members, parts in zip(networks, groups.values(), _parts(networks), strict=True):
            name = families[Run.of(config).name][0]
            measurement = _measure_network(config, name, parts, windows, progress)
            measurements.append(measurement)
            images, speed = source_of(config).load(), speed_of(measurement)
            speeds.append((config, speed))
            times += [(speed.seconds(config, images), speed.gain / speed.at_a_time)] * len(members)
    for config, speed in speeds:  # not earlier, since it opens the GPU in this process
        keep(config, speed)
    return measurements, _estimate(times, {speed.at_a_time for _, speed in speeds})


def _measure_network(
    config: Config, name: str, parts: Mapping[str, int], windows: Windows, progress: "tqdm[Any]"
) -> Measurement:
    """Measure the parts of one network, each in a process of its own.

    Args:
        config: one configuration with this network, after `resolve_compile`.
        name: what distinguishes the network from others, without depth and width.
        parts: the parts to measure, see `_parts`.
        windows: the timing windows.
        progress: advanced by one for each part.
    """
    context, model = forkserver(PRELOADED), config.model
    cores = joblib.cpu_count(only_physical_cores=True)  # torch's number of threads, where no variable limits it
    network = f"{name}, depth {model['depth']}, width {model['width']}, on {config.options['data']}"
    progress.set_postfix_str(network)
    contenders = CONTENDERS if parts[TRIALS] == len(CONTENDERS) else (BARE, OURS)
    (measurement,) = call_in_processes(context, [(measure, config, network, contenders, windows, cores)])
    progress.update()
    if config.trainer.compile is True:
        (measurement.compilation,) = call_in_processes(context, [(compilation_s, config)])
    measurement.side_by_side = _concurrent_runs(config)
    if TOGETHER in parts:
        window = measurement.steps[OURS]
        measurement.gains = side_by_side(config, measurement.side_by_side, windows.rounds, window)
        progress.update()
    if ADVICE in parts:
        (measurement.advice,) = call_in_processes(context, [(advise, config, windows, cores)])
        progress.update()
    return measurement


def _largest(configs: Sequence[Config]) -> Config:
    """Return the configuration with the most arithmetic in a step."""
    return max(configs, key=lambda each: description_of(each, source_of(each)).multiply_adds * each.optim.batch_size)


def _parts(configs: Sequence[Config]) -> list[dict[str, int]]:
    """Return the parts of the measurement of each configuration, with the timing windows in a round of each part."""
    largest, parts = _largest(configs), []
    for config in configs:
        windows = {TRIALS: len(CONTENDERS) if config is largest else 2}
        if _concurrent_runs(config) > 1:
            windows[TOGETHER] = 2
        if config is largest and config.trainer.accelerator != "mps":
            windows[ADVICE] = OPTIONS
        parts.append(windows)
    return parts


def announcement(configs: Sequence[Config], rounds: int, seconds: float) -> str:
    """Say how long the benchmark of some networks takes, in a line.

    Args:
        configs: one configuration for each network, after `resolve_compile`.
        rounds: number of windows of each contender.
        seconds: approximate length of a window.
    """
    parts = [part for each in _parts(configs) for part in each.items()]
    windows = rounds * sum(number for _, number in parts)
    total = windows * seconds + sum(SETUP_S[part] for part, _ in parts)
    networks = "1 network" if len(configs) == 1 else f"{len(configs)} networks"
    text = f"measuring {networks}, about {duration(total)}: {windows} timing windows of {seconds:g} s, and setup"
    compiled = any(config.trainer.compile is True for config in configs)
    return f"{text}; torch.compile may add a minute per network" if compiled else text


def _concurrent_runs(config: Config) -> int:
    return len(slots([Run.of(config)], 1, ""))


def speed_of(measurement: Measurement) -> Speed:
    """Return the measured speed of plainres."""
    return Speed(
        step=measurement.step(OURS),
        evaluation=measurement.evaluation,
        compilation=measurement.compilation,
        at_a_time=measurement.side_by_side,
        gain=measurement.gain,
        measured=date.today().isoformat(),
    )


def _estimate(times: Sequence[tuple[float, float]], at_a_time: Set[int]) -> str:
    """Describe the time of runs one after another and, where each has the same number of concurrent ones, as a sweep.

    Args:
        times: seconds that each run takes alone, and its speed among concurrent ones relative to that.
        at_a_time: numbers of concurrent runs that were measured.
    """
    alone = sum(seconds for seconds, _ in times)
    if len(times) == 1:
        return f"the run: {duration(alone)} of training and evaluation"
    text = f"{len(times)} runs: {duration(alone)} of training and evaluation one after another"
    if len(at_a_time) > 1:
        return text
    (count,) = at_a_time
    seconds, rates = zip(*sorted(times, reverse=True), strict=True)  # a sweep starts the longest run first
    together = makespan(seconds, rates, count)
    most = "at most " if count > EXACT else ""
    return f"{text}, {most}{duration(together)} as a sweep with concurrent runs" if together < alone else text
