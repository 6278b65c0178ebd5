"""Sweeps in which the value of an option is chosen for each network before it is trained with other seeds."""

from collections.abc import Sequence

from plainres.config.schema import Config
from plainres.console import quantity, say
from plainres.launch.selection import adopt_report_options
from plainres.launch.sweep import sweep
from plainres.reporting.families import labelled
from plainres.runs.option_values import neutral
from plainres.runs.record import Run
from plainres.runs.tuning import Cell, Choice, cells


def sweep_tuned(configs: Sequence[Config]) -> int:
    """Choose a value for each network, extending grids whose best value lies at an edge, and train the compared runs.

    A repeated command resumes. A run that diverges counts as infinitely bad in a choice.

    Returns:
        The number of failed runs without those that diverged in a choice, and of networks without a value.

    Raises:
        InputError: see `plainres.runs.tuning.cells` and `plainres.launch.sweep.sweep`.
        StoppedError: a signal arrived; the active runs are saved.
    """
    networks = cells(configs)
    option = networks[0].tuning.option
    while missing := _missing(networks):
        say(f"choosing {option} for {quantity(len(networks), 'network')} on the validation set")
        sweep(missing, _settled(networks))
        if failed := [run for run in missing if not (run.finished or run.diverged)]:
            return len(failed)
    adopt_report_options([run for run in _candidates(networks) if run.finished])
    choices = [(cell, *cell.grid()) for cell in networks]
    for name, each in zip(_names(networks), choices, strict=True):
        say(f"{name}: {_text(*each)}")
    compared = [run for cell, _, chosen in choices for run in cell.compared(chosen.best)]
    failed = 0
    if compared:
        say("training the seeds that are compared")
        failed = sweep(compared, _settled(networks))
    return failed + sum(chosen.best is None for _, _, chosen in choices)


def _missing(networks: Sequence[Cell]) -> list[Run]:
    """Return the runs that choices need and that are neither finished nor diverged."""
    return [run for run in _candidates(networks) if not (run.finished or run.diverged)]


def _settled(networks: Sequence[Cell]) -> list[Run]:
    """Return the runs that choices need and that are finished or diverged, on whose images the others must train."""
    return [run for run in _candidates(networks) if run.finished or run.diverged]


def _candidates(networks: Sequence[Cell]) -> list[Run]:
    """Return the runs that choices need."""
    candidates = [cell.candidates(cell.grid()[0]) for cell in networks]
    return [run for of_network in candidates for by_seed in of_network.values() for run in by_seed.values()]


def _names(networks: Sequence[Cell]) -> list[str]:
    """Return a description of each network that distinguishes it from the others."""
    runs = [Run.of(neutral(cell.config, cell.tuning.option)) for cell in networks]
    labels = labelled(runs)
    return [f"{labels[run.name][0]}, depth {run.config.model['depth']}" for run in runs]


def _text(cell: Cell, values: Sequence[float], chosen: Choice) -> str:
    """Describe the chosen value of a network."""
    option, grid = cell.tuning.option, f"of {len(values)} values from {values[0]:g} to {values[-1]:g}"
    if chosen.best is None:
        return f"no {option}, since every one {grid} diverged"
    text = f"{option}={chosen.best:g} {grid}, validation error {chosen.mean(chosen.best):.2f} %"
    return f"{text}; unfinished, since the best value is at the edge of the grid" if chosen.at_edge else text
