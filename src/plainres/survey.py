"""What a sweep must know before it begins: what each run costs, what is wrong with it, where it can be trained."""

import multiprocessing.connection
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

import joblib

from plainres.config import AUTO
from plainres.errors import InputError
from plainres.forks import begin
from plainres.runs import Run


def surveyed(context: ForkServerContext, runs: Sequence[Run]) -> tuple[list[float], int]:
    """Multiply-adds for each run, from which follows how long it takes relative to the others; the number of GPUs.

    Found in a process of its own: what it imports and initialises stays there.

    Raises:
        InputError: a run's configuration cannot be carried out.
        OSError: the disk is full, or its like.
    """
    answer, theirs = multiprocessing.connection.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(runs, theirs))
    process.start()
    theirs.close()
    try:
        found = answer.recv()
    except EOFError:
        found = InputError("the process that looks at the networks and the data died: killed, or out of memory")
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _tell(runs: Sequence[Run], answer: "Connection[Any, Any]") -> None:
    begin()
    try:
        answer.send(survey(runs))
    except (InputError, OSError) as error:
        answer.send(error)


def survey(runs: Sequence[Run]) -> tuple[list[float], int]:
    """What `surveyed` returns; all that could be wrong with a run comes up here, before the first one trains.

    Its network is made, its data are prepared.
    """
    import torch

    from plainres.build import check, description_of, source_of

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


def places(runs: Sequence[Run], gpus: int, visible: str) -> list[str | None]:
    """A place for each run that can be trained at a time: the GPUs it sees, of those `visible`, or None on the CPU.

    Without `runs_per_device` a sweep has as many runs on the CPU as its threads allow, and one on each GPU.
    """
    trainers = [run.config.trainer for run in runs]
    wanted = [run.config.runs_per_device for run in runs if run.config.runs_per_device != AUTO]
    if all(trainer.accelerator == "cpu" for trainer in trainers):
        threads = max(trainer.threads * trainer.devices for trainer in trainers)
        return [None] * max(wanted or [1, joblib.cpu_count() // threads])
    names = visible.split(",")[:gpus] if visible else [str(number) for number in range(gpus)]
    each = max(trainer.devices for trainer in trainers)
    groups = [",".join(names[first : first + each]) for first in range(0, len(names) - each + 1, each)]
    return [group for group in groups for _ in range(max(wanted or [1]))]
