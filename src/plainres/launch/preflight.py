"""Checks before a sweep starts, and its schedule: costs, priorities and slots."""

import os
from collections.abc import Sequence

import joblib

from plainres.config.schema import AUTO
from plainres.errors import InputError
from plainres.processes.world import World
from plainres.runs.agreement import check_code, check_data, data_of
from plainres.runs.identity import matches, settings
from plainres.runs.record import Run
from plainres.tracking.wandb_agent import check_single


def check_settings(runs: Sequence[Run], *, here: bool = True) -> None:
    """Check the configurations and folders of runs to train, without their images.

    Args:
        runs: the runs to train.
        here: whether this machine trains them; otherwise its devices are not checked.

    Raises:
        InputError: a configuration is invalid or does not fit this machine and its processes, or a folder cannot be
            written or contains another run.
    """
    from plainres.config.instantiate import check

    for run in runs:
        if here:
            check_processes(run)
        run.check_configuration()
        check_writable(run)
    checked = {repr((run.config.model, run.config.data, run.config.trainer, run.config.probes)): run for run in runs}
    for run in checked.values():
        check(run.config, devices=here)


def check_processes(run: Run) -> None:
    """Check that this command can train a run: alone, as one of its processes, or by starting processes here.

    Raises:
        InputError: this process belongs to a group whose world size does not fit the configuration, or the run needs
            several machines.
    """
    devices, world = run.config.trainer, World.current()
    needed = f"trainer.devices={devices.devices} and trainer.num_nodes={devices.num_nodes} need {devices.processes}"
    if world.size not in (1, devices.processes):
        raise InputError(f"{needed} processes, but {world}")
    if world.size == 1 and devices.num_nodes > 1:
        raise InputError(f"{needed}; start a run on several machines with torchrun or srun (see docs/resuming.md)")


def check_alone() -> None:
    """Check that this process can start a sweep, which neither one process of a group nor a child of an agent can.

    Raises:
        InputError: the process belongs to a group, or an agent of W&B has started it.
    """
    check_single()
    world = World.current()
    if world.size > 1:
        raise InputError(f"a sweep starts in one process, but {world}")


def check_unchanged(runs: Sequence[Run]) -> None:
    """Compare images and classes at hand with those that the runs were trained with, as far as these have started.

    Raises:
        InputError: the images or a class of the user have changed, or the images cannot be read.
    """
    for run in runs:
        check_code(run)
    digests: dict[str, str] = {}
    for run in runs:
        if run.data_sha256 is None:
            continue
        data = repr(run.config.data)
        if data not in digests:
            from plainres.config.instantiate import source_of

            digests[data] = source_of(run.config).load().sha256()
        check_data(run, digests[data])


def check_writable(run: Run) -> None:
    """Check that the folder of a run exists, or can be made, without making it.

    Raises:
        InputError: it cannot be written.
    """
    existing = next(each for each in (run.folder, *run.folder.parents) if os.access(each, os.F_OK))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "Permission denied" if existing.is_dir() else f"{existing} is not a folder"
        raise InputError(f"cannot write the run's folder {run.folder}: {reason}; set runs=FOLDER")


def preflight_jobs(runs: Sequence[Run], missing: Sequence[Run]) -> None:
    """Check what can be checked here of runs that train in jobs, which may run on other machines.

    The jobs compare the images themselves, since these may be at hand only there.

    Args:
        runs: all runs.
        missing: the runs to train.

    Raises:
        InputError: as `check_settings`, or a class of the user or the images of a finished run have changed.
    """
    moved = [run for run in runs if run.finished and data_of(Run.read(run.folder).config) != data_of(run.config)]
    check_unchanged(moved)
    for run in runs:
        check_code(run)
    check_settings(missing, here=False)


def preflight(runs: Sequence[Run], finished: Sequence[Run] = ()) -> tuple[list[float], int]:
    """Build every network and prepare all data, so that mistakes surface before the first run trains.

    Args:
        runs: the runs to train.
        finished: other runs, whose images are compared with their records as well.

    Returns:
        costs: the multiply-adds of each run's training, an estimate of its relative duration.
        gpus: the number of GPUs.

    Raises:
        InputError: as `check_settings` and `check_unchanged`, or there are fewer images than a batch has.
        OSError: the data cannot be written, for instance because the disk is full.
    """
    import torch

    from plainres.config.instantiate import description_of, source_of
    from plainres.data.batches import batches_per_epoch

    check_settings(runs)  # before loading the data, which may take minutes
    images: dict[str, int] = {}
    multiply_adds: dict[str, int] = {}
    costs = []
    for run in runs:
        config = run.config
        source = source_of(config)
        data, network = repr(config.data), repr((config.model, config.data))
        if network not in multiply_adds:
            multiply_adds[network] = description_of(config, source).multiply_adds
        if data not in images:
            images[data] = len(source.load().train)
        batch_size = config.optim.batch_size
        steps = config.optim.length(batches_per_epoch(images[data], batch_size))
        costs.append(float(multiply_adds[network] * batch_size * steps))
    check_unchanged([*runs, *finished])
    return costs, torch.cuda.device_count()


def urgency(run: Run) -> int:
    """Return the index of the first entry of `sweep.priority` that matches a run; 0 is the most urgent."""
    priority = run.config.sweep.priority
    return next((i for i, entry in enumerate(priority) if matches(run.config, entry)), len(priority))


def in_order(costs: Sequence[float], runs: Sequence[Run]) -> list[tuple[float, Run]]:
    """Return the runs of a sweep with their costs; the last one starts first: by `sweep.priority`, then by cost."""
    return sorted(zip(costs, runs, strict=True), key=lambda pair: (-urgency(pair[1]), pair[0]))


def check_priority(runs: Sequence[Run]) -> None:
    """Check that at least one run has each key of `sweep.priority`.

    Raises:
        InputError: no run has one of the keys, which would otherwise be ignored silently.
    """
    known = {key for run in runs for key in settings(run.config)}
    for key in {key for run in runs for entry in run.config.sweep.priority for key in entry} - known:
        raise InputError(f"sweep.priority names {key}, which no run has; use settings such as seed or model.depth")


def slots(runs: Sequence[Run], gpus: int, visible: str) -> list[str | None]:
    """Return one slot per concurrent run: its CUDA_VISIBLE_DEVICES, or None on the CPU.

    By default there are as many slots on the CPU as its cores allow, and one per GPU, or per group of
    `trainer.devices` GPUs. `sweep.runs_per_device` overrides these numbers.

    Args:
        runs: the runs to train.
        gpus: the number of GPUs that torch sees.
        visible: the CUDA_VISIBLE_DEVICES of this process, or an empty string.
    """
    trainers = [run.config.trainer for run in runs]
    requested = [run.config.sweep.runs_per_device for run in runs if run.config.sweep.runs_per_device != AUTO]
    if all(trainer.accelerator == "cpu" for trainer in trainers):
        threads = max(trainer.threads * trainer.devices for trainer in trainers)
        return [None] * max(requested or [1, joblib.cpu_count() // threads])
    if all(trainer.accelerator != "gpu" for trainer in trainers):  # Apple's single GPU, which torch does not number
        return [None] * max(requested or [1])
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    size = max(trainer.devices for trainer in trainers)
    groups = [",".join(names[first : first + size]) for first in range(0, len(names) - size + 1, size)]
    return [group for group in groups for _ in range(max(requested or [1]))]
