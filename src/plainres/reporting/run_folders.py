"""Runs in the folders of studies: of several copies the one that counts, and whether its record is intact."""

import csv
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from plainres.errors import InputError
from plainres.reporting import evidence
from plainres.reporting.conditions import edited_classes
from plainres.reporting.table import ERRORS, VALIDATED
from plainres.runs.record import Run, State, folders_of

SIZES = ("steps", "batch_size", "parameters", "multiply_adds")


def relative_to(home: Path, folder: Path) -> str:
    """Return the path of a run's folder from that of its study, as a report names it."""
    return os.path.relpath(folder, home)


def unique_runs(
    read: Sequence[tuple[list[Run], list[tuple[Path, str]]]], home: Path
) -> tuple[list[Run], list[tuple[str, str]]]:
    """Return the distinct runs of several folders, and the unusable folders with their reasons.

    Of a run in several folders, the first that is finished counts, or else the first.
    """
    copies: defaultdict[str, list[Run]] = defaultdict(list)
    unused = [(relative_to(home, path), reason) for _, unusable in read for path, reason in unusable]
    for run in [run for of_folder, _ in read for run in of_folder]:
        copies[run.name].append(run)
    runs = []
    for of_run in copies.values():
        used = next((run for run in of_run if _is_usable(run)), of_run[0])
        runs.append(used)
        for run in of_run:
            if run is used:
                continue
            unused.append((relative_to(home, run.folder), _copy_of(used, run, relative_to(home, used.folder))))
    return runs, unused


def _copy_of(used: Run, run: Run, where: str) -> str:
    """Say that a run counts with its result in another folder, `where`, and whether the two are unlike."""
    reason = f"the same run as {where}"
    if _is_usable(run) and run.result["weights_sha256"] != used.result["weights_sha256"]:
        edited = edited_classes([used, run])
        reason += f", with another source of {', '.join(edited)}" if edited else ", with another result"
    return reason


def _is_usable(run: Run) -> bool:
    """Whether a run is finished and its record intact."""
    try:
        if run.finished:
            check_record(run)
    except InputError:
        return False
    return run.finished


def runs_in(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Return the distinct runs in a folder, and the subfolders that are not runs, or are duplicates of one.

    Raises:
        InputError: it is no folder of a study, holds no runs, or cannot be read.
    """
    if evidence.is_evidence(folder):
        return evidence.read(folder), []
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    if (folder / "config.yaml").exists():
        raise InputError(f"{folder} is a single run; give the folder of its study, {folder.resolve().parent}")
    by_name: dict[str, list[Run]] = {}
    unused: list[tuple[Path, str]] = []
    try:
        paths = list(folders_of(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    for path in paths:
        try:
            run = Run.read(path)
            by_name.setdefault(run.name, []).append(run)
        except InputError as error:
            unused.append((path, str(error).removeprefix(f"{path} is ").removeprefix(f"{path}/")))
    if not by_name:
        studies = [path.name for path, _ in unused if any(path.glob("*/config.yaml"))]
        if studies:
            raise InputError(
                f"{folder} holds the studies {', '.join(studies)}; give one, such as {folder / studies[0]}"
            )
        reasons = f" ({'; '.join(f'{path.name}: {reason}' for path, reason in unused)})" if unused else ""
        raise InputError(
            f"{folder} holds no runs{reasons}; give the folder of a study, runs/<study>, which `plainres train` creates"
        )
    runs = []
    for name, copies in by_name.items():
        run = max(copies, key=lambda copy: (_is_usable(copy), copy.folder.name == name))
        runs.append(run)
        unused += [(copy.folder, _copy_of(run, copy, run.folder.name)) for copy in copies if copy is not run]
    return runs, unused


def check_record(run: Run) -> None:
    """Check that the result of a finished run is complete and matches its configuration and curves.

    Raises:
        InputError: it does not.
    """
    result = run.result
    try:
        *recorded, _ = [result[key] for key in ("shortcut", "depth", "seed", "data_sha256")]
        expected = [key for key in (*ERRORS, *SIZES) if key not in VALIDATED or result.get(key) is not None]
        non_finite = [key for key in expected if not math.isfinite(result[key])]
    except (KeyError, TypeError) as error:
        raise InputError(f"result.json is damaged ({error!r}); delete it and train the run again") from error
    if non_finite:
        raise InputError(
            f"result.json is damaged ({', '.join(non_finite)} not finite); delete it and train the run again"
        )
    configured = [run.config.shortcut, run.config.model["depth"], run.config.seed]
    # an older version did not record the name, or named the run, and so its folder, otherwise
    if result.get("name", run.name) not in (run.name, run.folder.name):
        recorded, configured = result["name"], run.name
    if recorded != configured:
        raise InputError(
            f"result.json is of the run {recorded}, but config.yaml of {configured}; delete result.json and train the "
            "run again"
        )
    steps = _last_step(run)
    if steps != result["steps"]:
        raise InputError(
            f"metrics.csv ends at step {steps:g}, but result.json at {result['steps']}; delete result.json and train "
            "the run again"
        )


def _last_step(run: Run) -> float:
    """Return the last step in metrics.csv, or 0 if it is empty.

    Raises:
        InputError: metrics.csv is damaged, or cannot be read.
    """
    try:
        rows = [(row["step"], row["train/error"], row["test/error"]) for row in run.curve()]
    except OSError as error:
        raise InputError(f"metrics.csv cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"metrics.csv is damaged ({error!r}); train the run again") from error
    return rows[-1][0] if rows else 0


def progress_of(run: Run) -> str:
    """Return the state of a run without a result, in the words of `plainres status`, and the reason or its step."""
    try:
        state = run.state
        step = run.step
    except OSError as error:
        return f"{Path(error.filename or run.folder).name} cannot be read: {error.strerror}"
    if state is State.FAILED:
        return f"{state.value}: {run.failure}"
    try:
        _last_step(run)
    except InputError as error:
        return f"{state.value}: {error}"
    return f"{state.value} at step {step}" if step else state.value
