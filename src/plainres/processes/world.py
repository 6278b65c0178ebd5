"""The processes of one run: which of them this one is, whose child it is, and whether SLURM started it."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from plainres.errors import StoppedError

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclass(frozen=True)
class World:
    """The `size` processes of a run, of which this one has number `rank`; `launcher` is torchrun, srun or None."""

    rank: int = 0
    size: int = 1
    launcher: str | None = None

    @classmethod
    def current(cls) -> "World":
        """Return the world that this process's environment describes."""
        environment = os.environ
        if "TORCHELASTIC_RUN_ID" in environment:
            return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]), "torchrun")
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return cls(int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]), "srun")
        return cls()


def exit_with_parent(parent: int) -> None:
    """Make this process exit when its parent does, for whatever reason.

    Linux does it even while torch holds Python's lock, as it does while the processes of a run wait for each other.
    Elsewhere a thread checks twice a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it exited before this call
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def requeue(stop: StoppedError) -> None:
    """Put this job back into SLURM's queue, to resume later, if `stop` says that its time is nearly up.

    SIGUSR1 says so (`#SBATCH --signal=USR1@120`, or a launcher's own). After a SIGTERM the job was cancelled, or
    preempted, and then SLURM itself requeues it. Outside of a SLURM job this does nothing.
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
    done = subprocess.run(["scontrol", "requeue", job], check=False)
    outcome = (
        "is back in the queue" if done.returncode == 0 else "could not be put back into the queue: submit it again"
    )
    print(f"plainres: SLURM job {job} {outcome}", file=sys.stderr)
