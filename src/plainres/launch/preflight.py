"""What a sweep must know before it begins: whether every run can be trained, what each costs, where there is room."""

from collections.abc import Sequence

import joblib

from plainres.config.schema import AUTO
from plainres.errors import InputError
from plainres.runs.identity import matches
from plainres.runs.record import Run


def preflight(runs: Sequence[Run]) -> tuple[list[float], int]:
    """Check every run before the first one trains: make its network, prepare its data.

    Returns:
        For each run the multiply-adds of its training, which say how long it takes relative to the others; and the
        number of GPUs.

    Raises:
        InputError: a run's configuration cannot be carried out.
        OSError: the data cannot be written, for instance because the disk is full.
    """
    import torch

    from plainres.config.instantiate import check, description_of, source_of

    images: dict[str, int] = {}
    multiply_adds: dict[str, int] = {}
    costs = []
    for run in runs:
        config = run.config
        source = source_of(config)
        data, network = repr(config.data), repr((config.model, config.data))
        if network not in multiply_adds:
            check(config)  # before the data, which may take minutes to come
            multiply_adds[network] = description_of(config, source).multiply_adds
        if data not in images:
            images[data] = len(source.load().train)
        batch_size = config.optim.batch_size
        if batch_size > images[data]:
            raise InputError(f"optim.batch_size is {batch_size}, but there are only {images[data]} training images")
        costs.append(float(multiply_adds[network] * batch_size * config.optim.length(images[data] // batch_size)))
    return costs, torch.cuda.device_count()


def urgency(run: Run) -> int:
    """Return the position of the first of `sweep.priority` that has a run's settings; 0 is the most urgent."""
    priority = run.config.sweep.priority
    return next((i for i, of in enumerate(priority) if matches(run.config, of)), len(priority))


def slots(runs: Sequence[Run], gpus: int, visible: str) -> list[str | None]:
    """Return one slot per concurrent run: its CUDA_VISIBLE_DEVICES, of those `visible`, or None on the CPU.

    Without `sweep.runs_per_device` there are as many on the CPU as its cores allow, and one on each GPU.
    """
    trainers = [run.config.trainer for run in runs]
    wanted = [run.config.sweep.runs_per_device for run in runs if run.config.sweep.runs_per_device != AUTO]
    if all(trainer.accelerator == "cpu" for trainer in trainers):
        threads = max(trainer.threads * trainer.devices for trainer in trainers)
        return [None] * max(wanted or [1, joblib.cpu_count() // threads])
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    each = max(trainer.devices for trainer in trainers)
    groups = [",".join(names[first : first + each]) for first in range(0, len(names) - each + 1, each)]
    return [group for group in groups for _ in range(max(wanted or [1]))]
