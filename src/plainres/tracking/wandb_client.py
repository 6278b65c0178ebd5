"""Sessions with the Weights & Biases client: one W&B run for each folder, however often it is started."""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainres.files import write_atomically
from plainres.tracking.wandb_agent import Assignment
from plainres.tracking.wandb_files import attempts

INIT_TIMEOUT = 10  # seconds, for the server to answer before a run
FINISH_TIMEOUT = 20  # seconds, for the remaining upload after a run
COUNT_TIMEOUT = 5  # seconds, for the server to count the rows it received
# variables of the client for what the configuration and the folder of a run determine
CONFIGURED = tuple(
    f"WANDB_{name}"
    for name in (
        *("CONSOLE", "DIR", "DISABLED", "ENTITY", "JOB_TYPE", "MODE", "NAME", "NOTES", "PROJECT", "RESUME"),
        *("RUN_GROUP", "RUN_ID", "SILENT", "SWEEP_ID", "SWEEP_PARAM_PATH", "TAGS"),
    )
)


@dataclass(frozen=True)
class Place:
    """The W&B run of a folder. Project and entity are None unless an agent of W&B has assigned them."""

    id: str
    project: str | None = None
    entity: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.entity, self.project, self.id) if part)


def place_of(folder: Path, assigned: Assignment | None = None) -> Place:
    """Return the W&B run that belongs to a folder, which <folder>/wandb/id names; choose it on first use.

    A run that starts from scratch in another folder is another W&B run.

    Args:
        folder: the folder of a run or of a report.
        assigned: what an agent of W&B has assigned to this process.
    """
    file = folder / "wandb" / "id"
    if not file.exists():
        place = Place(secrets.token_hex(4))
        if assigned:
            place = Place(assigned.id or place.id, assigned.project, assigned.entity)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{place}\n")
    return Place(*reversed(file.read_text().strip().split("/")))


def settings(timeout: float | None = None, *, system_metrics: bool = False) -> dict[str, Any]:
    """Return settings for the W&B client: silent, frequent flushes, bounded timeouts.

    Each run needs a new dictionary, because the client writes the run's name into it.

    Args:
        timeout: seconds to wait for the server before a run, and again after it (default: INIT_TIMEOUT and
            FINISH_TIMEOUT).
        system_metrics: whether the client records the use of GPUs, CPU and memory, which costs a CPU core some time.
    """
    # without a network the client's telemetry would block, even offline
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return {
        "silent": True,
        "console": "off",  # plainres keeps its own log
        "x_disable_stats": not system_metrics,
        "x_save_requirements": False,  # saves 0.1 s per run; result.json holds the versions
        "x_transaction_log_flush_interval": 2.0,  # seconds; rows lost in a killed process are logged again
        "init_timeout": timeout or INIT_TIMEOUT,
        "finish_timeout": timeout or FINISH_TIMEOUT,
        "finish_timeout_raises": True,
    }


def start(
    folder: Path,
    mode: str,
    timeout: float | None = None,
    *,
    assigned: Assignment | None = None,
    system_metrics: bool = False,
    **options: Any,
) -> Any:
    """Start or resume the W&B run that belongs to `folder`.

    Args:
        folder: the folder of a run or of a report.
        mode: "offline" or "online".
        timeout: see `settings`.
        assigned: what an agent of W&B has assigned to this process.
        system_metrics: see `settings`.
        options: passed to `wandb.init`; `project` and `entity` apply unless an agent has assigned the W&B run.

    Returns:
        The `wandb.Run`.

    Raises:
        Exception: any exception of the client, such as an unreachable server or an invalid key.
    """
    client_settings = settings(timeout, system_metrics=system_metrics)
    place = place_of(folder, assigned)
    options |= {"dir": folder, "mode": mode, "id": place.id, "resume": "allow"}
    if place.project:
        options |= {"project": place.project, "entity": place.entity}
    variables = assigned.variables(place.id) if assigned and assigned.is_for(place.id) else {}
    import wandb

    stdin = sys.stdin
    with Path(os.devnull).open() as empty, _configured(variables):
        sys.stdin = empty  # keeps the client from prompting for a key
        try:
            wandb.setup(wandb.Settings(silent=True))
            return wandb.init(**options, settings=wandb.Settings(**client_settings))
        finally:
            sys.stdin = stdin


@contextmanager
def _configured(variables: Mapping[str, str]) -> Iterator[None]:
    """Replace the environment variables that would change what a configuration says, or are invalid."""
    hidden = {name: os.environ.pop(name) for name in CONFIGURED if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(hidden)


def finish_online(wandb_run: Any, folder: Path, rows: int, exit_code: int = 0) -> None:
    """Finish an online W&B run, verify its upload and mark all attempts in `folder` as sent.

    The client does not report rows that the server has rejected permanently, so this asks the server for its row count.

    Args:
        wandb_run: the `wandb.Run`.
        folder: the folder that holds its attempts.
        rows: the number of rows that the server must have.
        exit_code: see `RunLogger.end`.

    Raises:
        IncompleteUploadError: the server has fewer rows.
        Exception: any exception of the client, TimeoutError if the server does not answer.
    """
    import wandb

    path = f"{wandb_run.entity}/{wandb_run.project}/{wandb_run.id}"
    wandb_run.finish(exit_code=exit_code)
    end = time.monotonic() + COUNT_TIMEOUT
    while (received := wandb.Api(timeout=COUNT_TIMEOUT).run(path).history_line_count or 0) < rows:
        if time.monotonic() > end:
            raise IncompleteUploadError(f"the server has {received} of {rows} rows")
        time.sleep(0.2)
    for attempt in attempts(folder):
        attempt.mark_sent()


class IncompleteUploadError(Exception):
    """The server has not received all rows of a run."""


def tear_down() -> None:
    """Stop the client's service process, whatever its state; the next W&B run starts a new one."""
    import wandb

    with suppress(Exception):
        wandb.teardown()
