"""Sweeps in which the value of an option is chosen for each network before it is trained with fresh seeds."""

from collections.abc import Sequence

from plainres.config.schema import Config
from plainres.console import say
from plainres.launch.sweep import sweep
from plainres.launch.tuning import Cell, Choice, cells, extended, grids
from plainres.runs.record import Run


def sweep_tuned(configs: Sequence[Config]) -> int:
    """Train the runs among which is chosen, extend grids whose best value lies at an edge, and train the fresh seeds.

    A run among which is chosen may fail: it counts as infinitely bad. A repeated command goes on where it stopped.

    Returns:
        The number of failed runs with fresh seeds, and of those without a value because all values failed.

    Raises:
        InputError: see `plainres.launch.tuning.cells` and `plainres.launch.sweep.sweep`.
        StoppedError: a signal arrived; the active runs are saved.
    """
    found = cells(configs)
    while missing := _missing(found):
        sweep(missing)
    fresh, without = [], 0
    for cell, values, choice in grids(found):
        say(_line(cell, values, choice))
        if choice.best is None:
            without += len(cell.seeds)
        else:
            fresh += [cell.run(choice.best, seed) for seed in cell.seeds]
    return sweep(fresh) + without


def _missing(found: Sequence[Cell]) -> list[Run]:
    """Return the runs that are needed for the choices and are neither finished nor failed."""
    needed = [
        run for cell, values, choice in grids(found) for run in cell.candidates(extended(values, choice, cell.tuning))
    ]
    return [run for run in needed if not run.finished and run.failure is None]


def _line(cell: Cell, values: Sequence[float], choice: Choice) -> str:
    """Return the line that says what was chosen."""
    model, option = cell.config.model, cell.tuning.option
    network = f"{cell.config.shortcut}, depth {model['depth']}, width {model['width']}"
    grid = f"of {len(values)} values from {values[0]:g} to {values[-1]:g}"
    if choice.best is None:
        return f"{network}: no {option} {grid} trained"
    text = f"{network}: {option}={choice.best:g} {grid}, validation error {choice.errors[choice.best]:.2f} %"
    return f"{text}; unfinished, since the best value is at the edge of the grid" if choice.at_edge else text
