"""Rank and world size of this process, its parent, and its SLURM job."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from plainres.errors import InputError, StoppedError

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclass(frozen=True)
class World:
    """Position of this process among the processes of a run.

    Attributes:
        rank: the rank of this process, from 0.
        size: the world size.
        launcher: "torchrun", "srun", or None in a single process.
    """

    rank: int = 0
    size: int = 1
    launcher: str | None = None

    @classmethod
    def current(cls) -> "World":
        """Return the world that this process's environment describes.

        Raises:
            InputError: a variable of the launcher is missing, or is not a number.
        """
        environment = os.environ
        if "TORCHELASTIC_RUN_ID" in environment:
            return cls(_number("RANK", "torchrun"), _number("WORLD_SIZE", "torchrun"), "torchrun")
        if "SLURM_STEP_NUM_TASKS" in environment and (size := _number("SLURM_STEP_NUM_TASKS", "srun")) > 1:
            return cls(_number("SLURM_PROCID", "srun"), size, "srun")
        return cls()

    def __str__(self) -> str:
        """Describe the process group, and how to leave it."""
        name = "TORCHELASTIC_RUN_ID" if self.launcher == "torchrun" else "SLURM_STEP_NUM_TASKS"
        return (
            f"this process is one of {self.size} that {self.launcher} has started, according to {name}; if it is not, "
            f"prefix the command with `env -u {name}`"
        )


def _number(variable: str, launcher: str) -> int:
    """Return the value of an environment variable that a launcher sets."""
    value = os.environ.get(variable, "")
    if not value.isdecimal():
        marker = "TORCHELASTIC_RUN_ID" if launcher == "torchrun" else "SLURM_STEP_NUM_TASKS"
        raise InputError(
            f"the environment has {marker}, as if {launcher} had started this process, but {variable} is "
            f"{value or 'missing'!r}; if it did not, prefix the command with `env -u {marker}`"
        )
    return int(value)


def exit_with_parent(parent: int) -> None:
    """Make this process exit when its parent exits or is killed.

    On Linux the kernel kills it, even while torch holds the GIL in a collective operation. Elsewhere a thread polls
    twice a second.

    Args:
        parent: the process id of the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent exited before prctl took effect
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def requeue(stop: StoppedError) -> None:
    """Requeue this SLURM job, so that it resumes later, if the time limit stopped it.

    SIGUSR1 announces the time limit (`#SBATCH --signal=USR1@120`, or the launcher's equivalent). SIGTERM means that the
    job was cancelled or preempted; SLURM requeues preempted jobs itself. Outside a SLURM job this does nothing.
    """
    environment = os.environ
    if (
        stop.number != signal.SIGUSR1
        or "SLURM_JOB_ID" not in environment
        or environment.get("SLURM_PROCID", "0") != "0"
    ):
        return
    array = environment.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]
    try:
        requeued = subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except OSError:  # there is no scontrol on this machine
        requeued = False
    outcome = "is back in the queue" if requeued else "could not be requeued; submit it again to resume"
    print(f"plainres: SLURM job {job} {outcome}", file=sys.stderr)
