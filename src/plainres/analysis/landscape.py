"""Loss landscape of a trained network along filter-normalised random directions.

Li, Xu, Taylor, Studer & Goldstein 2018 (Visualizing the Loss Landscape of Neural Nets), sections 3 and 4:

    f(a, b) = L(w + a d + b e),    d[i, j] <- d[i, j] / ||d[i, j]|| ||w[i, j]||

The directions d and e are Gaussian, and each filter j of layer i is normalised separately. A row of a linear layer is a
filter. Parameters that are not filters, such as biases and those of normalisations, stay unchanged (d = 0), as do the
running statistics of batch normalisation. Networks whose parameters have equal shapes, such as plain and identity nets
of one depth and width, share d before normalisation.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from plainres.analysis.measurements import (
    Finished,
    Plan,
    Row,
    draw_runs,
    labels,
    loss_and_error,
    measure,
    read_finished,
)
from plainres.console import quantity
from plainres.randomness import mix
from plainres.reporting.figures import COLOURS, legend_below, mark_below, note_below
from plainres.runs.location import Location

VALUES = ("loss", "error")
POINTS = {1: 51, 2: 21}  # default number of points along each direction, by the number of directions
UNITS = {"loss": "training loss", "error": "training error (%)"}

Direction = list[Tensor]  # one tensor per parameter, in the network's order


def direction(network: nn.Module, seed: int, axis: int) -> Direction:
    """Draw a filter-normalised Gaussian direction, which depends only on the seed, the axis and the weights."""
    generator = Generator().manual_seed(mix("landscape", seed, axis))
    steps = []
    for weight in network.parameters():
        if weight.dim() < 2:
            steps.append(torch.zeros_like(weight))
            continue
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        norms = [tensor.detach().flatten(1).norm(dim=1) for tensor in (weight, drawn)]
        steps.append(drawn * (norms[0] / norms[1]).view(-1, *[1] * (weight.dim() - 1)))
    return steps


@contextmanager
def moved(network: nn.Module, steps: Sequence[tuple[float, Direction]]) -> Iterator[None]:
    """Set the network's weights to w + a d + b e + ... within the context, for pairs (a, d), (b, e), ..."""
    weights = list(network.parameters())
    original = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for distance, step in steps:
                for weight, part in zip(weights, step, strict=True):
                    weight.add_(part, alpha=distance)
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, original, strict=True):
                weight.copy_(value)


def plan_rows(finished: Finished, points: int, dimensions: int, reach: float, seed: int) -> list[Row]:
    """Return one row, without values, for each point of a grid.

    Each direction has `points` points, evenly spaced from -reach to reach, in units of the filters' norms.
    """
    ticks = [repr(round(float(tick), 10) + 0.0) for tick in np.linspace(-reach, reach, points)]
    return [
        finished.key | {"seed": str(seed), "a": a, "b": b}
        for a, b in product(ticks, ticks if dimensions == 2 else [repr(0.0)])
    ]


@lru_cache(maxsize=2)  # both axes of one run and seed, since the points of a run follow each other
def _direction(finished: Finished, seed: int, axis: int) -> Direction:
    return direction(finished.network, seed, axis)


def measure_row(finished: Finished, row: Mapping[str, str]) -> tuple[float, float]:
    """Return training loss and training error (%) at the row's point."""
    steps = [(float(row[name]), _direction(finished, int(row["seed"]), axis)) for axis, name in enumerate("ab")]
    with moved(finished.network, steps):
        return loss_and_error(finished.network, finished.training)


def write(
    folders: Sequence[Path],
    *,
    points: int | None,
    dimensions: int,
    reach: float,
    images: int,
    seed: int,
    location: Location = (),
) -> str:
    """Measure the landscapes of runs and return a summary; write landscape.csv and a figure into each run's folder.

    Raises:
        InputError, LockedError, RunFailedError: see `measurements.measure`.
    """
    selected = read_finished(folders, images, location)
    points = POINTS[dimensions] if points is None else points
    plans = [Plan(finished, "landscape", plan_rows(finished, points, dimensions, reach, seed)) for finished in selected]
    rows = measure(plans, VALUES, measure_row, images, "point")
    runs = [finished.run for finished in selected]
    names = labels(runs)
    draw = curves if dimensions == 1 else surfaces
    figure = draw_runs(
        lambda indices: draw([names[i] for i in indices], [rows[i] for i in indices]), runs, f"landscape-{dimensions}d"
    )
    return "\n".join([*map(text, names, rows), str(figure)])


def text(name: str, rows: Sequence[Row]) -> str:
    """Summarise a run's landscape in one line: smallest and largest loss, and the share of points with low error."""
    lowest, highest = (pick(rows, key=lambda row: _finite(row["loss"])) for pick in (min, max))
    low = sum(float(row["error"]) < 50 for row in rows) / len(rows)
    return (
        f"{name}: loss {float(lowest['loss']):.4f} at ({lowest['a']}, {lowest['b']}), up to "
        f"{float(highest['loss']):.4g} at ({highest['a']}, {highest['b']}); error below 50 % at {100 * low:.0f} % of "
        f"{len(rows)} points"
    )


def _finite(text: str) -> float:
    value = float(text)
    return math.inf if math.isnan(value) else value


def curves(names: Sequence[str], measurements: Sequence[Sequence[Row]]) -> Figure:
    """Draw training loss and training error along one direction, one curve per run (Li et al. 2018, figure 3).

    Losses of 0, which have no logarithm, are marked at the lower edge. NaN and infinite ones leave a gap.
    """
    figure = Figure(figsize=(9.6, 4.1))
    panels: Sequence[Axes] = figure.subplots(1, 2, sharex=True)
    losses, errors = panels
    losses.set_yscale("log")
    errors.set_ylim(-2, 102)
    zeros, gaps = 0, 0
    for i, (name, rows) in enumerate(zip(names, measurements, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        distances, heights, percents = ([float(row[column]) for row in rows] for column in ("a", *VALUES))
        for panel, values in ((losses, [loss or math.nan for loss in heights]), (errors, percents)):
            panel.plot(distances, values, color=colour, linewidth=2, label=name)
        if at_zero := [distance for distance, loss in zip(distances, heights, strict=True) if loss == 0]:
            mark_below(losses, at_zero, color=colour, marker="o", markersize=4)
        zeros += len(at_zero)
        gaps += sum(not math.isfinite(loss) for loss in heights)
    for panel, value in zip(panels, VALUES, strict=True):
        panel.set_xlabel("distance, in units of the filters' norms")
        panel.set_ylabel(UNITS[value])
    notes = [note_below([0.0] * zeros)] if zeros else []
    notes += [f"{quantity(gaps, 'loss', 'losses')} NaN or infinite, not drawn"] if gaps else []
    losses.set_xlabel("\n".join([losses.get_xlabel(), *notes]))
    legend_below(figure, errors.get_lines())
    return figure


def surfaces(names: Sequence[str], measurements: Sequence[Sequence[Row]]) -> Figure:
    """Draw training loss (top, logarithmic colours) and training error (bottom) over two directions.

    All runs share one scale. Contour lines mark errors of 10, 50 and 80 %. Losses without a colour are white: those of
    0, which have no logarithm, and NaN and infinite ones.
    """
    figure = Figure(figsize=(0.9 + 3.5 * len(names), 6.6))
    grid = figure.subplots(2, len(names), squeeze=False, sharex=True, sharey=True)
    losses = [loss for rows in measurements for row in rows if math.isfinite(loss := float(row["loss"])) and loss > 0]
    scale = LogNorm(min(losses, default=1.0), max(losses, default=1.0))
    shades: dict[str, dict[str, Any]] = {"loss": {"norm": scale}, "error": {"vmin": 0, "vmax": 100}}
    for panels, value in zip(grid, VALUES, strict=True):
        mesh = None
        for panel, name, rows in zip(panels, names, measurements, strict=True):
            ticks = sorted({float(row["a"]) for row in rows})
            grids = {
                column: np.array([float(row[column]) for row in rows]).reshape(len(ticks), -1).T for column in VALUES
            }
            colours = np.ma.masked_invalid(grids[value])
            white = int((~np.isfinite(grids["loss"]) | (grids["loss"] <= 0)).sum())
            mesh = panel.pcolormesh(
                ticks, ticks, colours, cmap="cividis", shading="nearest", rasterized=True, **shades[value]
            )
            error = grids["error"]
            levels = [level for level in (10, 50, 80) if error.min() < level < error.max()]
            if levels:
                lines = panel.contour(ticks, ticks, error, levels, colors="white", linewidths=1)
                panel.clabel(lines, fmt="%g %%", fontsize=8)
            panel.set_aspect("equal")
            panel.grid(visible=False)
            if value == "loss":
                panel.set_title(name)
                if white:
                    panel.set_xlabel(f"white: {quantity(white, 'loss', 'losses')} of 0, NaN or infinite")
        assert mesh is not None
        figure.colorbar(mesh, ax=list(panels), label=UNITS[value])
    figure.supxlabel("first direction, in units of the filters' norms", fontsize=10)
    figure.supylabel("second direction", fontsize=10)
    return figure
