"""How far the runs of a study are, for a terminal; from their folders, wherever they are trained."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plainres.errors import InputError
from plainres.progress import duration
from plainres.runs import Run, folders_of
from plainres.sweep import State, state_of

HEAD = ("run", "state", "step", "train error", "test error", "images/s", "time left")
WATCH_SECONDS = 2


def status(folder: Path) -> str:
    """A line for each run in a study's folder, and how many are in which state.

    Raises:
        InputError: the folder holds no runs.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    runs = [Run.read(path) for path in folders_of(folder) if (path / "config.yaml").exists()]
    if not runs:
        raise InputError(f"{folder} holds no runs; give the folder of a study, such as runs/digits")
    rows: list[tuple[str, ...]] = [HEAD]
    states = []
    for run in runs:
        try:
            state = state_of(run)
        except InputError:
            state = State.FAILED  # and why, its cells say
        states.append(state)
        rows.append((run.name, "running" if state is State.RUNNING else state.value, *_cells(run, state)))
    counts = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
    return "\n".join([*_aligned(rows), "", f"{folder}: {len(runs)} runs: {counts}"])


def watch(folder: Path) -> None:
    """Show the status again and again, until nothing is running any more.

    Raises:
        InputError: as `status`.
    """
    while True:
        text = status(folder)
        print("\x1b[H\x1b[2J" * sys.stdout.isatty() + text, flush=True)
        if f" {State.RUNNING.value}" not in text.splitlines()[-1]:
            return
        time.sleep(WATCH_SECONDS)


def _cells(run: Run, state: State) -> tuple[str, ...]:
    """Step, errors, speed and time left of a run, or the reason of its failure."""
    if state is State.FINISHED:
        result = run.result
        errors = f"{result['train_error']:.2f} %", f"{result['test_error']:.2f} %"
        return f"{result['steps']}", *errors, "", ""
    if state is State.FAILED:
        return (run.failure or "result.json is damaged", "", "", "", "")
    told = _told(run)
    curve = run.curve()
    errors = [f"{curve[-1][column]:.2f} %" if curve else "" for column in ("train/error", "test/error")]
    if state is State.RUNNING and told:
        left = (told["steps"] - told["step"]) / told["steps_per_s"] if told["steps_per_s"] else None
        speed = told["steps_per_s"] * run.config.optim.batch_size
        left_text = duration(left) if left is not None else ""
        return f"{told['step']} of {told['steps']}", *errors, f"{speed:,.0f}", left_text
    return str(run.step or ""), *errors, "", ""


def _told(run: Run) -> dict[str, Any]:
    """What the process that trains a run has last written of it, nothing if it has not yet."""
    try:
        return json.loads((run.folder / "progress.json").read_text())
    except (OSError, ValueError):
        return {}


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells -> a line for each row; a reason may run over the columns behind it."""
    widths = [max(len(row[column]) for row in rows if row[1] != State.FAILED.value) for column in range(len(HEAD))]
    widths[0] = max(len(row[0]) for row in rows)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
