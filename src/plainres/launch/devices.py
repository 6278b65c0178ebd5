"""Launching of one run on the devices of this machine, in this process or in one process per device.

A run on several devices gets a fresh process tree, as with torchrun:

    plainres train -> python -m plainres.launch.agent -> python -m plainres.launch.worker, one per device

The agent is torch's elastic agent. The tree exits with the command and leaves no state for the next run of a sweep.
Under the user's own torchrun or srun, `plainres train` is already a worker of the run.
"""

import json
import pickle
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
from plainres.launch.preflight import check_processes, check_settings, check_unchanged
from plainres.launch.selection import adopt_report_options
from plainres.processes.environment import environment_of_workers, isolate
from plainres.processes.signals import StopSignals
from plainres.processes.world import World
from plainres.runs.record import Run
from plainres.tracking.wandb_agent import check_logged
from plainres.tracking.wandb_sync import upload_for_agent


def train(run: Run | Config) -> Run:
    """Train a run on the devices of this machine; resume from its newest checkpoint if there is one.

    Args:
        run: a run, or its configuration. A finished run is returned unchanged.

    Returns:
        The finished run.

    Raises:
        InputError: the configuration is invalid, or has `sweep.tune`, which `sweep_tuned` needs.
        LockedError: another process is training the run.
        RunFailedError: the run failed, now or earlier; `sweep.retry_failed=true` retries it.
        StoppedError: a signal arrived; the run is saved.
    """
    isolate()
    if isinstance(run, Config) and run.tuning:
        raise InputError("the configuration has sweep.tune; use sweep_tuned([config]), which chooses the value")
    run = run if isinstance(run, Run) else Run.of(run)
    check_logged(run.config)
    if run.finished and run.result:
        check_unchanged([run])
        if World.current().rank == 0:
            adopt_report_options([run])
            upload_for_agent(run)
        return run
    if (reason := run.failure) and not run.config.sweep.retry_failed:
        raise RunFailedError(f"{run.folder} has failed: {reason}; set sweep.retry_failed=true to retry it")
    check_settings([run])  # before importing Lightning, which takes seconds
    if World.current().rank == 0:
        for hint in hints([run]):
            say(hint)
    launch(run)
    return Run(run.config, run.folder)


def launch(run: Run) -> None:
    """Train a run in this process or, on several devices of this machine, in one worker per device.

    Raises:
        InputError: this process belongs to a group whose world size does not fit the configuration.
        Exception: see `plainres.training.train.train` and `train_in_processes`.
    """
    check_processes(run)
    if run.config.trainer.processes == World.current().size:
        from plainres.training.train import train

        train(run)
    else:
        from plainres.config.instantiate import source_of

        source_of(run.config).prepare()  # here rather than in every worker
        check_unchanged([run])
        run.prepare()
        train_in_processes(run)


def train_in_processes(run: Run) -> None:
    """Train a run on the devices of this machine, in a fresh worker per device, and wait until it exits.

    Raises:
        InputError: a worker rejects the configuration.
        LockedError: another process is training the run.
        OSError: a worker cannot write, for instance because the disk is full.
        RunFailedError: a worker failed or was killed; it has printed its traceback.
        StoppedError: a signal arrived and was forwarded to the workers.
    """
    environment = environment_of_workers(run.config.trainer.threads)
    with tempfile.TemporaryDirectory() as scratch, StopSignals(started=True) as signals:
        outcome = Path(scratch) / "outcome.json"
        config = Path(scratch) / "config.pickle"  # another command may write another config.yaml
        config.write_bytes(pickle.dumps(run.config))
        command = [sys.executable, "-P", "-m", "plainres.launch.agent", str(run.folder), str(config), str(outcome)]
        # the agent exits when its standard input closes, also if this process is killed; in its own session it does
        # not receive Ctrl-C, which this process forwards
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
            result: dict[str, Any] = json.loads(outcome.read_text())
        except (OSError, ValueError):
            result = {"kind": "killed", "message": "its processes were killed; run the same command again to resume"}
    if sent:
        raise StoppedError(f"{run.name} is saved up to step {run.step}; run the same command again to resume", sent)
    kind, message = result["kind"], str(result["message"])
    if kind == "StoppedError":
        raise StoppedError(message, int(result["number"]))
    exceptions: dict[str, type[Exception]] = {"InputError": InputError, "LockedError": LockedError, "OSError": OSError}
    if kind != "None":
        raise exceptions.get(kind, RunFailedError)(message)
