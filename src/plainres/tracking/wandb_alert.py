"""Alerts of W&B about runs of a sweep that have failed, as `logger.alert=true` asks for.

A process that was killed cannot report itself, so the command that has started it does, in another process:

    python -m plainres.tracking.wandb_alert FOLDER REASON
"""

import subprocess
import sys
from pathlib import Path

from plainres.console import say
from plainres.errors import first_line
from plainres.runs.record import Run

TIMEOUT = 60  # seconds, for importing the client and reaching the server


def alert(run: Run, reason: str) -> None:
    """Send an alert that a run has failed, if its configuration asks for one. No error of W&B stops the sweep."""
    if not run.config.logger.alert:
        return
    command = [sys.executable, "-P", "-m", "plainres.tracking.wandb_alert", str(run.folder), reason]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        problem = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"no answer within {TIMEOUT} s"
    if problem:
        say(f"W&B: no alert was sent about {run.name} ({problem})")


def main(folder: str, reason: str) -> int:
    """Send an alert, with the rows that W&B lacks; return the exit code of the process."""
    from plainres.tracking.wandb_client import INIT_TIMEOUT
    from plainres.tracking.wandb_sync import send_run

    try:
        send_run(Path(folder), INIT_TIMEOUT, alert=reason)
    except Exception as error:
        print(first_line(error) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
