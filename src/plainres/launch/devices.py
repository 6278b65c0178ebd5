"""One run on the devices of this machine: in this process, or in a process for each device.

A run on several devices is started as torchrun does it, in a fresh process tree:

    plainres train -> python -m plainres.launch.agent -> python -m plainres.launch.worker, one for each device

The agent is torch's elastic one. No process of the tree outlives the command, and no state of it reaches the next run
of a sweep. Under the user's own torchrun, or srun, `plainres train` is already one of the run's processes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plainres.config.schema import Config
from plainres.console import say
from plainres.errors import InputError, LockedError, RunFailedError, StoppedError
from plainres.launch.hints import hints
from plainres.processes.signals import StopSignals
from plainres.processes.world import World
from plainres.runs.record import Run

# what earlier process groups may have left in the environment
LEAKY = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
LEAKY_PREFIXES = ("TORCHELASTIC_", "PL_", "MASTER_PORT", "SLURM_")


def train(run: Run | Config) -> Run:
    """Train one run on the devices of this machine, from its newest checkpoint if it has one.

    Args:
        run: a run, or its configuration. A finished run is left as it is.

    Returns:
        The finished run.

    Raises:
        InputError: the configuration cannot be carried out.
        LockedError: another process trains the run.
        RunFailedError: the run has failed, now or before; `sweep.retry_failed=true` trains it again.
        StoppedError: a signal came; the run is saved.
    """
    run = run if isinstance(run, Run) else Run.of(run)
    if run.finished and run.result:
        return run
    if (reason := run.failure) and not run.config.sweep.retry_failed:
        raise RunFailedError(f"{run.folder} has failed: {reason}; sweep.retry_failed=true tries it again")
    from plainres.config.instantiate import check

    check(run.config)  # before the seconds that the import of Lightning takes
    if World.current().rank == 0:
        for hint in hints([run]):
            say(hint)
    launch(run)
    return Run.of(run.config)


def launch(run: Run) -> None:
    """Train a run to its end, in this process, or, on several devices of this machine, in one for each.

    Raises:
        Exception: as `plainres.training.train.train`; the error of a process of several is on the screen.
    """
    devices, world = run.config.trainer, World.current()
    if devices.processes == world.size:
        from plainres.training.train import train

        train(run)
    elif world.size > 1 or devices.num_nodes > 1:
        count = f"trainer.devices={devices.devices} on trainer.num_nodes={devices.num_nodes}"
        raise InputError(
            f"this is one of {world.size} processes, but {count} needs {devices.processes}; "
            "start a run on several machines with torchrun or srun (see the README)"
        )
    else:
        from plainres.config.instantiate import source_of

        source_of(run.config).prepare()  # once, and not by every process
        run.prepare()
        train_in_processes(run)


def train_in_processes(run: Run) -> None:
    """Train a run on the devices of this machine, in a fresh process for each; wait for its end.

    Raises:
        InputError: what a process finds wrong with what was asked for.
        LockedError: another process trains the run.
        OSError: the disk is full, or its like.
        RunFailedError: a process has failed, or was killed; its error is on the screen.
        StoppedError: a signal came, and was handed on to the processes.
    """
    environment = {k: v for k, v in os.environ.items() if k not in LEAKY and not k.startswith(LEAKY_PREFIXES)}
    environment["OMP_NUM_THREADS"] = str(run.config.trainer.threads)
    with tempfile.TemporaryDirectory() as scratch, StopSignals() as signals:
        outcome = Path(scratch) / "outcome.json"
        command = [sys.executable, "-m", "plainres.launch.agent", str(run.folder), str(outcome)]
        # the agent ends when its standard input does, be it that this process is killed; Ctrl-C is for us to hand on
        agent = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
        signals.deferring, sent = True, 0
        try:
            while agent.poll() is None:
                if signals.received and not sent:
                    sent = signals.received
                    agent.send_signal(sent)
                time.sleep(0.05)
        finally:
            agent.kill()
            agent.communicate()
        try:
            ended: dict[str, Any] = json.loads(outcome.read_text())
        except (OSError, ValueError):
            ended = {"kind": "killed", "message": "its processes were killed"}
    if sent:
        raise StoppedError(f"{run.name} is saved up to step {run.step}; the same command goes on", sent)
    kind, message = ended["kind"], str(ended["message"])
    if kind == "StoppedError":
        raise StoppedError(message, int(ended["number"]))
    known: dict[str, type[Exception]] = {"InputError": InputError, "LockedError": LockedError, "OSError": OSError}
    if kind != "None":
        raise known.get(kind, RunFailedError)(message)
