"""Evidence of a study: a compact copy of its finished runs for a repository, sufficient to report on them.

A folder of evidence contains

    configs.yaml   the common part of the runs' configurations, and the rest of each one; why runs diverged
    results.csv    the result of each run, one row per run
    curves.csv     the curves, at most ROWS rows per run
    probes/        the measurements of the runs' probes, one file per probe
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from plainres.config.schema import Config
from plainres.errors import InputError, first_line
from plainres.files import csv_text, read_rows, write_atomically
from plainres.runs.record import Run

CONFIGS, RESULTS, CURVES = "configs.yaml", "results.csv", "curves.csv"
ROWS = 1000  # maximum per run in curves.csv
DIGITS = 6  # significant digits in curves.csv
# Replaces the paths of one machine: the locations of the images and of the initial weights.
PORTABLE = {"data": {"path": None, "cache": "~/.cache/plainres"}, "model": {"weights": None}}
COLUMNS = (  # of results.csv
    *("folder", "study", "family", "shortcut", "depth", "width", "seed"),
    *("train_error_eval", "train_loss_eval", "train_error", "train_loss", "test_error", "test_loss"),
    *("best_test_error", "best_test_error_epoch"),
    *("train_error_steps", "steps", "epochs", "batch_size", "parameters", "multiply_adds"),
    *("wall_time_s", "peak_memory_mib", "device", "devices", "threads", "compile", "cuda_graph", "deterministic"),
    *("sync_batch_norm", "precision", "attempts", "git_commit", "source_sha256", "weights_sha256", "data_sha256"),
    "versions",
)
VALIDATED = (  # further columns, if there are runs with a validation set
    *("validation_error", "validation_loss", "best_validation_error", "best_validation_error_epoch"),
    "test_error_at_best_validation",
)


@dataclass(frozen=True)
class KeptRun(Run):
    """A run read from evidence, which has no folder of its own: a finished one, or one that diverged."""

    record: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[dict[str, float]] = ()
    observed: Mapping[str, Sequence[dict[str, str]]] = field(default_factory=dict)
    reason: str | None = None  # of a run that diverged

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.reason is None

    @property
    def failure(self) -> str | None:
        """Reason of the failure of a run that diverged."""
        return self.reason

    @cached_property
    def result(self) -> dict[str, Any]:
        """Row of results.csv."""
        return dict(self.record)

    def curve(self) -> list[dict[str, float]]:
        """Return the rows of curves.csv."""
        return list(self.rows)

    @property
    def observed_by(self) -> list[str]:
        """Names of the probes with measurements."""
        return sorted(self.observed)

    def probe_rows(self, probe: str) -> list[dict[str, str]]:
        """Return the measurements of a probe."""
        return list(self.observed.get(probe, ()))


def is_evidence(folder: Path) -> bool:
    """Whether a folder contains evidence instead of runs."""
    return (folder / CONFIGS).is_file()


def read(folder: Path) -> list[Run]:
    """Read the runs from a folder of evidence.

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        configs: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIGS))
        results = {row["folder"]: row for row in read_rows(folder / RESULTS)}
        curves = _by_run(folder / CURVES)
        probes = {file.stem: _by_run(file) for file in sorted((folder / "probes").glob("*.csv"))}
        runs = []
        common = OmegaConf.merge(OmegaConf.structured(Config), configs["common"])
        for name, own in configs["runs"].items():
            config = OmegaConf.to_object(OmegaConf.merge(common, own))
            assert isinstance(config, Config)
            if Run.of(config).name != name:
                raise ValueError(f"{CONFIGS} describes {Run.of(config).name} under the name {name}")
            if name in configs.get("diverged", {}):
                runs.append(KeptRun(config, folder / name, reason=configs["diverged"][name]))
                continue
            record = {key: _value(text) for key, text in results[name].items()}
            record["versions"] = dict(each.split(" ", 1) for each in str(record["versions"] or "").split("; ") if each)
            rows = [{key: float(text) for key, text in row.items() if text} for row in curves[name]]
            observed = {probe: of_run[name] for probe, of_run in probes.items() if name in of_run}
            runs.append(KeptRun(config, folder / name, record, rows, observed))
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything in its parser
        raise InputError(f"{folder} is damaged evidence: {first_line(error) or type(error).__name__}") from error
    return runs


def write(runs: Iterable[tuple[str, Run]], folder: Path, diverged: Sequence[Run] = ()) -> list[tuple[str, str]]:
    """Write the evidence of finished runs.

    Args:
        runs: the runs, each with the label of its family.
        folder: the folder to write.
        diverged: runs that diverged, of which configuration and reason are kept.

    Returns:
        The folders of runs with a damaged probe file, which is left out, and the reason.

    Raises:
        OSError: the folder cannot be written.
    """
    labelled = list(runs)
    reasons = {run.name: run.failure for run in diverged}
    configs = {run.name: _portable(run.config) for run in (*(run for _, run in labelled), *diverged)}
    common = _common(list(configs.values()))
    own = {name: _without(config, common) for name, config in configs.items()}
    kept = {"common": common, "runs": own} | ({"diverged": reasons} if reasons else {})
    write_atomically(folder / CONFIGS, OmegaConf.to_yaml(OmegaConf.create(kept)))
    write_atomically(folder / RESULTS, csv_text(results(labelled)))
    curves = [{"run": run.name, **_rounded(row)} for _, run in labelled for row in thinned(run.curve(), ROWS)]
    write_atomically(folder / CURVES, csv_text(curves))
    damaged = []
    for file in (folder / "probes").glob("*.csv"):  # of an earlier report, whose runs may have been trained anew
        file.unlink()
    for probe in sorted({name for _, run in labelled for name in run.observed_by}):
        rows: list[dict[str, str]] = []
        for _, run in labelled:
            try:
                own = [{"run": run.name, **row} for row in run.probe_rows(probe)]
                columns = {tuple(row) for row in [*rows[:1], *own]}
                if len(columns) > 1 or any(None in (*row, *row.values()) for row in own):
                    raise ValueError("rows have different columns")
            except (OSError, ValueError, csv.Error) as error:
                damaged.append((run.folder.name, f"probes/{probe}.csv is damaged ({error!r}) and not drawn"))
            else:
                rows += own
        if rows:
            (folder / "probes").mkdir(exist_ok=True)
            write_atomically(folder / "probes" / f"{probe}.csv", csv_text(rows))
    return damaged


def results(runs: Iterable[tuple[str, Run]]) -> list[dict[str, Any]]:
    """Return the rows of results.csv for finished runs, each given with the label of its family."""
    rows = []
    for label, run in runs:
        versions = "; ".join(f"{name} {version}" for name, version in run.result.get("versions", {}).items())
        record = run.result | {"folder": run.name, "family": label, "versions": versions}
        record |= {"precision": run.config.precision, "attempts": json.dumps(run.result.get("attempts"))}
        rows.append({column: record.get(column) for column in (*COLUMNS, *VALIDATED)})
    if not any(row["validation_error"] is not None for row in rows):
        rows = [{column: row[column] for column in COLUMNS} for row in rows]
    return rows


def thinned(rows: Sequence[dict[str, float]], max_rows: int) -> list[dict[str, float]]:
    """Return at most `max_rows` evenly spaced rows, including the last one."""
    n = min(max_rows, len(rows))
    return [rows[-1 - (n - 1 - i) * (len(rows) - 1) // max(n - 1, 1)] for i in range(n)]


def _rounded(row: Mapping[str, float]) -> dict[str, str]:
    return {
        key: f"{value:.{DIGITS}g}" if key not in ("epoch", "step") else f"{value:.0f}" for key, value in row.items()
    }


def _portable(config: Config) -> dict[str, Any]:
    """Convert a configuration to nested values, without the paths of one machine."""
    values = asdict(config)
    for group, replacements in PORTABLE.items():
        values[group] |= {key: value for key, value in replacements.items() if key in values[group]}
    return values | {"runs": "runs"}


def _common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the nested values that all configurations share."""
    common = {}
    for key, value in configs[0].items():
        values = [config[key] for config in configs if key in config]
        if len(values) < len(configs):
            continue
        if all(isinstance(each, dict) for each in values):
            common[key] = _common(values)
        elif all(each == value for each in values):
            common[key] = value
    return common


def _without(config: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested values of a configuration that are not in `common`."""
    own = {}
    for key, value in config.items():
        if isinstance(value, dict) and key in common:
            value = _without(value, common[key])  # noqa: PLW2901
            if value:
                own[key] = value
        elif key not in common:
            own[key] = value
    return own


def _by_run(file: Path) -> dict[str, list[dict[str, str]]]:
    by_run: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(file):
        by_run.setdefault(row.pop("run"), []).append(row)
    return by_run


def _value(text: str) -> Any:
    """Parse a cell of results.csv."""
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
