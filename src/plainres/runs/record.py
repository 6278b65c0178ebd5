"""Record of a run on disk, and its state.

The folder of a run depends only on its configuration: `<runs>/<study>/<name>` (see `plainres.runs.identity`). It
contains

    config.yaml    the resolved configuration
    data.json      digest of the images and targets, and names of the classes, from the first step
    code.json      version of plainres and digests of the user's own classes, from the first step
    metrics.csv    the curves, one row per epoch
    checkpoints/   step-<number>.ckpt, with nine digits
    log.txt        the output of a run of a sweep
    lock           held by the process that trains the run, released by the operating system when that exits
    owner.json     host and number of that process
    progress.json  its step and speed
    warning        of the process that trains the run, for the screen of its sweep
    failed.json    the reason of a failure; the run is trained again only on request
    result.json    written last and atomically; its presence marks a finished run
    .earlier-1/    what was left of earlier weights or images when the run began anew (see `plainres.runs.anew`)

Files with other names, such as copies, are not read, changed or deleted.
"""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from plainres.config.schema import Config
from plainres.console import say
from plainres.errors import InputError, LockedError, first_line
from plainres.files import checkpoints_in, read_rows, unfinished_checkpoints_in, write_atomically
from plainres.locks import HeldError, held, is_held
from plainres.runs.code import code_of
from plainres.runs.identity import complete, flat, run_name

DIVERGED = "the run has diverged"  # begins the reason of such a failure
REPORT = "report"  # folder for the report, beside those of the runs
DATA = "data.json"
CODE = "code.json"


class State(Enum):
    """State of a run."""

    FINISHED = "finished"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True)
class Run:
    """A run: its configuration and its folder."""

    config: Config
    folder: Path

    @classmethod
    def of(cls, config: Config) -> "Run":
        """Return the run of a configuration, without accessing the disk."""
        return cls(config, Path(config.runs) / config.study / run_name(config))

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read the run in a folder.

        Raises:
            InputError: the folder has no readable config.yaml.
        """
        file = folder / "config.yaml"
        try:
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file)))
            assert isinstance(config, Config)
            _ = config.shortcut, config.data["_target_"], config.model["_target_"]
        except OSError as error:
            absent = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
            reason = absent if isinstance(error, FileNotFoundError) else f"config.yaml: {error.strerror}"
            inside = next(folder.glob("[!.]*/config.yaml"), None)
            runs = f"; it holds runs, such as {inside.parent}" if inside else ""
            raise InputError(f"{folder} is not the folder of a run: {reason}{runs}") from error
        except Exception as error:
            raise InputError(
                f"{file} is damaged, or of another version of plainres ({first_line(error)}); "
                "move its folder away and run the command that trained it again"
            ) from error
        return cls(config, folder)

    @classmethod
    def read_finished(cls, folder: Path) -> "Run":
        """Read the finished run in a folder.

        Raises:
            InputError: as `read`; or the run is not finished, or its record is damaged.
        """
        run = cls.read(folder)
        if not (run.finished and run.result):
            raise InputError(f"{folder} is not finished; run the command that trains it again to resume")
        return run

    @cached_property
    def name(self) -> str:
        """Readable name, which depends only on the configuration."""
        return run_name(self.config)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def log(self) -> Path:
        """File for the output of a run of a sweep."""
        return self.folder / "log.txt"

    @property
    def finished(self) -> bool:
        """Whether the run has written its result."""
        return (self.folder / "result.json").exists()

    @cached_property
    def result(self) -> dict[str, Any]:
        """Result of a finished run.

        Raises:
            InputError: result.json is damaged, or cannot be read.
        """
        file = self.folder / "result.json"
        try:
            record = json.loads(file.read_text())
            if missing := {"train_error", "train_error_eval", "test_error", "weights_sha256"} - record.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError) as error:
            raise InputError(f"{file} is damaged ({error}); delete it and repeat the training command") from error
        return record

    def curve(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv, an empty list before the first epoch."""
        file = self.folder / "metrics.csv"
        if not file.exists():
            return []
        return [{key: float(value) for key, value in row.items()} for row in read_rows(file)]

    @property
    def observed_by(self) -> list[str]:
        """Names of the run's probes, each of which may have written rows."""
        return sorted(self.config.probes)

    def probe_file(self, probe: str) -> Path:
        """Return the path of a probe's measurements; without rows, the network has nothing that the probe measures."""
        return self.folder / "probes" / f"{probe}.csv"

    def probe_rows(self, probe: str) -> list[dict[str, str]]:
        """Return the rows of probes/<probe>.csv, an empty list if the file does not exist."""
        file = self.probe_file(probe)
        return read_rows(file) if file.exists() else []

    @property
    def owner_file(self) -> Path:
        """Path of the file that names the process that trains the run, and exists while it does."""
        return self.folder / "owner.json"

    @property
    def progress_file(self) -> Path:
        """Path of the file with the step and speed of the process that trains the run, which exists while it does."""
        return self.folder / "progress.json"

    @property
    def warning_file(self) -> Path:
        """Path of a one-line file with the warning of the process that trains the run, which exists while it does."""
        return self.folder / "warning"

    def warn(self, text: str) -> None:
        """Print a warning of the process that trains the run, and keep it for the sweep that has started the process.

        Raises:
            OSError: it cannot be kept.
        """
        say(text)
        write_atomically(self.warning_file, text + "\n")

    @property
    def trouble_file(self) -> Path:
        """Path of a one-line file that explains why the last upload to W&B is incomplete."""
        return self.folder / "wandb" / "trouble"

    @property
    def state(self) -> State:
        """State of the run, from the files in its folder.

        Raises:
            InputError: the record is damaged.
        """
        if self.finished and self.result:
            return State.FINISHED
        if self.locked:
            return State.RUNNING
        if self.failure:
            return State.FAILED
        return State.INTERRUPTED if self.step else State.MISSING

    @property
    def step(self) -> int:
        """Number of steps at the newest checkpoint, 0 without one."""
        return max((int(path.stem.removeprefix("step-")) for path in checkpoints_in(self.checkpoints)), default=0)

    @property
    def failure(self) -> str | None:
        """Reason of the run's failure, None if it has not failed."""
        try:
            return str(json.loads((self.folder / "failed.json").read_text())["reason"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return f"failed.json cannot be read: {error.strerror}"
        except (ValueError, KeyError, TypeError):
            return "failed.json is damaged"

    @property
    def diverged(self) -> bool:
        """Whether the run has failed because its loss or its weights became infinite or NaN."""
        return (self.failure or "").startswith(DIVERGED)

    def fail(self, reason: str) -> None:
        """Mark the run as failed."""
        write_atomically(self.folder / "failed.json", json.dumps({"reason": reason, "step": self.step}) + "\n")

    @property
    def locked(self) -> bool:
        """Whether a process is training the run."""
        return is_held(self.folder / "lock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock that reserves the run for this process.

        The operating system releases the lock when the process exits, even if it is killed.

        Raises:
            LockedError: another process holds the lock.
            InputError: the file system rejects locks.
        """
        owner = self.owner_file
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.folder / "lock", timeout=1))  # `locked` holds the lock for an instant
            except HeldError as error:
                try:
                    process = "process {process} on {host}".format(**json.loads(owner.read_text()))
                except (OSError, ValueError, KeyError):
                    process = "another process"
                raise LockedError(f"{self.folder} is being trained by {process}; {error}") from error
            except OSError as error:
                raise InputError(
                    f"cannot lock {self.folder}: {error.strerror}; set runs=FOLDER to a folder that is writable, on a "
                    "file system with locks"
                ) from error
            self.progress_file.unlink(missing_ok=True)  # of an attempt that was killed
            write_atomically(owner, json.dumps({"host": platform.node(), "process": os.getpid()}) + "\n")
            for file in (owner, self.warning_file, self.progress_file):
                stack.callback(file.unlink, missing_ok=True)
            for unfinished in unfinished_checkpoints_in(self.checkpoints):
                unfinished.unlink(missing_ok=True)
            yield

    @property
    def data_sha256(self) -> str | None:
        """Digest of the images and targets that the run is trained on, None before its first step."""
        try:
            return str(json.loads((self.folder / DATA).read_text())["sha256"])
        except (OSError, ValueError, KeyError, TypeError):  # the result has it too
            return self.result.get("data_sha256") if self.finished else None

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the targets, None if they have numbers only, or are not known."""
        try:
            names = json.loads((self.folder / DATA).read_text())["class_names"]
        except (OSError, ValueError, KeyError, TypeError):  # an older version did not record them
            return None
        return [str(name) for name in names] if isinstance(names, list) else None

    @property
    def code(self) -> dict[str, Any]:
        """Code that the run began with (see `plainres.runs.code.code_of`), empty before its first step."""
        try:
            return dict(json.loads((self.folder / CODE).read_text()))
        except (OSError, ValueError, TypeError):  # an older version did not record it
            return {}

    def check_configuration(self) -> None:
        """Compare the configuration with that of the run in the folder, if there is one.

        Raises:
            InputError: they differ, or the other one is damaged.
        """
        if not (self.folder / "config.yaml").is_file():
            return
        old, new = (flat(complete(run.config)) for run in (Run.read(self.folder), self))
        if differing := sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)):
            keys = ", ".join(f"{key} is {old.get(key)} (requested: {new.get(key)})" for key in differing)
            raise InputError(f"{self.folder} contains a run of another configuration, where {keys}; move it away")

    def prepare(self) -> None:
        """Create the folder and write config.yaml, unless a process is training the run: that one has written it.

        Raises:
            InputError: the folder cannot be written, or contains a run of another configuration.
        """
        self.check_configuration()
        with self._writing():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if not self.locked:
                self._write(self.config)

    def begin(self, data_sha256: str, class_names: Sequence[str] | None = None) -> None:
        """Write config.yaml, data.json and code.json, and forget a failure. The caller holds the lock.

        Args:
            data_sha256: the digest of the images and targets.
            class_names: the names of the classes, if they have any.

        Raises:
            InputError: the folder cannot be written.
        """
        data = {"sha256": data_sha256, "class_names": None if class_names is None else list(class_names)}
        with self._writing():
            self._write(self.config)
            write_atomically(self.folder / DATA, json.dumps(data) + "\n")
            if not (self.code and self.step):
                write_atomically(self.folder / CODE, json.dumps(code_of(self.config), indent=2) + "\n")
            (self.folder / "failed.json").unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write the run's folder {self.folder}: {error.strerror}; set runs=FOLDER"
            ) from error

    def adopt_report_options(self) -> None:
        """Write the report options of this configuration into the folder of the finished run, whose result stays.

        Raises:
            InputError: the folder has no readable config.yaml, or cannot be written.
        """
        recorded = Run.read(self.folder).config
        if recorded.report == self.config.report:
            return
        try:
            self._write(replace(recorded, report=self.config.report))
        except OSError as error:
            raise InputError(f"cannot write {self.folder / 'config.yaml'}: {error.strerror}") from error

    def _write(self, config: Config) -> None:
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        write_atomically(self.folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")


def folders_of(runs: Path) -> Iterator[Path]:
    """Yield the subfolders of a study's folder, sorted by name, except the report and hidden ones."""
    for path in sorted(runs.iterdir()):
        if path.is_dir() and path.name != REPORT and not path.name.startswith("."):
            yield path
