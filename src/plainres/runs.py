"""What identifies a run, where it lives, its record on disk, its state.

A run is identified by what determines its result: model, data, recipe, seed, precision. Its folder is a function of its
configuration alone, `<runs>/<study>/<shortcut>-<depth>-w<width>-s<seed>-<hash of the identity>`, and holds

    config.yaml    the resolved configuration
    metrics.csv    the curves, a row for each epoch
    checkpoints/   step-<number>.ckpt
    log.txt        what a run of a sweep would have printed
    lock           held by the process that trains the run, and by the operating system freed when that ends
    failed.json    why the run cannot be ended; repeated only if asked for
    result.json    written last, and at once: a run that has one is finished
"""

import csv
import hashlib
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from plainres.config import Config
from plainres.errors import InputError, LockedError, first_line

NOT_IDENTITY = {"data": ("path", "cache"), "model": ("weights",)}  # where these are found, not which they are
# Keys that came later, with what they mean for runs that were named without them: so these keep their names.
_BATCH_NORM = {"_target_": "torch.nn.BatchNorm2d", "_partial_": True}
LATER: dict[str, Any] = {
    "model.block": {
        "_target_": "plainres.blocks.Design",
        "kernels": [3, 3],
        "expansion": 1,
        "stride_in": 1,
        "bias": False,
        "order": {
            "_target_": "plainres.blocks.Order",
            "before": [],
            "between": ["norm", "relu"],
            "behind": ["norm"],
            "joined": ["relu"],
            "stem": ["norm", "relu"],
            "tail": [],
        },
    },
    "model.norm": _BATCH_NORM,
    "model.shortcut.norm": _BATCH_NORM,
    "model.init": {"_target_": "plainres.initialisation.he_fan_out", "_partial_": True},
    "model.stages": 3,
    "model.stem_width": None,
    "data.mean": None,
    "data.std": None,
    "data.stored": None,
    "data.test_split": "test",
}
REPORT = "report"  # the folder among the runs that holds their report


def identity(config: Config) -> dict[str, Any]:
    """What determines the result of a run, as plain nested values."""
    parts = asdict(config)
    parts = {key: parts[key] for key in ("model", "data", "optim", "seed", "precision")}
    for group, keys in NOT_IDENTITY.items():
        parts[group] = {key: value for key, value in parts[group].items() if key not in keys}
    if config.weights_sha256:
        parts["model"]["weights_sha256"] = config.weights_sha256
    return parts


def _without_later(parts: dict[str, Any], key: str = "") -> dict[str, Any]:
    """Nested values without those of LATER that are as they were before there was a choice."""
    kept = {}
    for name, value in parts.items():
        path = f"{key}.{name}".lstrip(".")
        if path not in LATER or value != LATER[path]:
            kept[name] = _without_later(value, path) if isinstance(value, dict) else value
    return kept


def run_name(config: Config) -> str:
    """A readable name, unique by the first 8 hexadecimal digits of the identity's SHA-256."""
    canonical = json.dumps(_without_later(identity(config)), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    model = config.model
    return f"{config.shortcut}-{model['depth']}-w{model['width']}-s{config.seed}-{digest}"


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that will be there whole or not at all, also after a crash."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text that will be there whole or not at all."""
    with atomically(path) as file:
        file.write(text.encode())


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file but for a last one that is still being written."""
    whole = file.read_text().splitlines(keepends=True)
    if whole and not whole[-1].endswith("\n"):
        whole.pop()
    return list(csv.DictReader(whole))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns, at least one -> the text of a CSV file."""
    file = io.StringIO()
    table = csv.DictWriter(file, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Nested dictionaries -> {"optim.lr": "0.05"}."""
    if not isinstance(value, dict):
        return {key: str(value)}
    return {k: v for name, part in value.items() for k, v in flat(part, f"{key}.{name}".lstrip(".")).items()}


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
            run_name(config)
        except OSError as error:
            lacking = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
            reason = lacking if isinstance(error, FileNotFoundError) else f"config.yaml: {error.strerror}"
            raise InputError(f"{folder} is not the folder of a run: {reason}") from error
        except Exception as error:
            raise InputError(
                f"{file} is damaged ({first_line(error)}); delete it and repeat the command that trained the run"
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
    def trouble_file(self) -> Path:
        """Which says, in a line, why W&B has not got everything of the last session, for those who look on."""
        return self.folder / "wandb" / "trouble"

    @property
    def step(self) -> int:
        """The steps done at the newest checkpoint."""
        return max((int(path.stem.removeprefix("step-")) for path in self.checkpoints.glob("step-*.ckpt")), default=0)

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
            found, wanted = (flat(identity(run.config)) for run in (Run.read(self.folder), self))
            differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            if differing:
                keys = ", ".join(f"{key} {found.get(key)} (asked for {wanted.get(key)})" for key in differing)
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
