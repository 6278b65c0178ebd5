"""Alerts of W&B about runs of a sweep that have failed, as `logger.alert=true` asks for.

A process that was killed cannot report itself, so the command that has started it does, in another process:

    python -m plainres.tracking.wandb_alert FOLDER REASON
"""

import subprocess
import sys
import threading
import time
from pathlib import Path

from plainres.console import quantity, say
from plainres.errors import first_line
from plainres.runs.record import Run

TIMEOUT = 60  # seconds, for importing the client and reaching the server


class Alerts:
    """Alerts of a command, which are sent one after the other while its runs continue.

    No error of W&B stops the command; a line on the screen names it.
    """

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.one_at_a_time = threading.Lock()

    def send(self, run: Run, reason: str) -> None:
        """Send an alert that a run has failed, if its configuration asks for one."""
        if run.config.logger.alert:
            self.threads.append(threading.Thread(target=self._send, args=(run, reason), daemon=True))
            self.threads[-1].start()

    def wait(self) -> None:
        """Wait for the alerts that have not been sent, but not longer than for one."""
        end = time.monotonic() + TIMEOUT
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        if unsent := sum(thread.is_alive() for thread in self.threads):
            say(f"W&B: {quantity(unsent, 'alert')} not sent within {TIMEOUT} s")

    def _send(self, run: Run, reason: str) -> None:
        command = [sys.executable, "-P", "-m", "plainres.tracking.wandb_alert", str(run.folder), reason]
        with self.one_at_a_time:
            try:
                # in a session of its own, so that Ctrl-C, which stops the command, does not stop the alert
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=TIMEOUT, check=False, start_new_session=True
                )
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
