"""Starts the processes of one run, as torchrun does, watches over them, and tells how they ended.

`python -m plainres.launch.agent FOLDER OUTCOME`: the folder of a run; the file that takes the outcome as JSON.
"""

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from plainres.files import write_atomically
from plainres.processes.signals import STOPPING
from plainres.runs.record import Run

KILLED = "killed"  # a kind of outcome beside the names of exceptions
SAVING_S = 600  # after a signal: for the end of a step, the evaluation if it was an epoch's last, and a checkpoint


def main(folder: Path, file: Path) -> None:
    """Train the run in `folder`; write the outcome to `file`."""
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it reports, we do, in one line
    run = Run.read(folder)
    config = launch_config(run.config.trainer.devices)
    outcome: dict[str, Any] = {"kind": "None", "message": ""}
    try:
        elastic_launch(config, sys.executable)("-m", "plainres.launch.worker", str(folder))
    except SignalException:
        pass  # who has sent it knows
    except ChildFailedError as error:
        outcome = _outcome(error.failures)
        if outcome["kind"] == "Exception":
            run.fail(outcome["message"])
    write_atomically(file, json.dumps(outcome))


def launch_config(processes: int) -> LaunchConfig:
    """Return torch's configuration of a run with so many processes on this machine."""
    options: dict[str, Any] = {"shutdown_timeout": SAVING_S}
    known = {each.name for each in fields(LaunchConfig)}  # torch 2.11 gives processes 30 s instead
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=",".join(number.name for number in STOPPING),  # handed on to the processes
        **{name: value for name, value in options.items() if name in known},
    )


def _end_with_standard_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _outcome(failures: dict[int, ProcessFailure]) -> dict[str, Any]:
    """What ended the first process that failed: the others fail because of it.

    A process that was killed has left no word, so it goes first; then the one that has left its word first.
    """
    words = [file for failure in failures.values() if (file := Path(failure.error_file)).is_file()]
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and Path(failure.error_file) not in words:
            name = signal.Signals(-failure.exitcode).name
            message = f"process {rank} was killed ({name}; out of memory?); the same command goes on"
            return {"kind": KILLED, "message": message}
    if not words:
        codes = ", ".join(f"{rank} with code {failure.exitcode}" for rank, failure in failures.items())
        return {"kind": KILLED, "message": f"process {codes} ended; the same command goes on"}
    return json.loads(min(words, key=lambda file: file.stat().st_mtime_ns).read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
