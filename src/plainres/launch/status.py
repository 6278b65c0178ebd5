"""Progress of the runs of a study, read from their folders, wherever they train."""

import csv
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
class _Row:
    """A run's row of the table."""

    name: str
    state: str  # one of STATES
    cells: Mapping[str, str]  # by column; the others are empty
    note: str = ""  # the reason of a failure, or the damage to the record


def status(folder: Path) -> str:
    """Return a table of the runs in a study's folder, or of the studies in a folder of studies.

    The table drops columns to fit into the terminal. Below it are the reasons of failures, damaged and unreadable
    records, and copies of runs, which are not counted.

    Args:
        folder: the folder of a study, such as runs/digits, or of all studies, such as runs.

    Raises:
        InputError: the folder holds no runs, or cannot be read.
    """
    text, _ = _snapshot(folder)
    return text


def watch(folder: Path) -> None:
    """Print the status repeatedly until no unfinished run is left, or none has been running for QUIET_SECONDS.

    Raises:
        InputError: see `status`.
    """
    running_at = time.monotonic()
    while True:
        text, states = _snapshot(folder)
        print("\x1b[H\x1b[2J" * sys.stdout.isatty() + text, flush=True)
        if State.RUNNING.value in states:
            running_at = time.monotonic()
        if not UNFINISHED & set(states) or time.monotonic() - running_at >= QUIET_SECONDS:
            return
        time.sleep(WATCH_SECONDS)


def _snapshot(folder: Path) -> tuple[str, list[str]]:
    """Return the status as text, and the states of all runs."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    try:
        rows, copies = _rows(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    # a study that cannot be read looks like a run
    studies, unread = _studies(folder) if all(row.state == UNREADABLE for row in rows) else ({}, [])
    if rows and not studies:
        states = [row.state for row in rows]
        notes = [f"{row.name}: {row.note}" for row in rows if row.note]
        notes += [f"{copy}: a copy of {name}, not counted" for copy, name in copies.items()]
        blocks = [
            _table(rows, terminal_columns(sys.stdout)),
            notes,
            [f"{folder}: {quantity(len(rows), 'run')} ({_counts(states)})"],
        ]
        return "\n\n".join("\n".join(lines) for lines in blocks if lines), states
    if not studies:
        reasons = f" ({'; '.join(unread)})" if unread else ""
        raise InputError(f"{folder} holds no runs{reasons}; give the folder of a study, such as runs/digits")
    lines = aligned([[study, quantity(len(states), "run"), _counts(states)] for study, states in studies.items()])
    return "\n".join([*lines, *unread]), [state for states in studies.values() for state in states]


def _studies(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return the states of the runs of each study in a folder, and a line for each study that cannot be read."""
    studies: dict[str, list[str]] = {}
    notes = []
    for study in folders_of(folder):
        try:
            rows, _ = _rows(study)
        except OSError as error:
            notes.append(f"{study.name}: cannot be read: {error.strerror}")
            continue
        if rows:
            studies[study.name] = [row.state for row in rows]
    return studies, notes


def _table(rows: Sequence[_Row], width: int | None) -> list[str]:
    """Return the lines of the table, without empty columns, and within the width of the terminal if that is possible.

    The columns in DROPPED_FIRST are dropped one after the other, then the ends of the lines.
    """
    columns = [column for column in HEAD if any(row.cells.get(column) for row in rows)]

    def lines() -> list[str]:
        return aligned([columns, *([row.cells.get(column, "") for column in columns] for row in rows)])

    for dropped in DROPPED_FIRST:
        if width is None or max(map(len, lines())) <= width:
            break
        if dropped in columns:
            columns.remove(dropped)
    return lines() if width is None else [shortened(line, width) for line in lines()]


def _counts(states: Iterable[str]) -> str:
    numbers = Counter(states)
    return ", ".join(f"{numbers[state]} {state}" for state in STATES if state in numbers)


def _rows(folder: Path) -> tuple[list[_Row], dict[str, str]]:
    """Return a row for each run of a study, and the copies of its runs: their folders and the runs' names.

    Raises:
        OSError: the folder cannot be read.
    """
    active = is_active(folder)
    rows, copies = [], {}
    for path in folders_of(folder):
        try:
            run = Run.read(path)
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # otherwise it is no run
                rows.append(_unreadable(path, str(error).removeprefix(f"{path}/").removeprefix(f"{path} is ")))
            continue
        if run.name != path.name and (folder / run.name / "config.yaml").is_file():
            copies[path.name] = run.name
            continue
        try:
            rows.append(_row(run, active=active))
        except OSError as error:
            rows.append(_unreadable(path, f"{Path(error.filename or path).name} cannot be read: {error.strerror}"))
    return rows, copies


def _unreadable(folder: Path, note: str) -> _Row:
    return _Row(folder.name, UNREADABLE, {RUN: folder.name, STATE: UNREADABLE}, note)


def _row(run: Run, *, active: bool) -> _Row:
    """Return the row of a run.

    Raises:
        OSError: a file cannot be read.
    """
    folder = run.folder
    try:
        state = run.state
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        cells = {RUN: folder.name, STATE: State.FAILED.value}
        return _Row(folder.name, State.FAILED.value, cells, "result.json is damaged")
    name = WAITING if state is State.MISSING and active else state.value
    host = _other_host(run) if state is State.RUNNING else ""
    cells, damage = _cells(run, state)
    cells |= {RUN: folder.name, STATE: f"{name} on {host}" if host else name}
    return _Row(folder.name, name, cells, run.failure or "" if state is State.FAILED else damage)


def _other_host(run: Run) -> str:
    """Return the machine that trains a run, empty if it is this one or unknown."""
    try:
        host = str(json.loads(run.owner_file.read_text())["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if host == platform.node() else host


def _cells(run: Run, state: State) -> tuple[dict[str, str], str]:
    """Return step, errors, speed and time left of a run, and a note if its curve is damaged."""
    if state is State.FINISHED:
        result = run.result
        errors = {TRAIN: f"{result['train_error']:.2f} %", TEST: f"{result['test_error']:.2f} %"}
        return {STEP: f"{result.get('steps', '')}", **errors}, ""
    damage, errors = "", {}
    try:
        # a run that was killed before its first checkpoint starts again, so its curve does not count
        if curve := run.curve() if state is not State.MISSING else []:
            errors = {TRAIN: f"{curve[-1]['train/error']:.2f} %", TEST: f"{curve[-1]['test/error']:.2f} %"}
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        damage = "metrics.csv is damaged"
    progress = _progress(run)
    if state is not State.RUNNING or not progress:
        return {STEP: str(run.step or ""), **errors}, damage
    step, steps, rate = progress["step"], progress["steps"], progress["steps_per_s"]
    cells = {STEP: f"{step:.0f} of {steps:.0f}", **errors}
    if rate:
        cells |= {SPEED: f"{rate * run.config.optim.batch_size:,.0f}", LEFT: duration((steps - step) / rate)}
    return cells, damage


def _progress(run: Run) -> dict[str, float]:
    """Return the last progress that the training process has written, empty if there is none yet."""
    try:
        progress = json.loads((run.folder / "progress.json").read_text())
        return {key: float(progress[key]) for key in ("step", "steps", "steps_per_s")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
