"""What a job does about the end of its time on a SLURM cluster."""

import os
import signal
import subprocess
import sys

from plainres.errors import StoppedError


def requeue(stop: StoppedError) -> None:
    """Put this job back into SLURM's queue, where it goes on by itself, if `stop` says that its time is up.

    Of the signals, SIGUSR1 means that (`#SBATCH --signal=USR1@120`, or a launcher's own): after a SIGTERM the job was
    cancelled, or preempted, and then SLURM itself puts it back. Outside of a SLURM job nothing happens.
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
    said = "is back in the queue" if done.returncode == 0 else "could not be put back into the queue: submit it again"
    print(f"plainres: SLURM job {job} {said}", file=sys.stderr)
