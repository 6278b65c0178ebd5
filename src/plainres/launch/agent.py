"""Elastic agent of one run: starts a worker per device, as torchrun does, and reports how the workers exited.

Usage: `python -m plainres.launch.agent FOLDER CONFIG OUTCOME`. FOLDER is the folder of a run, CONFIG a file with its
pickled configuration, OUTCOME the JSON file to write.
"""

import json
import logging
import os
import pickle
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

from plainres.console import unfailing_output
from plainres.files import write_atomically
from plainres.processes.signals import STOPPING
from plainres.runs.record import Run

KILLED = "killed"  # the kind of outcome of a worker that raised no exception
SAVING_S = 600  # after a signal; time for the current step, an evaluation that follows it, and a checkpoint


def main(folder: Path, config: Path, file: Path) -> None:
    """Train the run in `folder` with the configuration pickled in `config`, and write the outcome to `file`."""
    threading.Thread(target=_exit_when_stdin_closes, daemon=True).start()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the command reports a failure itself
    run = Run(pickle.loads(config.read_bytes()), folder)
    workers = launch_config(run.config.trainer.devices)
    outcome: dict[str, Any] = {"kind": "None", "message": ""}
    try:
        elastic_launch(workers, sys.executable)("-P", "-m", "plainres.launch.worker", str(folder), str(config))
    except SignalException:
        pass  # the command forwarded the signal and reports it
    except ChildFailedError as error:
        outcome = _first_failure(error.failures)
        if outcome["kind"] == "Exception":
            run.fail(outcome["message"])
    write_atomically(file, json.dumps(outcome))


def launch_config(processes: int) -> LaunchConfig:
    """Return the launch configuration for `processes` workers on this machine."""
    options: dict[str, Any] = {"shutdown_timeout": SAVING_S}
    supported = {field.name for field in fields(LaunchConfig)}  # torch 2.11 has a fixed timeout of 30 s
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # a free port
        local_addr="127.0.0.1",  # by default the name of this machine, which may not resolve
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=",".join(number.name for number in STOPPING),  # forwarded to the workers
        **{name: value for name, value in options.items() if name in supported},
    )


def _exit_when_stdin_closes() -> None:
    """Exit with the command, which holds the other end of standard input."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _first_failure(failures: dict[int, ProcessFailure]) -> dict[str, Any]:
    """Return the outcome of the worker that failed first, since the others fail because of it.

    A killed worker writes no error file, so it takes precedence. Otherwise the oldest error file decides.
    """
    error_files = [file for failure in failures.values() if (file := Path(failure.error_file)).is_file()]
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and Path(failure.error_file) not in error_files:
            name = signal.Signals(-failure.exitcode).name
            message = f"rank {rank} was killed ({name}), possibly out of memory; run the same command again to resume"
            return {"kind": KILLED, "message": message}
    if not error_files:
        exits = ", ".join(f"rank {rank} exited with code {failure.exitcode}" for rank, failure in failures.items())
        return {"kind": KILLED, "message": f"{exits}; run the same command again to resume"}
    return json.loads(min(error_files, key=lambda file: file.stat().st_mtime_ns).read_text())


if __name__ == "__main__":
    with unfailing_output():
        main(*map(Path, sys.argv[1:]))
