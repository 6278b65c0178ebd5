"""Sweeps in which the value of an option is chosen for each network before it is trained with other seeds."""

from collections.abc import Sequence

from plainres.config.schema import Config
from plainres.console import quantity, say
from plainres.launch.sweep import sweep
from plainres.runs.record import Run
from plainres.runs.tuning import Cell, Choice, cells, extended


def sweep_tuned(configs: Sequence[Config]) -> int:
    """Choose a value for each network, extending grids whose best value lies at an edge, and train the compared runs.

    A repeated command resumes. A run that diverges counts as infinitely bad in a choice.

    Returns:
        The number of failed runs, without those that diverged in a choice.

    Raises:
        InputError: see `plainres.runs.tuning.cells` and `plainres.launch.sweep.sweep`.
        StoppedError: a signal arrived; the active runs are saved.
    """
    found = cells(configs)
    option = found[0].tuning.option
    while missing := _missing(found):
        say(f"choosing {option} for {quantity(len(found), 'network')} on the validation set")
        sweep(missing)
        if failed := [run for run in missing if not (run.finished or run.diverged)]:
            return len(failed)
    choices = [(cell, *cell.grid()) for cell in found]
    for cell, values, chosen in choices:
        say(_line(cell, values, chosen))
    say("training the seeds that are compared")
    return sweep([run for cell, _, chosen in choices for run in cell.compared(chosen.best)])


def _missing(found: Sequence[Cell]) -> list[Run]:
    """Return the runs that choices need and that are neither finished nor diverged."""
    missing = []
    for cell in found:
        values, chosen = cell.grid()
        for by_seed in cell.candidates(extended(values, chosen, cell.tuning)).values():
            missing += [run for run in by_seed.values() if not (run.finished or run.diverged)]
    return missing


def _line(cell: Cell, values: Sequence[float], chosen: Choice) -> str:
    """Return the line about the chosen value of a network."""
    model, option = cell.config.model, cell.tuning.option
    network = f"{cell.config.shortcut}, depth {model['depth']}, width {model['width']}"
    grid = f"of {len(values)} values from {values[0]:g} to {values[-1]:g}"
    if chosen.best is None:
        return f"{network}: every {option} {grid} diverged"
    text = f"{network}: {option}={chosen.best:g} {grid}, validation error {chosen.mean(chosen.best):.2f} %"
    return f"{text}; unfinished, since the best value is at the edge of the grid" if chosen.at_edge else text
