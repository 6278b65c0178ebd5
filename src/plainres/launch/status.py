"""Progress of the runs of a study, read from their folders, wherever they train."""

import csv
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from plainres.console import aligned, duration, quantity
from plainres.errors import InputError
from plainres.launch.active import is_active
from plainres.runs.record import Run, State, folders_of

HEAD = ("run", "state", "step", "train error (running)", "test error", "images/s", "time left")
UNREADABLE = "unreadable"  # a folder whose config.yaml is damaged
WAITING = "waiting"  # a missing run while a sweep of its study is active
STATES = (*(state.value for state in State), WAITING, UNREADABLE)
UNFINISHED = {State.RUNNING.value, State.INTERRUPTED.value, State.MISSING.value, WAITING}
WATCH_SECONDS = 2
QUIET_SECONDS = 30  # longer than the gap between two runs of a sweep


def status(folder: Path) -> str:
    """Return a table of the runs in a study's folder, or of the studies in a folder of studies.

    Damaged runs are listed with the reason.

    Args:
        folder: the folder of a study, such as runs/digits, or of all studies, such as runs.

    Raises:
        InputError: the folder holds no runs.
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
    if rows := _rows(folder):
        lines = aligned([HEAD, *([name, label, *cells] for name, _, label, *cells in rows)])
        states = [state for _, state, *_ in rows]
        return "\n".join([*lines, "", f"{folder}: {quantity(len(rows), 'run')} ({_counts(states)})"]), states
    studies = {study: states for study in folders_of(folder) if (states := [state for _, state, *_ in _rows(study)])}
    if not studies:
        raise InputError(f"{folder} holds no runs; give the folder of a study, such as runs/digits")
    lines = aligned([[study.name, quantity(len(states), "run"), _counts(states)] for study, states in studies.items()])
    return "\n".join(lines), [state for states in studies.values() for state in states]


def _counts(states: Iterable[str]) -> str:
    numbers = Counter(states)
    return ", ".join(f"{numbers[state]} {state}" for state in STATES if state in numbers)


def _rows(folder: Path) -> list[Sequence[str]]:
    """Return for each run of a study its name, its state, the label of its state and the other cells."""
    active = is_active(folder)
    return [_row(path, active=active) for path in folders_of(folder) if (path / "config.yaml").exists()]


def _row(folder: Path, *, active: bool) -> Sequence[str]:
    try:
        run = Run.read(folder)
    except InputError as error:
        return folder.name, UNREADABLE, UNREADABLE, str(error).removeprefix(f"{folder}/")
    try:
        state = run.state
    except InputError:
        state = State.FAILED  # a damaged result.json, which the cells explain
    name = WAITING if state is State.MISSING and active else state.value
    host = _other_host(run) if state is State.RUNNING else ""
    return folder.name, name, f"{name} on {host}" if host else name, *_cells(run, state)


def _other_host(run: Run) -> str:
    """Return the machine that trains a run, empty if it is this one or unknown."""
    try:
        host = str(json.loads((run.folder / "owner.json").read_text())["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if host == platform.node() else host


def _cells(run: Run, state: State) -> tuple[str, ...]:
    """Return step, errors, speed and time left of a run, or the reason of its failure."""
    if state is State.FINISHED:
        result = run.result
        errors = f"{result['train_error']:.2f} %", f"{result['test_error']:.2f} %"
        return f"{result.get('steps', '')}", *errors, "", ""
    if state is State.FAILED:
        return (run.failure or "result.json is damaged",)
    try:
        curve = run.curve()
        errors = [f"{curve[-1][column]:.2f} %" if curve else "" for column in ("train/error", "test/error")]
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        errors = ["metrics.csv is damaged", ""]
    progress = _progress(run)
    if state is State.RUNNING and progress:
        step, steps, rate = progress["step"], progress["steps"], progress["steps_per_s"]
        speed = f"{rate * run.config.optim.batch_size:,.0f}" if rate else ""
        return f"{step:.0f} of {steps:.0f}", *errors, speed, duration((steps - step) / rate) if rate else ""
    return str(run.step or ""), *errors, "", ""


def _progress(run: Run) -> dict[str, float]:
    """Return the last progress that the training process has written, empty if there is none yet."""
    try:
        progress = json.loads((run.folder / "progress.json").read_text())
        return {key: float(progress[key]) for key in ("step", "steps", "steps_per_s")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
