"""Sharpness of the minimum found by training: the largest eigenvalue of the loss's Hessian.

The loss is the mean cross-entropy over training images, with the network in evaluation mode. See
`plainres.models.curvature` for the method.
"""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from plainres.analysis.measurements import Finished, draw_runs, labels, read_finished, writing
from plainres.console import bar
from plainres.data.batches import EvaluationBatches
from plainres.errors import InputError
from plainres.files import csv_text, write_atomically
from plainres.models.curvature import Estimate, estimates
from plainres.reporting.figures import COLOURS, MARKERS, legend_below
from plainres.runs.location import Location


def top_eigenvalue(
    network: nn.Module,
    batches: EvaluationBatches,
    *,
    tolerance: float,
    max_iterations: int,
    seed: int,
    name: str = "sharpness",
) -> list[Estimate]:
    """Return the estimates of the largest eigenvalue, up to the first converged one or `max_iterations`.

    Raises:
        InputError: an estimate is NaN or infinite.
    """
    history: list[Estimate] = []
    with bar(name, "iteration", max_iterations, leave=False) as progress:
        for estimate in islice(estimates(network, batches, tolerance, seed), max_iterations):
            if not math.isfinite(estimate.eigenvalue):
                raise InputError(
                    f"{name}: the curvature of the loss at the trained weights is {estimate.eigenvalue}, not finite; "
                    "train again, for example with a lower optim.lr"
                )
            history.append(estimate)
            progress.update()
            progress.set_postfix_str(f"{estimate.eigenvalue:.6g}, residual {estimate.residual:.2g}")
    return history


def write(
    folders: Sequence[Path],
    images: int,
    tolerance: float,
    max_iterations: int,
    seed: int,
    *,
    location: Location = (),
) -> str:
    """Compute the top eigenvalues of runs and return them as text; write sharpness.csv and a figure into each folder.

    Raises:
        InputError: a run is not finished, the curvature of its loss is NaN or infinite, or its folder is not writable.
    """
    selected = read_finished(folders, images, location)
    runs = [finished.run for finished in selected]
    names = labels(runs)
    shown, curves, lines = [], [], []
    for finished, name in zip(selected, names, strict=True):
        history = top_eigenvalue(
            finished.network,
            finished.training,
            tolerance=tolerance,
            max_iterations=max_iterations,
            seed=seed,
            name=f"sharpness of {name}",
        )
        _save(finished, history, seed)
        curves.append([estimate.eigenvalue for estimate in history])
        last = history[-1]
        outcome = "converged" if last.converged else f"NOT converged to {tolerance:g}; increase --iterations"
        count = f"{len(history)} iteration{'s' * (len(history) != 1)}"
        shown.append(name if last.converged else f"{name}, not converged")
        lines.append(
            f"{name}: {last.eigenvalue:.6g} after {count}, residual {last.residual:.2g}, {outcome}; "
            f"{finished.training.image_count:,} images"
        )
    figure = draw_runs(
        lambda indices: draw([shown[i] for i in indices], [curves[i] for i in indices]), runs, "sharpness"
    )
    return "\n".join(["top eigenvalue of the Hessian of the training loss", *lines, str(figure)])


def _save(finished: Finished, history: Sequence[Estimate], seed: int) -> None:
    file = finished.run.folder / "sharpness.csv"
    rows = [
        finished.key
        | {"seed": str(seed), "iteration": str(number)}
        | {
            "eigenvalue": repr(estimate.eigenvalue),
            "residual": repr(estimate.residual),
            "converged": str(estimate.converged),
        }
        for number, estimate in enumerate(history, 1)
    ]
    with writing(file):
        write_atomically(file, csv_text(rows))


def draw(names: Sequence[str], curves: Sequence[Sequence[float]]) -> Figure:
    """Draw the estimates of the largest eigenvalue by iteration, one curve per run; the legend has the last ones."""
    figure = Figure(figsize=(6.4, 4.1))
    axes = figure.subplots()
    for i, (name, values) in enumerate(zip(names, curves, strict=True)):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(range(1, len(values) + 1), values, markersize=4, label=f"{name}: {values[-1]:.4g}", **style)
    axes.set_xlabel("Lanczos iterations")
    axes.set_ylabel("largest eigenvalue of the Hessian")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, _ = axes.get_legend_handles_labels()
    legend_below(figure, handles)
    return figure
