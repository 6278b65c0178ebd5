"""The Weights & Biases logger: one W&B run for each run, however often that is interrupted; never in its way.

The rows of an attempt are on disk, in the run's folder, before they are sent anywhere (see
`plainres.tracking.wandb_files`). When a run resumes offline, it logs the rows that no earlier attempt has logged, or
that one has lost. Online, the server says how many rows it has: the first ones of metrics.csv, and it gets the others.
"""

import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from plainres.config.schema import Config
from plainres.console import say
from plainres.errors import first_line
from plainres.files import write_atomically
from plainres.runs.identity import complete
from plainres.runs.record import Run
from plainres.tracking.loggers import RunLogger
from plainres.tracking.wandb_files import STEP, attempts

INIT_TIMEOUT = 10  # seconds to wait for the server before a run
FINISH_TIMEOUT = 20  # seconds, after it, for the server to take the rest
COUNT_TIMEOUT = 5  # seconds for the server to have counted what it has taken
LOWEST = ("train/loss", "train/error", "test/loss", "test/error")  # whose least value is shown beside the last
LATEST = ("epoch", "lr")
RESULTS = ("train_error_eval", "test_error", "parameters", "multiply_adds", "weights_sha256")  # of result.json


def settings(timeout: float | None = None) -> dict[str, Any]:
    """Settings for the W&B client: silent, no system monitoring, frequent flushes, bounded timeouts.

    A new one for each run: the client writes the run's name into it. `timeout`: seconds to wait for the server before a
    run, and again after it; by default INIT_TIMEOUT and FINISH_TIMEOUT.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its telemetry would wait for a dead network, offline too
    return {
        "silent": True,
        "console": "off",  # what is printed is ours
        "x_disable_stats": True,  # a process that watches the machine
        "x_save_requirements": False,  # 0.1 s for each run; result.json has the versions
        "x_transaction_log_flush_interval": 2.0,  # seconds; what a killed process has not written is logged again
        "init_timeout": timeout or INIT_TIMEOUT,
        "finish_timeout": timeout or FINISH_TIMEOUT,
        "finish_timeout_raises": True,
    }


def wandb_id(folder: Path) -> str:
    """The id of the W&B run that belongs to a folder, kept in it: a run that begins anew elsewhere is another one."""
    file = folder / "wandb" / "id"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{secrets.token_hex(4)}\n")
    return file.read_text().strip()


def start(folder: Path, mode: str, timeout: float | None = None, **options: Any) -> Any:
    """Begin a session of the W&B run that belongs to `folder`, or go on with it; `options` are `wandb.init`'s.

    Raises:
        Exception: whatever the client raises if the server or the key is not as it should be.
    """
    made = settings(timeout)
    options |= {"dir": folder, "mode": mode, "id": wandb_id(folder), "resume": "allow"}
    import wandb

    stdin = sys.stdin
    with Path(os.devnull).open() as nobody:
        sys.stdin = nobody  # nobody is asked for a key
        try:
            wandb.setup(wandb.Settings(silent=True))
            return wandb.init(**options, settings=wandb.Settings(**made))
        finally:
            sys.stdin = stdin


def finish_sent(session: Any, folder: Path, rows: int, exit_code: int = 0) -> None:
    """Finish an online session; if the server then has `rows` rows of the run, all sessions in `folder` are sent.

    The client says nothing when the server has refused its rows for good, so the server is asked.

    Raises:
        NotTakenError: it has fewer.
        Exception: whatever the client raises, TimeoutError if there is no answer.
    """
    import wandb

    place = f"{session.entity}/{session.project}/{session.id}"
    session.finish(exit_code=exit_code)
    end = time.monotonic() + COUNT_TIMEOUT
    while (found := wandb.Api(timeout=COUNT_TIMEOUT).run(place).history_line_count or 0) < rows:
        if time.monotonic() > end:
            raise NotTakenError(f"the server has {found} of {rows} rows")
        time.sleep(0.2)
    for each in attempts(folder):
        each.mark_sent()


class NotTakenError(Exception):
    """The server has not taken all rows."""


def abandon() -> None:
    """Let the client's process go, whatever state it is in; the next session starts another one."""
    import wandb

    with suppress(Exception):
        wandb.teardown()


def shown(run: Run) -> dict[str, Any]:
    """The configuration of a run as W&B gets it: plain nested values, with the name of the shortcut on top."""
    config, parts = run.config, complete(run.config)
    options = {group: name for group, name in config.options.items() if group.partition("/")[0] in parts}
    return {**parts, "shortcut": config.shortcut, "study": config.study, "options": options}


def tags(config: Config) -> list[str]:
    """What to find a run by: shortcut, depth, data, and whatever was asked for."""
    return list(
        dict.fromkeys([config.shortcut, f"depth-{config.model['depth']}", config.options["data"], *config.logger.tags])
    )


class WandbLogger(RunLogger):
    """Shows a run in W&B.

    If the server cannot be reached, or does not take what it gets, there is one line about it, the run goes on, and
    what was not sent is on disk for `plainres wandb-sync`.
    """

    def __init__(self, run: Run, timeout: float | None = None) -> None:
        super().__init__()
        self.run, self.timeout = run, timeout
        self.session: Any = None  # W&B's run while there is one
        self.told: set[int] = set()  # offline, the steps of the rows that earlier sessions have
        self.arrived = 0  # online, how many rows the server has had from them
        self.rows: list[Mapping[str, float]] = []  # all of the run's
        self.warned = False

    @property
    def name(self) -> str:
        """The project's name."""
        return self.run.config.logger.project

    def connect(self, mode: str) -> None:
        """Begin a session, and find what earlier ones have logged, or, online, what has arrived.

        Raises:
            Exception: whatever the client raises if the server or the key is not as it should be.
        """
        config = self.run.config
        before = attempts(self.run.folder)
        session = start(
            self.run.folder,
            mode,
            self.timeout,
            project=config.logger.project,
            entity=config.logger.entity,
            name=self.run.name,
            group=config.study,
            job_type="train",
            tags=tags(config),
            config=shown(self.run),
        )
        for names, summary in ((LOWEST, "min,last"), (LATEST, "last")):
            for name in names:
                session.define_metric(name, step_metric=STEP, summary=summary)
        here = Path(session.dir).parent.name
        # sessions that begin in the same second have one folder, and the later one's rows
        before = [each for each in before if each.folder.name != here]
        for each in before:
            if not each.id:
                each.mark_sent()  # killed before its first word, or damaged; `wandb sync` would stumble over it
        self.told = {step for each in before for step in each.steps} if session.offline else set()
        self.arrived = session.starting_step  # the number of the first row that it lacks; offline 0
        self.session = session

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log a row, unless W&B has one of this step.

        Raises:
            Exception: whatever the client raises.
        """
        self.rows.append(row)
        if self.session is not None and len(self.rows) > self.arrived and step not in self.told:
            self.session.log({**row, STEP: step})

    def finish(self, exit_code: int) -> None:
        """Finish the session; online, all sessions are then known to be sent.

        Raises:
            NotTakenError: the server has not taken everything.
            Exception: whatever the client raises.
        """
        session, self.session = self.session, None
        if session is None:
            return
        for name in LOWEST if self.rows else ():  # of all sessions, not only of this one
            values = [row[name] for row in self.rows]
            session.summary[name] = {"min": min(values), "last": values[-1]}
        if self.run.finished:
            session.summary.update({key: self.run.result[key] for key in RESULTS})
        if session.offline:
            session.finish(exit_code=exit_code)
        else:
            finish_sent(session, self.run.folder, len(self.rows), exit_code)

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Go on with the run's W&B run, or begin one; log what it lacks."""
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
                abandon()  # else it holds that the run is in use
                self.connect("offline")
        except Exception as error:
            self._warn("cannot be used", error)
        for row in rows:
            self.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log a row."""
        assert step is not None
        try:
            self.log(metrics, step)
        except Exception as error:
            self._warn("takes no more rows", error)
            self.session = None
            abandon()

    def end(self, exit_code: int) -> None:
        """Finish the session: W&B shows the run as finished, or as failed."""
        try:
            self.finish(exit_code)
        except Exception as error:
            self._warn("has not taken everything", error)
            abandon()

    def _warn(self, what: str, error: Exception) -> None:
        """Say it once: what follows is the same trouble."""
        if not self.warned:
            trouble = f"W&B {what} ({first_line(error).removesuffix('.') or type(error).__name__})"
            say(f"{trouble}; the run goes on, and `plainres wandb-sync {self.run.folder}` sends it later")
            with suppress(OSError):
                write_atomically(self.run.trouble_file, trouble)
        self.warned = True
