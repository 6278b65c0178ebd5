"""The Weights & Biases logger: one W&B run per run, across all of its attempts.

The client writes rows to the run's folder before it uploads them (see `plainres.tracking.wandb_files`). When a run
resumes offline, it logs the rows that are missing from the logs of earlier attempts. Online, it asks the server for its
number of rows, which are the first ones of metrics.csv, and logs the rest. No W&B error fails a run.
"""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from plainres.config.schema import WANDB_TAG, Config
from plainres.console import say
from plainres.errors import first_line
from plainres.files import write_atomically
from plainres.runs.identity import complete
from plainres.runs.record import Run
from plainres.tracking.loggers import VALUES, RunLogger
from plainres.tracking.wandb_files import STEP, attempts

INIT_TIMEOUT = 10  # seconds, for the server to answer before a run
FINISH_TIMEOUT = 20  # seconds, for the remaining upload after a run
COUNT_TIMEOUT = 5  # seconds, for the server to count the rows it received
SETS = ("train", "test")  # of images
LOWEST = tuple(f"{images}/{value}" for images in SETS for value in VALUES)  # summarised by their minimum and last value
VALIDATION = tuple(f"validation/{value}" for value in VALUES)  # likewise, of runs that hold out images
LATEST = ("epoch", "lr")  # summarised by their last value
# variables of the client for what the configuration and the folder of a run determine
CONFIGURED = tuple(
    f"WANDB_{name}"
    for name in (
        *(
            "CONSOLE",
            "DIR",
            "DISABLED",
            "ENTITY",
            "JOB_TYPE",
            "MODE",
            "NAME",
            "NOTES",
            "PROJECT",
            "RESUME",
            "RUN_GROUP",
        ),
        *("RUN_ID", "SILENT", "TAGS"),
    )
)
RESULTS = ("train_error_eval", "test_error", "parameters", "multiply_adds", "weights_sha256")  # of result.json


def settings(timeout: float | None = None) -> dict[str, Any]:
    """Return settings for the W&B client: silent, no system monitoring, frequent flushes, bounded timeouts.

    Each run needs a new dictionary, because the client writes the run's name into it.

    Args:
        timeout: seconds to wait for the server before a run, and again after it (default: INIT_TIMEOUT and
            FINISH_TIMEOUT).
    """
    # without a network the client's telemetry would block, even offline
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return {
        "silent": True,
        "console": "off",  # plainres keeps its own log
        "x_disable_stats": True,  # no system monitoring
        "x_save_requirements": False,  # saves 0.1 s per run; result.json holds the versions
        "x_transaction_log_flush_interval": 2.0,  # seconds; rows lost in a killed process are logged again
        "init_timeout": timeout or INIT_TIMEOUT,
        "finish_timeout": timeout or FINISH_TIMEOUT,
        "finish_timeout_raises": True,
    }


def wandb_id(folder: Path) -> str:
    """Return the id of the W&B run that belongs to a folder; create it in <folder>/wandb/id on first use.

    A run that starts from scratch in another folder is another W&B run.
    """
    file = folder / "wandb" / "id"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{secrets.token_hex(4)}\n")
    return file.read_text().strip()


def start(folder: Path, mode: str, timeout: float | None = None, **options: Any) -> Any:
    """Start or resume the W&B run that belongs to `folder`.

    Args:
        folder: the folder of a run or of a report.
        mode: "offline" or "online".
        timeout: see `settings`.
        options: passed to `wandb.init`.

    Returns:
        The `wandb.Run`.

    Raises:
        Exception: any exception of the client, such as an unreachable server or an invalid key.
    """
    client_settings = settings(timeout)
    options |= {"dir": folder, "mode": mode, "id": wandb_id(folder), "resume": "allow"}
    import wandb

    stdin = sys.stdin
    with Path(os.devnull).open() as empty, _without_variables():
        sys.stdin = empty  # keeps the client from prompting for a key
        try:
            wandb.setup(wandb.Settings(silent=True))
            return wandb.init(**options, settings=wandb.Settings(**client_settings))
        finally:
            sys.stdin = stdin


@contextmanager
def _without_variables() -> Iterator[None]:
    """Hide from the client the environment variables that would change what a configuration says, or are invalid."""
    hidden = {name: os.environ.pop(name) for name in CONFIGURED if name in os.environ}
    try:
        yield
    finally:
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


def wandb_config(run: Run) -> dict[str, Any]:
    """Return the configuration that W&B shows for a run: nested values, plus the name of the shortcut at the top."""
    config, parts = run.config, complete(run.config)
    options = {group: name for group, name in config.options.items() if group.partition("/")[0] in parts}
    return {**parts, "shortcut": config.shortcut, "study": config.study, "options": options}


def tags(config: Config) -> list[str]:
    """Return the tags of a run: shortcut, depth, data and `logger.tags`."""
    own = [config.shortcut, f"depth-{config.model['depth']}", config.options["data"]]
    return list(dict.fromkeys([*(tag[:WANDB_TAG] for tag in own), *config.logger.tags]))


class WandbLogger(RunLogger):
    """Logs a run to W&B.

    If the server is unreachable or rejects data, the logger prints one warning and the run continues. Rows that were
    not uploaded stay on disk for `plainres wandb-sync`.

    Args:
        run: the run.
        timeout: see `settings`.
    """

    def __init__(self, run: Run, timeout: float | None = None) -> None:
        super().__init__()
        self.run, self.timeout = run, timeout
        self.wandb_run: Any = None  # a wandb.Run, or None while the logger is off
        self.logged_steps: set[int] = set()  # offline: the steps of the rows in the logs of earlier attempts
        self.received = 0  # online: the number of rows on the server when this attempt started
        self.rows: list[Mapping[str, float]] = []  # all rows of the run
        self.warned = False

    @property
    def name(self) -> str:
        """The W&B project."""
        return self.run.config.logger.project

    def connect(self, mode: str) -> None:
        """Start or resume the W&B run and determine which rows it already has.

        Args:
            mode: "offline" or "online".

        Raises:
            Exception: any exception of the client, such as an unreachable server or an invalid key.
        """
        config = self.run.config
        earlier = attempts(self.run.folder)
        wandb_run = start(
            self.run.folder,
            mode,
            self.timeout,
            project=config.logger.project,
            entity=config.logger.entity,
            name=self.run.name,
            group=config.study,
            job_type="train",
            tags=tags(config),
            config=wandb_config(self.run),
        )
        held_out = config.data.get("validation_per_class") is not None
        lowest = (*LOWEST, *VALIDATION) if held_out else LOWEST
        for names, summary in ((lowest, "min,last"), (LATEST, "last")):
            for name in names:
                wandb_run.define_metric(name, step_metric=STEP, summary=summary)
        current = Path(wandb_run.dir).parent.name
        # attempts that start within the same second share a folder, and the later one overwrites the log
        earlier = [attempt for attempt in earlier if attempt.folder.name != current]
        for attempt in earlier:
            if not attempt.id:
                attempt.mark_sent()  # an empty or damaged log, on which `wandb sync` would fail
        self.logged_steps = {step for attempt in earlier for step in attempt.steps} if wandb_run.offline else set()
        self.received = wandb_run.starting_step  # always 0 offline
        self.wandb_run = wandb_run

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log a row unless W&B already has it.

        Raises:
            Exception: any exception of the client.
        """
        self.rows.append(row)
        if self.wandb_run is not None and len(self.rows) > self.received and step not in self.logged_steps:
            self.wandb_run.log({**row, STEP: step})

    def finish(self, exit_code: int) -> None:
        """Write the summary and finish the W&B run; online, verify the upload.

        Args:
            exit_code: see `RunLogger.end`.

        Raises:
            IncompleteUploadError: the server has not received all rows.
            Exception: any exception of the client.
        """
        wandb_run, self.wandb_run = self.wandb_run, None
        if wandb_run is None:
            return
        logged = self.rows[0] if self.rows else {}
        for name in filter(
            logged.__contains__, (*LOWEST, *VALIDATION)
        ):  # the client itself summarises only the current attempt
            values = [row[name] for row in self.rows]
            wandb_run.summary[name] = {"min": min(values), "last": values[-1]}
        if self.run.finished:
            wandb_run.summary.update({key: self.run.result[key] for key in RESULTS})
        if wandb_run.offline:
            wandb_run.finish(exit_code=exit_code)
        else:
            finish_online(wandb_run, self.run.folder, len(self.rows), exit_code)

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Start or resume the W&B run and log the rows it is missing."""
        mode = self.run.config.logger.mode
        with suppress(OSError):
            self.run.trouble_file.unlink(missing_ok=True)
        try:
            try:
                self.connect(mode)
            except Exception as error:
                if mode == "offline":
                    raise
                self._warn("is not online", error)
                tear_down()  # otherwise the client still considers the run active
                self.connect("offline")
        except Exception as error:
            self._warn("cannot be used", error)
        for row in rows:
            self.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log one row."""
        assert step is not None
        try:
            self.log(metrics, step)
        except Exception as error:
            self._warn("accepts no more rows", error)
            self.wandb_run = None
            tear_down()

    def end(self, exit_code: int) -> None:
        """Finish the W&B run, which W&B then shows as finished or failed; say where an offline run is kept."""
        try:
            self.finish(exit_code)
        except Exception as error:
            self._warn("has not received everything", error)
            tear_down()
        if self.run.config.logger.mode == "offline" and not self.warned:
            folder = self.run.folder
            say(f"W&B: logged offline in {folder / 'wandb'}; `plainres wandb-sync {folder}` uploads it for viewing")

    def _warn(self, problem: str, error: Exception) -> None:
        """Print a warning about the first error only, because later errors follow from it."""
        if not self.warned:
            trouble = f"W&B {problem} ({first_line(error).removesuffix('.') or type(error).__name__})"
            say(f"{trouble}; the run continues, and `plainres wandb-sync {self.run.folder}` uploads it later")
            with suppress(OSError):
                write_atomically(self.run.trouble_file, trouble)
        self.warned = True
