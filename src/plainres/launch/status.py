"""How far the runs of a study are, for a terminal; from their folders, wherever they are trained."""

import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from plainres.console import aligned, duration
from plainres.errors import InputError
from plainres.runs.record import Run, State, folders_of

HEAD = ("run", "state", "step", "train error (running)", "test error", "images/s", "time left")
UNREADABLE = "unreadable"  # beside the states of runs: a folder whose config.yaml is damaged
LEFT = (State.RUNNING.value, State.INTERRUPTED.value, State.MISSING.value)
WATCH_SECONDS = 2
# without a running one, after which nothing more is expected: between two runs of a sweep it is less
QUIET_SECONDS = 30


def status(folder: Path) -> str:
    """A line for each run in a study's folder, and how many are in which state. What is damaged is named in its line.

    Raises:
        InputError: the folder holds no runs.
    """
    text, _ = _look(folder)
    return text


def watch(folder: Path) -> None:
    """Show the status again and again, until no run is left to be trained, or none has been running for some time.

    Raises:
        InputError: as `status`.
    """
    running_at = time.monotonic()
    while True:
        text, states = _look(folder)
        print("\x1b[H\x1b[2J" * sys.stdout.isatty() + text, flush=True)
        if State.RUNNING.value in states:
            running_at = time.monotonic()
        if not set(LEFT) & set(states) or time.monotonic() - running_at >= QUIET_SECONDS:
            return
        time.sleep(WATCH_SECONDS)


def _look(folder: Path) -> tuple[str, list[str]]:
    """The status as text, and the state of each run."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    rows = [_row(path) for path in folders_of(folder) if (path / "config.yaml").exists()]
    if not rows:
        raise InputError(f"{folder} holds no runs; give the folder of a study, such as runs/digits")
    states = [state for _, state, *_ in rows]
    counts = [f"{states.count(state)} {state}" for state in [*(s.value for s in State), UNREADABLE] if state in states]
    shown = [HEAD, *([row[0], "running" if row[1] == State.RUNNING.value else row[1], *row[2:]] for row in rows)]
    return "\n".join([*aligned(shown), "", f"{folder}: {len(rows)} runs: {', '.join(counts)}"]), states


def _row(folder: Path) -> Sequence[str]:
    """The cells of a run's line."""
    try:
        run = Run.read(folder)
    except InputError as error:
        return folder.name, UNREADABLE, str(error).removeprefix(f"{folder}/")
    try:
        state = run.state
    except InputError:
        state = State.FAILED  # and why, its cells say
    return folder.name, state.value, *_cells(run, state)


def _cells(run: Run, state: State) -> tuple[str, ...]:
    """Step, errors, speed and time left of a run, or the reason of its failure."""
    if state is State.FINISHED:
        result = run.result
        errors = f"{result['train_error']:.2f} %", f"{result['test_error']:.2f} %"
        return f"{result.get('steps', '')}", *errors, "", ""
    if state is State.FAILED:
        return (run.failure or "result.json is damaged",)
    told = _told(run)
    try:
        curve = run.curve()
        errors = [f"{curve[-1][column]:.2f} %" if curve else "" for column in ("train/error", "test/error")]
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        errors = ["metrics.csv is damaged", ""]
    if state is State.RUNNING and told:
        left = (told["steps"] - told["step"]) / told["steps_per_s"] if told["steps_per_s"] else None
        speed = told["steps_per_s"] * run.config.optim.batch_size
        left_text = duration(left) if left is not None else ""
        return f"{told['step']:.0f} of {told['steps']:.0f}", *errors, f"{speed:,.0f}", left_text
    return str(run.step or ""), *errors, "", ""


def _told(run: Run) -> dict[str, float]:
    """What the process that trains a run has last written of it, nothing if it has not yet."""
    try:
        told = json.loads((run.folder / "progress.json").read_text())
        return {key: float(told[key]) for key in ("step", "steps", "steps_per_s")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
