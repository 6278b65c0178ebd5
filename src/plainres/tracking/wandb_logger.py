"""The Weights & Biases logger: one W&B run per run, across all of its attempts.

The client writes rows to the run's folder before it uploads them (see `plainres.tracking.wandb_files`). When a run
resumes offline, it logs the rows that are missing from the logs of earlier attempts. Online, it asks the server for its
number of rows, which are the first ones of metrics.csv, and logs the rest. No W&B error fails a run.

What is logged stays: if a resumed run repeats epochs with other values, as on a GPU that is not deterministic, W&B
keeps the first ones.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from plainres.config.schema import WANDB_TAG, Config
from plainres.console import say
from plainres.errors import first_line
from plainres.files import write_atomically
from plainres.runs.identity import complete
from plainres.runs.record import Run
from plainres.runs.tuning import is_candidate
from plainres.tracking import wandb_artifacts
from plainres.tracking.loggers import VALUES, RunLogger
from plainres.tracking.wandb_agent import Assignment
from plainres.tracking.wandb_client import finish_online, place_of, start, tear_down
from plainres.tracking.wandb_files import STEP, attempts

SETS = ("train", "test")  # of images
LOWEST = tuple(f"{images}/{value}" for images in SETS for value in VALUES)  # summarised by their minimum and last value
VALIDATION = tuple(f"validation/{value}" for value in VALUES)  # likewise, of runs that hold out images
LATEST = ("epoch", "lr")  # summarised by their last value
# of result.json; validation_error if images are held out
RESULTS = ("train_error_eval", "validation_error", "test_error", "parameters", "multiply_adds", "weights_sha256")


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
        timeout: see `plainres.tracking.wandb_client.settings`.
        assigned: what an agent of W&B has assigned to this process.
    """

    def __init__(self, run: Run, timeout: float | None = None, assigned: Assignment | None = None) -> None:
        super().__init__()
        self.run, self.timeout, self.assigned = run, timeout, assigned
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
            assigned=self.assigned,
            system_metrics=config.trainer.accelerator == "gpu",
            project=config.logger.project,
            entity=config.logger.entity,
            name=self.run.name,
            group=config.study,
            job_type="choice" if is_candidate(self.run) else "train",
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
        # the client itself summarises only the current attempt; where W&B has later rows, those of another copy of the
        # run, or before a rollback, their summary stays
        logged = self.rows[0] if self.rows and len(self.rows) >= self.received else {}
        for name in filter(logged.__contains__, (*LOWEST, *VALIDATION)):
            values = [row[name] for row in self.rows]
            wandb_run.summary[name] = {"min": min(values), "last": values[-1]}
        if self.run.finished:
            wandb_run.summary.update({key: self.run.result[key] for key in RESULTS if key in self.run.result})
        if wandb_run.offline:
            wandb_run.finish(exit_code=exit_code)
        else:
            wandb_artifacts.send(self.run, wandb_run, self.timeout)
            finish_online(wandb_run, self.run.folder, len(self.rows), exit_code)

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Start or resume the W&B run and log the rows it is missing."""
        mode = self.run.config.logger.mode
        if self.assigned and not self.assigned.is_for((place := place_of(self.run.folder, self.assigned)).id):
            say(f"W&B: logged to {place}, as before; {self.assigned.id}, which the agent has created, stays empty")
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
