"""The loss around a trained network, along random directions in which every filter counts alike.

Li, Xu, Taylor, Studer & Goldstein 2018 (Visualizing the Loss Landscape of Neural Nets), sections 3 and 4:

    f(a, b) = L(w + a d + b e),    d[i, j] <- d[i, j] / ||d[i, j]|| ||w[i, j]||

for two Gaussian directions d and e, filter j of layer i by itself; a row of a linear layer is a filter. Weights that
are no filters, those of normalisations, biases and other numbers by themselves, stay where they are (d = 0 there), and
so do the running statistics of batch normalisation. Networks of one depth and width whose weights have equal shapes,
such as plain and identity, get the same d before it is scaled.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from plainres.analysis.measurements import Finished, Plan, Row, draw_runs, finished, labels, loss_and_error, measure
from plainres.randomness import mix
from plainres.reporting.figures import COLOURS

VALUES = ("loss", "error")
POINTS = {1: 51, 2: 21}  # along each direction, unless another number is given
UNITS = {"loss": "training loss", "error": "training error (%)"}

Direction = list[Tensor]  # for each parameter, in their order


def direction(network: nn.Module, seed: int, axis: int) -> Direction:
    """A filter-normalised Gaussian direction, a function of the seed, the axis and the network's weights."""
    generator = Generator().manual_seed(mix("landscape", seed, axis))
    steps = []
    for weight in network.parameters():
        if weight.dim() < 2:
            steps.append(torch.zeros_like(weight))
            continue
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        sizes = [tensor.detach().flatten(1).norm(dim=1) for tensor in (weight, drawn)]
        steps.append(drawn * (sizes[0] / sizes[1]).view(-1, *[1] * (weight.dim() - 1)))
    return steps


@contextmanager
def moved(network: nn.Module, steps: Sequence[tuple[float, Direction]]) -> Iterator[None]:
    """Within, the network's weights are w + a d + b e + ..., for the pairs (a, d), (b, e), ...; afterwards w."""
    weights = list(network.parameters())
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for distance, step in steps:
                for weight, part in zip(weights, step, strict=True):
                    weight.add_(part, alpha=distance)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def wanted(of: Finished, points: int, dimensions: int, reach: float, seed: int) -> list[Row]:
    """A row for each point: `points` along each direction, evenly from -reach to reach, in units of the weights."""
    ticks = [repr(round(float(tick), 10) + 0.0) for tick in np.linspace(-reach, reach, points)]
    return [
        of.key | {"seed": str(seed), "a": a, "b": b}
        for a, b in product(ticks, ticks if dimensions == 2 else [repr(0.0)])
    ]


@lru_cache(maxsize=2)  # the points of one run and seed come together
def _direction(of: Finished, seed: int, axis: int) -> Direction:
    return direction(of.network, seed, axis)


def measured(of: Finished, row: Mapping[str, str]) -> tuple[float, float]:
    """Training loss and error (%) at the point that a row describes."""
    steps = [(float(row[name]), _direction(of, int(row["seed"]), axis)) for axis, name in enumerate("ab")]
    with moved(of.network, steps):
        return loss_and_error(of.network, of.training)


def write(folders: Sequence[Path], *, points: int | None, dimensions: int, reach: float, images: int, seed: int) -> str:
    """Measure the landscapes of runs; write landscape.csv and the figure into their folders, return a summary.

    Raises:
        InputError, LockedError, RunFailedError: as `measurements.measure`.
    """
    found = finished(folders, images)
    points = POINTS[dimensions] if points is None else points
    plans = [Plan(one, "landscape", wanted(one, points, dimensions, reach, seed)) for one in found]
    rows = measure(plans, VALUES, measured, images, "point")
    runs = [one.run for one in found]
    names = labels(runs)
    draw = curves if dimensions == 1 else surfaces
    figure = draw_runs(
        lambda numbers: draw([names[i] for i in numbers], [rows[i] for i in numbers]), runs, f"landscape-{dimensions}d"
    )
    return "\n".join([*map(text, names, rows), str(figure)])


def text(name: str, rows: Sequence[Row]) -> str:
    """A run's landscape in a line: the smallest loss and where, the largest, and the share of points of low error."""
    lowest, highest = (pick(rows, key=lambda row: _finite(row["loss"])) for pick in (min, max))
    low = sum(float(row["error"]) < 50 for row in rows) / len(rows)
    return (
        f"{name}: loss {float(lowest['loss']):.4f} at ({lowest['a']}, {lowest['b']}), up to "
        f"{float(highest['loss']):.4g} at ({highest['a']}, {highest['b']}); error below 50 % at {low:.0%} of "
        f"{len(rows)} points"
    )


def _finite(text: str) -> float:
    value = float(text)
    return math.inf if math.isnan(value) else value


def curves(names: Sequence[str], found: Sequence[Sequence[Row]]) -> Figure:
    """Training loss and training error along one direction, a curve for each run (as Li et al. 2018, figure 3)."""
    figure = Figure(figsize=(9.6, 4.1))
    panels: Sequence[Axes] = figure.subplots(1, 2)
    for panel, value in zip(panels, VALUES, strict=True):
        for i, (name, rows) in enumerate(zip(names, found, strict=True)):
            xs, ys = ([float(row[column]) for row in rows] for column in ("a", value))
            panel.plot(xs, ys, color=COLOURS[i % len(COLOURS)], linewidth=2, label=name)
        panel.set_xlabel("distance, in units of the filters' norms")
        panel.set_ylabel(UNITS[value])
    panels[0].set_yscale("log")
    panels[1].set_ylim(-2, 102)
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
    return figure


def surfaces(names: Sequence[str], found: Sequence[Sequence[Row]]) -> Figure:
    """Training loss (above, colours in decades) and training error (below) over two directions, on one scale for all
    runs; the lines are where the error is 10, 50 and 80 %."""
    figure = Figure(figsize=(0.9 + 3.5 * len(names), 6.6))
    grid = figure.subplots(2, len(names), squeeze=False, sharex=True, sharey=True)
    losses = [loss for rows in found for row in rows if math.isfinite(loss := float(row["loss"])) and loss > 0]
    shades = {"loss": {"norm": LogNorm(min(losses), max(losses))}, "error": {"vmin": 0, "vmax": 100}}
    for panels, value in zip(grid, VALUES, strict=True):
        mesh = None
        for panel, name, rows in zip(panels, names, found, strict=True):
            ticks = sorted({float(row["a"]) for row in rows})
            square = {
                column: np.array([float(row[column]) for row in rows]).reshape(len(ticks), -1).T for column in VALUES
            }
            shown = np.ma.masked_invalid(square[value])
            mesh = panel.pcolormesh(
                ticks, ticks, shown, cmap="cividis", shading="nearest", rasterized=True, **shades[value]
            )
            error = square["error"]
            levels = [level for level in (10, 50, 80) if error.min() < level < error.max()]
            if levels:
                lines = panel.contour(ticks, ticks, error, levels, colors="white", linewidths=1)
                panel.clabel(lines, fmt="%g %%", fontsize=8)
            panel.set_aspect("equal")
            panel.grid(visible=False)
            if value == "loss":
                panel.set_title(name)
        assert mesh is not None
        figure.colorbar(mesh, ax=list(panels), label=UNITS[value])
    figure.supxlabel("first direction, in units of the filters' norms", fontsize=10)
    figure.supylabel("second direction", fontsize=10)
    return figure
