"""A run's record on disk and its state.

A run's folder is a function of its configuration alone, `<runs>/<study>/<name>` (see `plainres.runs.identity`), and
holds

    config.yaml    the resolved configuration
    metrics.csv    the curves, a row for each epoch
    checkpoints/   step-<number>.ckpt
    log.txt        what a run of a sweep would have printed
    lock           held by the process that trains the run, and by the operating system freed when that ends
    failed.json    why the run cannot be ended; repeated only if asked for
    result.json    written last, and at once: a run that has one is finished
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from plainres.config.schema import Config
from plainres.errors import InputError, LockedError, first_line
from plainres.files import read_rows, write_atomically
from plainres.runs.identity import complete, flat, run_name

REPORT = "report"  # the folder among the runs that holds their report


class State(Enum):
    """How far a run is."""

    FINISHED = "finished"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True)
class Saved:
    """A checkpoint from which a run resumes; without a file, the beginning of the run."""

    path: Path | None = None
    step: int = 0
    elapsed_s: float = 0.0  # of training and evaluation, all attempts together
    attempts: list[dict[str, Any]] = field(default_factory=list)  # from which step, and their conditions
    rows: list[dict[str, float]] = field(default_factory=list)  # the curves up to here


@dataclass(frozen=True)
class Run:
    """A run: its configuration and its folder."""

    config: Config
    folder: Path

    @classmethod
    def of(cls, config: Config) -> "Run":
        """The run that a configuration describes; nothing is touched on disk."""
        return cls(config, Path(config.runs) / config.study / run_name(config))

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The run kept in a folder.

        Raises:
            InputError: the folder has no readable config.yaml.
        """
        file = folder / "config.yaml"
        try:
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file)))
            assert isinstance(config, Config)
            _ = config.shortcut, config.data["_target_"], config.model["_target_"]
        except OSError as error:
            lacking = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
            reason = lacking if isinstance(error, FileNotFoundError) else f"config.yaml: {error.strerror}"
            raise InputError(f"{folder} is not the folder of a run: {reason}") from error
        except Exception as error:
            raise InputError(
                f"{file} is damaged, or of another version of plainres ({first_line(error)}); "
                "move its folder away and repeat the command that trained the run"
            ) from error
        return cls(config, folder)

    @classmethod
    def read_finished(cls, folder: Path) -> "Run":
        """The finished run kept in a folder.

        Raises:
            InputError: as `read`; the run is not finished, or its record is damaged.
        """
        run = cls.read(folder)
        if not (run.finished and run.result):
            raise InputError(f"{folder} is not finished; the command that trains it goes on")
        return run

    @property
    def name(self) -> str:
        """The readable name, a function of the configuration."""
        return run_name(self.config)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def log(self) -> Path:
        """The file that takes what a run of a sweep prints."""
        return self.folder / "log.txt"

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and left its result."""
        return (self.folder / "result.json").exists()

    @cached_property
    def result(self) -> dict[str, Any]:
        """The record of a finished run.

        Raises:
            InputError: result.json is damaged.
        """
        file = self.folder / "result.json"
        try:
            record = json.loads(file.read_text())
            if missing := {"train_error", "train_error_eval", "test_error", "weights_sha256"} - record.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except (ValueError, AttributeError) as error:
            raise InputError(f"{file} is damaged ({error}); delete it and repeat the run") from error
        return record

    def curve(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, empty if there are none yet."""
        file = self.folder / "metrics.csv"
        if not file.exists():
            return []
        return [{key: float(value) for key, value in row.items()} for row in read_rows(file)]

    @property
    def observed_by(self) -> list[str]:
        """The names of the probes that have found something."""
        return sorted(file.stem for file in (self.folder / "probes").glob("*.csv"))

    def probe_rows(self, probe: str) -> list[dict[str, str]]:
        """Return the rows of probes/<probe>.csv, none if there is no such file."""
        file = self.folder / "probes" / f"{probe}.csv"
        return read_rows(file) if file.exists() else []

    @property
    def trouble_file(self) -> Path:
        """Path of a one-line file that explains why the last upload to W&B is incomplete."""
        return self.folder / "wandb" / "trouble"

    @property
    def state(self) -> State:
        """How far the run is, from its folder.

        Raises:
            InputError: its record is damaged.
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
        """The steps done at the newest checkpoint."""
        return max((int(path.stem.removeprefix("step-")) for path in self.checkpoints.glob("step-*.ckpt")), default=0)

    def newest(self) -> Saved:
        """Return the checkpoint with the most steps that can be read; report and skip damaged ones.

        Raises:
            InputError: the checkpoint belongs to another run.
        """
        import torch

        for path in sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True):
            try:
                state = torch.load(path, weights_only=True, map_location="cpu")
                name = state["run"]
                saved = Saved(path, state["global_step"], state["elapsed_s"], state["attempts"], state["rows"])
            except Exception as error:  # whatever a damaged file makes of the unpickler
                kind = type(error).__name__
                print(f"{path} is damaged, or no checkpoint of plainres, and passed over ({kind})", file=sys.stderr)
                continue
            if name != self.name:
                raise InputError(f"{path} is a checkpoint of another run, {name}; move it away")
            return saved
        return Saved()

    @property
    def failure(self) -> str | None:
        """Why the run has failed, None if it has not."""
        try:
            return str(json.loads((self.folder / "failed.json").read_text())["reason"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError):
            return "failed.json is damaged"

    def fail(self, reason: str) -> None:
        """Mark the run as failed."""
        write_atomically(self.folder / "failed.json", json.dumps({"reason": reason, "step": self.step}) + "\n")

    @property
    def locked(self) -> bool:
        """Whether a process trains the run."""
        if not (self.folder / "lock").exists():
            return False
        try:
            with FileLock(self.folder / "lock", timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one process that trains the run. The operating system frees the lock when this ends, however it ends.

        Raises:
            LockedError: another one is.
        """
        owner = self.folder / "owner.json"
        try:
            with FileLock(self.folder / "lock", timeout=1):  # longer than a look at `locked` takes
                write_atomically(owner, json.dumps({"host": platform.node(), "process": os.getpid()}) + "\n")
                for stale in self.checkpoints.glob("*.tmp-*"):  # which only the owner of the lock writes
                    stale.unlink(missing_ok=True)
                try:
                    yield
                finally:
                    owner.unlink(missing_ok=True)
        except Timeout as error:
            try:
                process = "process {process} on {host}".format(**json.loads(owner.read_text()))
            except (OSError, ValueError, KeyError):
                process = "another process"
            raise LockedError(f"{self.folder} is being trained by {process}; wait for it, or stop it first") from error

    def prepare(self) -> None:
        """Make the folder and write config.yaml.

        Raises:
            InputError: the folder cannot be written, or holds a run of another configuration.
        """
        if (self.folder / "config.yaml").is_file():
            old, new = (flat(complete(run.config)) for run in (Run.read(self.folder), self))
            differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            if differing:
                keys = ", ".join(f"{key} {old.get(key)} (asked for {new.get(key)})" for key in differing)
                raise InputError(f"{self.folder} holds a run of another configuration: {keys}; move it away")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.config)))
        except OSError as error:
            raise InputError(
                f"cannot write the run's folder {self.folder}: {error.strerror}; set runs=FOLDER"
            ) from error

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which makes the run a finished one."""
        write_atomically(self.folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")


def folders_of(runs: Path) -> Iterator[Path]:
    """The folders directly in a study's folder, without its report and hidden ones, in the order of their names."""
    for path in sorted(runs.iterdir()):
        if path.is_dir() and path.name != REPORT and not path.name.startswith("."):
            yield path
