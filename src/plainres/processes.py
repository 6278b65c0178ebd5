"""Which of a run's processes this one is, and the process tree of a run on several devices.

A run on several devices of this machine is started as torchrun does it, from a process of its own:

    plainres train -> python -m plainres.agent (torch's elastic agent) -> one `python -m plainres.train` for each device

Nothing of it outlives the command, and nothing of it reaches the next run of a sweep. Under the user's own torchrun, or
srun, `plainres train` is already one of the run's processes.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainres.errors import InputError, LockedError, RunFailedError, StoppedError
from plainres.runs import Run
from plainres.signals import Signals

# what earlier process groups may have left in the environment
LEAKY = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
LEAKY_PREFIXES = ("TORCHELASTIC_", "PL_", "MASTER_PORT", "SLURM_")
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
KILLED = "killed"  # kinds of outcome besides the names of exceptions


@dataclass(frozen=True)
class Place:
    """One of `size` processes of a run, number `rank`, as told by `by`: torchrun, srun, or nobody."""

    rank: int = 0
    size: int = 1
    by: str | None = None


def place() -> Place:
    """This process's place, from its environment."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]), "torchrun")
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Place(int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]), "srun")
    return Place()


def launch(run: Run) -> None:
    """Train a run to its end, in this process, or, on several devices of this machine, in one for each.

    Raises:
        Exception: as `plainres.train.train`; the error of a process of several is on the screen.
    """
    devices, here = run.config.trainer, place()
    if devices.processes == here.size:
        from plainres.train import train  # and with it Lightning, which takes seconds

        train(run)
    elif here.size > 1 or devices.num_nodes > 1:
        count = f"trainer.devices={devices.devices} on trainer.num_nodes={devices.num_nodes}"
        raise InputError(
            f"this is one of {here.size} processes, but {count} needs {devices.processes}; "
            "start a run on several machines with torchrun or srun (see the README)"
        )
    else:
        from plainres.build import source_of

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
    with tempfile.TemporaryDirectory() as scratch, Signals() as signals:
        outcome = Path(scratch) / "outcome.json"
        command = [sys.executable, "-m", "plainres.agent", str(run.folder), str(outcome)]
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
            found: dict[str, Any] = json.loads(outcome.read_text())
        except (OSError, ValueError):
            found = {"kind": KILLED, "message": "its processes were killed"}
    if sent:
        raise StoppedError(f"{run.name} is saved up to step {run.step}; the same command goes on", sent)
    kind, message = found["kind"], str(found["message"])
    if kind == "StoppedError":
        raise StoppedError(message, int(found["number"]))
    known: dict[str, type[Exception]] = {"InputError": InputError, "LockedError": LockedError, "OSError": OSError}
    if kind != "None":
        raise known.get(kind, RunFailedError)(message)


def end_with(parent: int) -> None:
    """End this process when its parent ends, in whatever way: nobody waits for it any more.

    Linux sees to it by itself, also while torch keeps Python's lock, as it does while it waits for the processes of a
    run to meet. On other systems a thread looks twice a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before this
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
