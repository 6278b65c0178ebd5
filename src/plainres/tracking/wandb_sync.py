"""Send to W&B what was logged offline, or while it did not answer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from plainres.errors import InputError, LockedError, first_line
from plainres.runs.record import Run
from plainres.tracking.wandb_files import Attempt, attempts


def sync(folder: Path, timeout: float) -> Iterator[tuple[str, bool]]:
    """Send what has not been sent of all W&B runs in a folder, however deep; yield a line for each, and if it is sent.

    The server may take `timeout` seconds to answer, and again to take the rows: W&B's client would try for ever.

    Raises:
        InputError: there is nothing of W&B's in the folder, or W&B does not know who is asking.
    """
    owners = sorted({file.parents[1] for file in folder.rglob("wandb/id")})
    if not owners:
        raise InputError(f"{folder} holds nothing for W&B; `plainres train logger=wandb` makes some")
    for number, owner in enumerate(owners):
        is_run = (owner / "config.yaml").exists()
        try:
            said = _send_run(owner, timeout) if is_run else _send_report(owner, timeout)
        except _StrangerError:
            raise
        except TimeoutError:
            yield f"{owner}: NOT SENT: no answer within {timeout:g} s", False
            if left := len(owners) - number - 1:
                yield f"{left} more not tried: W&B does not answer", False
            return
        except LockedError:
            yield f"{owner}: NOT SENT, for it is being trained", False
        except Exception as error:  # of this one; the others have nothing to do with it
            yield f"{owner}: NOT SENT: {first_line(error) or type(error).__name__}", False
        else:
            yield f"{owner}: {said}", True


class _StrangerError(InputError):
    """W&B does not know who is asking."""


class _NotSentError(Exception):
    """An attempt was not sent."""


def _send_run(folder: Path, timeout: float) -> str:
    """Send the rows of metrics.csv that the server lacks of a run; say how many, and its address.

    The server is asked how many it has. Whole attempts would not do: the rows of one that was online would arrive
    twice, and those of one whose process has died are not all in it.

    Raises:
        LockedError: a process trains the run.
        TimeoutError: W&B does not answer.
        Exception: whatever else is wrong with the run or W&B.
    """
    from wandb.errors import AuthenticationError, CommError, UsageError

    from plainres.tracking.wandb_logger import WandbLogger, abandon

    run = Run.read(folder)
    with run.lock():
        found, curve = attempts(folder), run.curve()
        unsent = [attempt for attempt in found if attempt.id and not attempt.sent]
        known = {step for attempt in found for step in attempt.steps}
        if not unsent and known.issuperset(int(row["step"]) for row in curve):
            return "sent already"
        exit_code = found[-1].exit_code if found else None
        if run.finished or exit_code is None:  # None: killed, perhaps after the end of the run
            exit_code = 0 if run.finished else 1
        logger = WandbLogger(run, timeout)
        try:
            logger.connect("online")
            url, lacked = str(logger.session.url), max(0, len(curve) - logger.arrived)
            for row in curve:
                logger.log({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
            logger.finish(exit_code)
            run.trouble_file.unlink(missing_ok=True)
        except Exception as error:
            abandon()
            if isinstance(error, (UsageError, AuthenticationError)):
                raise _StrangerError(f"W&B: {first_line(error)}") from error
            if isinstance(error, CommError) and any(word in str(error) for word in ("timed out", "deadline exceeded")):
                raise TimeoutError from error
            raise
    return f"{lacked} rows sent to {url}"


def _send_report(folder: Path, timeout: float) -> str:
    """Send the attempts of a study's report, as they are; say how many rows, and its address.

    Raises:
        TimeoutError: W&B does not answer.
        Exception: whatever else is wrong.
    """
    unsent = [attempt for attempt in attempts(folder) if attempt.id and not attempt.sent]
    if not unsent:
        return "sent already"
    urls = [_send(attempt, timeout) for attempt in unsent]
    return f"{sum(len(attempt.rows) for attempt in unsent)} rows sent to {urls[-1]}"


def _send(attempt: Attempt, timeout: float) -> str:
    """Send an attempt by W&B's own command; return its address.

    The client's exit code is 0 whatever it has sent, so its mark on the attempt counts. An attempt that was sent in
    part is sent again with the numbers that its rows have had on the server.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(attempt.folder.absolute())]
    place = attempt.folder.parents[1]  # whose wandb/ takes the client's own log
    environment = {"WANDB_ERROR_REPORTING": "false", **os.environ}
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    said = [line.removeprefix("wandb: ") for line in (done.stdout + done.stderr).splitlines()]
    if not attempt.sent:
        errors = [line for line in said if line.startswith(("Error: ", "ERROR ")) and "error logs" not in line]
        reason = [*errors, *said[-1:], "no word"][0].removeprefix("Error: ").removeprefix("ERROR ")
        if "API key" in reason:
            raise _StrangerError(f"W&B: {reason}")
        raise _NotSentError(reason)
    return next((line.rpartition(" at ")[2] for line in said if "View run" in line), "W&B")
