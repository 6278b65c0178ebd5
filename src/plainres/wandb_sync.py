"""Send to W&B what was logged offline, or while it did not answer."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from plainres.errors import InputError, first_line
from plainres.runs import Run
from plainres.wandb_files import Session, sessions


def sync(folder: Path, timeout: float) -> Iterator[tuple[str, bool]]:
    """Send what has not been sent of all W&B runs in a folder, however deep; yield a line for each, and if it is sent.

    Each session may take `timeout` seconds: without an answer W&B's client tries for ever.

    Raises:
        InputError: there is nothing of W&B's in the folder, or W&B does not know who is asking.
    """
    owners = sorted({file.parents[2] for file in folder.rglob("wandb/*run-*-*/run-*.wandb")})
    if not owners:
        raise InputError(f"{folder} holds nothing for W&B; `plainres train logger=wandb` makes some")
    for number, owner in enumerate(owners):
        unsent = [session for session in sessions(owner) if session.id and not session.sent]
        run = Run.read(owner) if (owner / "config.yaml").exists() else None
        if not unsent:
            yield f"{owner}: sent already", True
        elif run and run.locked:
            yield f"{owner}: NOT SENT, for it is being trained", False
        else:
            rows = sum(len(session.rows) for session in unsent)
            try:
                if run and any(session.online for session in unsent):
                    place = _send_what_lacks(run, unsent)
                else:
                    place = [_send(session, timeout) for session in unsent][-1]
            except _NotSentError as error:
                yield f"{owner}: NOT SENT: {error}", False
                if error.silence:
                    if left := len(owners) - number - 1:
                        yield f"{left} more not tried: W&B does not answer", False
                    return
            else:
                yield f"{owner}: {rows} rows sent to {place}", True


class _NotSentError(Exception):
    """A session was not sent; `silence`: nobody answers, and it will be no better with the next."""

    def __init__(self, message: str, *, silence: bool = False) -> None:
        super().__init__(message)
        self.silence = silence


def _send(session: Session, timeout: float) -> str:
    """Send a session that was offline, as it is; return its address.

    The client's exit code is 0 whatever it has sent, so its mark on the session counts. A session that was sent in part
    is sent again with the numbers that its rows have had on the server.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(session.folder.absolute())]
    place = session.folder.parents[1]  # whose wandb/ takes the client's own log
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise _NotSentError(f"no answer within {timeout:g} s", silence=True) from None
    said = [line.removeprefix("wandb: ") for line in (done.stdout + done.stderr).splitlines()]
    if not session.sent:
        errors = [line for line in said if line.startswith(("Error: ", "ERROR ")) and "error logs" not in line]
        reason = [*errors, *said[-1:], "no word"][0].removeprefix("Error: ").removeprefix("ERROR ")
        if "API key" in reason:
            raise InputError(f"W&B: {reason}")
        raise _NotSentError(reason)
    return next((line.rpartition(" at ")[2] for line in said if "View run" in line), "W&B")


def _send_what_lacks(run: Run, unsent: list[Session]) -> str:
    """Send what the server lacks of a run whose last word from it was cut off; return its address.

    The server is asked how many rows it has, and gets the others. As a whole session they would arrive twice.
    """
    from wandb.errors import UsageError

    from plainres.wandb_logger import WandbMirror, abandon

    mirror = WandbMirror(run)
    try:
        mirror.connect("online")
        place = str(mirror.session.url)
        for row in run.curve():
            mirror.log({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
        mirror.finish(unsent[-1].exit_code if unsent[-1].exit_code is not None else 1)
    except UsageError as error:
        raise InputError(f"W&B: {first_line(error)}") from error
    except Exception as error:
        abandon()
        raise _NotSentError(first_line(error), silence=True) from error
    return place
