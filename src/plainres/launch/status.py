"""Progress of the runs of a study, read from their folders, wherever they train."""

import csv
import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainres.console import aligned, duration, quantity, shortened, terminal_columns
from plainres.errors import InputError
from plainres.launch.active import is_active
from plainres.runs.record import Run, State, folders_of

# columns of the table; the training error is the running one, also that of a finished run
HEAD = ("run", "state", "step", "train (running)", "test", "images/s", "time left")
RUN, STATE, STEP, TRAIN, TEST, SPEED, LEFT = HEAD
DROPPED_FIRST = (SPEED, TRAIN, STEP)  # columns without which the table may fit into the terminal
UNREADABLE = "unreadable"  # a folder whose config.yaml is damaged, or which the user may not read
WAITING = "waiting"  # a missing run while a sweep of its study is active
STATES = (*(state.value for state in State), WAITING, UNREADABLE)
UNFINISHED = {State.RUNNING.value, State.INTERRUPTED.value, State.MISSING.value, WAITING}
WATCH_SECONDS = 2
QUIET_SECONDS = 30  # longer than the gap between two runs of a sweep


@dataclass(frozen=True)
class RunStatus:
    """State and progress of a run; None stands for a value that is unknown or does not apply.

    Args:
        name: the name of its folder.
        state: one of STATES.
        note: the reason of a failure, or the damage to the record.
        host: the machine that trains it, if that is another one.
        step: the step of its newest checkpoint, or, while it is running, its current step.
        steps: its length in steps.
        train_error: its last running training error in percent.
        test_error: its last test error in percent.
        images_per_s: the speed of its training.
        seconds_left: the time until it finishes, at this speed.
    """

    name: str
    state: str
    note: str = ""
    host: str | None = None
    step: int | None = None
    steps: int | None = None
    train_error: float | None = None
    test_error: float | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None

    @property
    def cells(self) -> dict[str, str]:
        """Cells of its row in the table, by column."""
        of = f" of {self.steps}" if self.state == State.RUNNING.value and self.steps is not None else ""
        return {
            RUN: self.name,
            STATE: f"{self.state} on {self.host}" if self.host else self.state,
            STEP: f"{self.step}{of}" if self.step or of else "",
            TRAIN: "" if self.train_error is None else f"{self.train_error:.2f} %",
            TEST: "" if self.test_error is None else f"{self.test_error:.2f} %",
            SPEED: "" if self.images_per_s is None else f"{self.images_per_s:,.0f}",
            LEFT: "" if self.seconds_left is None else duration(self.seconds_left),
        }


@dataclass(frozen=True)
class StudyStatus:
    """Runs of a study, the number of runs in each state, and the copies of runs: their folders and the runs' names."""

    folder: str
    runs: list[RunStatus]
    counts: dict[str, int]
    copies: dict[str, str]

    def __str__(self) -> str:
        notes = [f"{run.name}: {run.note}" for run in self.runs if run.note]
        notes += [f"{copy}: a copy of {name}, not counted" for copy, name in self.copies.items()]
        blocks = [
            _table(self.runs, terminal_columns(sys.stdout)),
            notes,
            [f"{self.folder}: {quantity(len(self.runs), 'run')} ({_listed(self.counts)})"],
        ]
        return "\n\n".join("\n".join(lines) for lines in blocks if lines)


@dataclass(frozen=True)
class StudiesStatus:
    """Number of runs in each state of each study, and the reasons why other studies cannot be read."""

    folder: str
    studies: dict[str, dict[str, int]]
    unreadable: dict[str, str]

    def __str__(self) -> str:
        rows = [[name, quantity(sum(counts.values()), "run"), _listed(counts)] for name, counts in self.studies.items()]
        return "\n".join([*aligned(rows), *(f"{name}: {reason}" for name, reason in self.unreadable.items())])

    @property
    def counts(self) -> Counter[str]:
        """Number of runs in each state, of all studies."""
        return sum(map(Counter, self.studies.values()), Counter())


def status(folder: Path) -> str:
    """Return a table of the runs in a study's folder, or of the studies in a folder of studies.

    The table drops columns to fit into the terminal. Below it are the reasons of failures, damaged and unreadable
    records, and copies of runs, which are not counted.

    Args:
        folder: the folder of a study, such as runs/digits, or of all studies, such as runs.

    Raises:
        InputError: the folder holds no runs, or cannot be read.
    """
    return str(read_status(folder))


def watch(folder: Path) -> None:
    """Print the status repeatedly until no unfinished run is left, or none has been running for QUIET_SECONDS.

    Raises:
        InputError: see `status`.
    """
    running_at = time.monotonic()
    while True:
        current = read_status(folder)
        print("\x1b[H\x1b[2J" * sys.stdout.isatty() + str(current), flush=True)
        if State.RUNNING.value in current.counts:
            running_at = time.monotonic()
        if not UNFINISHED & current.counts.keys() or time.monotonic() - running_at >= QUIET_SECONDS:
            return
        time.sleep(WATCH_SECONDS)


def read_status(folder: Path) -> StudyStatus | StudiesStatus:
    """Return the status of the runs in a study's folder, or of the studies in a folder of studies.

    Raises:
        InputError: see `status`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    try:
        runs, copies = _runs(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    # a study that cannot be read looks like a run
    studies, unread = _studies(folder) if all(run.state == UNREADABLE for run in runs) else ({}, {})
    if runs and not studies:
        return StudyStatus(str(folder), runs, _counts(runs), copies)
    if not studies:
        reasons = f" ({'; '.join(f'{name}: {reason}' for name, reason in unread.items())})" if unread else ""
        raise InputError(f"{folder} holds no runs{reasons}; give the folder of a study, such as runs/digits")
    return StudiesStatus(str(folder), studies, unread)


def _studies(folder: Path) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Return the number of runs in each state of each study in a folder, and why other studies cannot be read."""
    studies, unread = {}, {}
    for study in folders_of(folder):
        try:
            runs, _ = _runs(study)
        except OSError as error:
            unread[study.name] = f"cannot be read: {error.strerror}"
            continue
        if runs:
            studies[study.name] = _counts(runs)
    return studies, unread


def _table(runs: Sequence[RunStatus], width: int | None) -> list[str]:
    """Return the lines of the table, without empty columns, and within the width of the terminal if that is possible.

    The columns in DROPPED_FIRST are dropped one after the other, then the ends of the lines.
    """
    rows = [run.cells for run in runs]
    columns = [column for column in HEAD if any(cells[column] for cells in rows)]

    def lines() -> list[str]:
        return aligned([columns, *([cells[column] for column in columns] for cells in rows)])

    for dropped in DROPPED_FIRST:
        if width is None or max(map(len, lines())) <= width:
            break
        if dropped in columns:
            columns.remove(dropped)
    return lines() if width is None else [shortened(line, width) for line in lines()]


def _counts(runs: Sequence[RunStatus]) -> dict[str, int]:
    """Return the number of runs in each state that occurs, in the order of STATES."""
    numbers = Counter(run.state for run in runs)
    return {state: numbers[state] for state in STATES if state in numbers}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in counts.items())


def _runs(folder: Path) -> tuple[list[RunStatus], dict[str, str]]:
    """Return the status of each run of a study, and the copies of its runs: their folders and the runs' names.

    Raises:
        OSError: the folder cannot be read.
    """
    active = is_active(folder)
    runs, copies = [], {}
    for path in folders_of(folder):
        try:
            run = Run.read(path)
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # otherwise it is no run
                note = str(error).removeprefix(f"{path}/").removeprefix(f"{path} is ")
                runs.append(RunStatus(path.name, UNREADABLE, note))
            continue
        if run.name != path.name and (folder / run.name / "config.yaml").is_file():
            copies[path.name] = run.name
            continue
        try:
            runs.append(_of(run, active=active))
        except OSError as error:
            note = f"{Path(error.filename or path).name} cannot be read: {error.strerror}"
            runs.append(RunStatus(path.name, UNREADABLE, note))
    return runs, copies


def _of(run: Run, *, active: bool) -> RunStatus:
    """Return the status of a run.

    Raises:
        OSError: a file cannot be read.
    """
    name = run.folder.name
    try:
        state = run.state
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        return RunStatus(name, State.FAILED.value, "result.json is damaged")
    if state is State.FINISHED:
        result = run.result
        steps = result.get("steps")
        errors = {"train_error": result["train_error"], "test_error": result["test_error"]}
        return RunStatus(name, state.value, step=steps, steps=steps, **errors)
    # a run that was killed before its first checkpoint starts again, so its curve does not count
    until = run.step if state is State.INTERRUPTED else math.inf  # it will write later rows again
    errors, damage = _last_errors(run, until) if state is not State.MISSING else ({}, "")
    if state is State.RUNNING:
        progress = {"step": run.step} | _progress(run)
        return RunStatus(name, state.value, damage, _other_host(run), **progress, **errors)
    shown = WAITING if state is State.MISSING and active else state.value
    note = run.failure or "" if state is State.FAILED else damage
    return RunStatus(name, shown, note, step=run.step, **errors)


def _last_errors(run: Run, until: float) -> tuple[dict[str, Any], str]:
    """Return the last errors of a run's curve until a step, by field of its status, and a note if it is damaged."""
    try:
        curve = [row for row in run.curve() if row["step"] <= until]
        return {f"{split}_error": curve[-1][f"{split}/error"] for split in ("train", "test") if curve}, ""
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return {}, "metrics.csv is damaged"


def _other_host(run: Run) -> str | None:
    """Return the machine that trains a run, None if it is this one or unknown."""
    try:
        host = str(json.loads(run.owner_file.read_text())["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if host == platform.node() else host


def _progress(run: Run) -> dict[str, Any]:
    """Return the last progress that the training process has written, by field of the run's status; {} without any."""
    try:
        progress = json.loads(run.progress_file.read_text())
        step, steps, rate = int(progress["step"]), int(progress["steps"]), float(progress["steps_per_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    speed = {"images_per_s": rate * run.config.optim.batch_size, "seconds_left": (steps - step) / rate} if rate else {}
    return {"step": step, "steps": steps} | speed
