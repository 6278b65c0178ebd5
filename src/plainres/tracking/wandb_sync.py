"""Upload of runs and reports that were logged offline or while W&B was unreachable."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from plainres.console import quantity, say
from plainres.errors import InputError, LockedError, first_line
from plainres.runs.record import Run
from plainres.tracking import wandb_artifacts
from plainres.tracking.wandb_agent import Assignment, assignment
from plainres.tracking.wandb_files import Attempt, attempts

UP_TO_DATE = "already uploaded"
ALERT_TITLE = 63  # characters that W&B admits


def sync(folder: Path, timeout: float) -> Iterator[tuple[str, bool]]:
    """Upload all W&B runs in a folder and its subfolders.

    A run whose W&B record is missing is uploaded from its own files, if it was to be logged, or is the folder itself.

    Args:
        folder: the folder of a run, of a study, or of all runs.
        timeout: seconds to wait for the server to answer, and again for the upload; the client itself never gives up.

    Yields:
        For each W&B run a line to print, and whether it is uploaded.

    Raises:
        InputError: there is no such folder, it contains no W&B data, or W&B rejects the API key.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a run, of a study, or of all runs")
    owners = sorted({*(file.parents[1] for file in folder.rglob("wandb/id")), *_unlogged(folder)})
    if not owners:
        raise InputError(
            f"{folder} contains no W&B data; train with logger=wandb, or give the folder of one finished run, which is "
            "uploaded from its own files"
        )
    for number, owner in enumerate(owners):
        is_run = (owner / "config.yaml").exists()
        try:
            message = send_run(owner, timeout) if is_run else _send_report(owner, timeout)
        except _UnauthorizedError:
            raise
        except TimeoutError:
            yield f"{owner}: not uploaded: no answer within {timeout:g} s", False
            if left := len(owners) - number - 1:
                yield f"{quantity(left, 'other')} not tried, because W&B does not answer", False
            return
        except LockedError:
            yield f"{owner}: not uploaded: it is still training", False
        except Exception as error:  # an error in one run must not stop the others
            yield f"{owner}: not uploaded: {first_line(error) or type(error).__name__}", False
        else:
            yield f"{owner}: {message}", True


def upload_for_agent(run: Run) -> None:
    """Upload a finished run for the agent of W&B that has started this process, if one has; say where its curves are.

    No W&B error is raised.
    """
    if (assigned := assignment()) is None:
        return
    from plainres.tracking.wandb_client import INIT_TIMEOUT, place_of

    try:
        message = send_run(run.folder, INIT_TIMEOUT, assigned=assigned)
    except Exception as error:
        say(f"W&B: not uploaded ({first_line(error) or type(error).__name__}); `plainres wandb-sync {run.folder}` does")
        return
    place = place_of(run.folder)
    empty = "" if assigned.is_for(place.id) else f"; {assigned.id}, which the agent has created, stays empty"
    say(f"W&B: {message} ({place}){empty}")


def _unlogged(folder: Path) -> Iterator[Path]:
    """Yield the folders of finished runs that lack a W&B record, if they were to have one or are the folder itself."""
    for file in folder.rglob("result.json"):
        with suppress(InputError):
            run = Run.read(file.parent)
            if (run.config.logger.wandb or run.folder == folder) and not (run.folder / "wandb" / "id").exists():
                yield run.folder


class _UnauthorizedError(InputError):
    """W&B has rejected the API key, or there is none; `reason` is the client's message."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"W&B: {reason.rstrip('.')}; the data are safe in the runs' folders, and the same command uploads them "
            "after `wandb login`"
        )


class _UploadError(Exception):
    """An attempt was not uploaded."""


def send_run(folder: Path, timeout: float, *, assigned: Assignment | None = None, alert: str = "") -> str:
    """Upload what W&B lacks of a run: rows of metrics.csv and artifacts. Return a summary with the run's address.

    The server reports how many rows it has. Uploading whole attempts would not work: an online attempt would arrive
    twice, and the log of a killed attempt is incomplete.

    Args:
        folder: the folder of the run.
        timeout: see `sync`.
        assigned: what an agent of W&B has assigned to this process.
        alert: the reason of a failure, of which W&B is to alert the user.

    Raises:
        LockedError: a process is training the run.
        TimeoutError: W&B does not answer.
        Exception: any other problem with the run or W&B.
    """
    from wandb.errors import AuthenticationError, CommError, UsageError

    from plainres.tracking.wandb_client import tear_down
    from plainres.tracking.wandb_logger import WandbLogger

    run = Run.read(folder)
    with run.lock():
        logged, curve = attempts(folder), run.curve()
        unsent = [attempt for attempt in logged if attempt.id and not attempt.sent]
        logged_steps = {step for attempt in logged for step in attempt.steps}
        rows_sent = not unsent and logged_steps.issuperset(int(row["step"]) for row in curve)
        artifacts = wandb_artifacts.unsent(run)
        if rows_sent and not artifacts and not alert:
            return UP_TO_DATE
        exit_code = logged[-1].exit_code if logged else None
        if run.finished or exit_code is None:  # None: killed, possibly after the run had finished
            exit_code = 0 if run.finished else 1
        logger = WandbLogger(run, timeout, assigned)
        try:
            logger.connect("online")
            url, missing = str(logger.wandb_run.url), max(0, len(curve) - logger.received)
            ahead = logger.received - len(logged_steps.union(int(row["step"]) for row in curve))  # of another copy
            for row in curve:
                logger.log({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
            if alert:
                logger.wandb_run.alert(f"{run.name} failed"[:ALERT_TITLE], alert, level="ERROR")
            logger.finish(0 if ahead > 0 else exit_code)  # the outcome of the copy that has come further is not known
            run.trouble_file.unlink(missing_ok=True)
        except Exception as error:
            tear_down()
            if isinstance(error, (UsageError, AuthenticationError)):
                raise _UnauthorizedError(first_line(error)) from error
            if isinstance(error, CommError) and any(word in str(error) for word in ("timed out", "deadline exceeded")):
                raise TimeoutError from error
            raise
    if ahead > 0:
        return f"nothing to upload: {url} has {quantity(ahead, 'row')} more, from another copy of the run"
    uploaded = [*([quantity(missing, "row")] if missing else []), *artifacts]
    return f"uploaded {' and '.join(uploaded)} to {url}" if uploaded else f"{UP_TO_DATE}, all rows are at {url}"


def _send_report(folder: Path, timeout: float) -> str:
    """Upload the attempts of a study's report; return a summary with its address.

    Raises:
        TimeoutError: W&B does not answer.
        Exception: any other problem with W&B.
    """
    unsent = [attempt for attempt in attempts(folder) if attempt.id and not attempt.sent]
    if not unsent:
        return UP_TO_DATE
    urls = [_send(attempt, timeout) for attempt in unsent]
    return f"uploaded {quantity(sum(len(attempt.rows) for attempt in unsent), 'row')} to {urls[-1]}"


def _send(attempt: Attempt, timeout: float) -> str:
    """Upload one attempt with `wandb sync`; return its address.

    `wandb sync` always exits with 0, so success is judged by the mark it leaves next to the log. It uploads rows with
    their original numbers, so that repeating a partial upload duplicates nothing.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(attempt.folder.absolute())]
    owner = attempt.folder.parents[1]  # the client writes its own log to wandb/ in the working directory
    environment = {"WANDB_ERROR_REPORTING": "false", **os.environ}
    try:
        done = subprocess.run(
            command, cwd=owner, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    lines = [line.removeprefix("wandb: ") for line in (done.stdout + done.stderr).splitlines()]
    if not attempt.sent:
        errors = [line for line in lines if line.startswith(("Error: ", "ERROR ")) and "error logs" not in line]
        reason = [*errors, *lines[-1:], "wandb sync gave no reason"][0].removeprefix("Error: ").removeprefix("ERROR ")
        if "API key" in reason:
            raise _UnauthorizedError(reason)
        raise _UploadError(reason)
    return next((line.rpartition(" at ")[2] for line in lines if "View run" in line), "W&B")
