"""Figures of a study, as SVG and PNG: curves as in He et al. 2015, Figure 6, and final error by depth.

Runs come as family -> depth (ascending) -> seed -> run. Families have the colours of Okabe and Ito (2008), which
colour-blind readers can tell apart; within a family, the deeper the darker.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from plainres.runs import Run, read_rows
from plainres.statistics import summarize

Families = Mapping[str, Mapping[int, Mapping[int, Run]]]
Observed = dict[
    int, dict[str, list[float]]
]  # what a probe has found in a run: step -> column -> a value for each layer

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "plainres",  # the same runs give the same bytes
}


def save_figures(families: Families, folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Write curves and depth, and a figure for each probe that runs have, as SVG and PNG.

    Returns:
        Those probes; the folders of runs that have a file of a probe that is of no use, and why.
    """
    save(lambda: curves(families), folder / "curves")
    save(lambda: error_by_depth(families), folder / "depth")
    drawn, unusable = [], []
    for probe in PROBES:
        found, complaints = observations(probe, families)
        unusable += complaints
        if any(found.values()):
            save(partial(probe_figure, probe, found), folder / probe)
            drawn.append(probe)
    return drawn, unusable


def save(draw: Callable[[], Figure], file: Path) -> None:
    """Draw a figure in the style of all figures; write <file>.svg and <file>.png."""
    with mpl.rc_context(STYLE):
        figure = draw()
        figure.savefig(file.with_name(f"{file.name}.svg"), metadata={"Date": None})
        figure.savefig(file.with_name(f"{file.name}.png"), dpi=150)


def curves(families: Families) -> Figure:
    """Running training error (dashed) and test error (bold), means over seeds: a panel for each family."""
    columns = min(len(families), 3)
    rows = -(-len(families) // columns)
    figure = Figure(figsize=(max(4.8 * columns, 6), 4.1 * rows))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    depths = sorted({depth for runs in families.values() for depth in runs})
    late = 0.0  # the largest error of the second half of training
    for panel, colour, (family, runs) in zip(panels, cycle(COLOURS), families.items(), strict=False):
        for depth, by_seed in runs.items():
            shade = _shade(colour, depths.index(depth), len(depths))
            for column, style, width in (("train/error", "--", 1.0), ("test/error", "-", 2.0)):
                steps, errors = mean_curve(by_seed.values(), column)
                label = f"{depth} layers" if style == "-" else None
                dot = "." if len(steps) == 1 else None
                panel.plot(steps, errors, style, color=shade, linewidth=width, label=label, marker=dot)
                late = max(late, *(error for step, error in zip(steps, errors, strict=True) if 2 * step >= steps[-1]))
        panel.set_title(family)
        panel.set_xlabel("iterations")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_xlim(left=0)
        panel.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.15),
            ncols=6,
            handlelength=1.2,
            columnspacing=1,
            fontsize=8.5,
        )
    for panel in panels[len(families) :]:
        panel.set_axis_off()
    top = min(100, max(1.35 * late, 5))
    panels[0].set_ylim(-0.01 * top, top)  # as in the paper, the first steps, far above, are cut off
    for row in grid:
        row[0].set_ylabel("error (%)")
    styles = [
        Line2D([], [], color="#444444", linestyle="--", linewidth=1, label="training error"),
        Line2D([], [], color="#444444", linewidth=2, label="test error"),
    ]
    figure.legend(handles=styles, loc="outside lower center", ncols=2)
    return figure


def error_by_depth(families: Families) -> Figure:
    """Final training error (eval-mode pass) against depth: every seed a dot, the mean with its sample s.d."""
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    depths = sorted({depth for runs in families.values() for depth in runs})
    gap = min((b - a for a, b in pairwise(depths)), default=1)
    apart = min(0.02 * max(depths[-1] - depths[0], 1), 0.6 * gap / len(families))  # families beside each other
    for i, (family, runs) in enumerate(families.items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        errors = [[run.result["train_error_eval"] for run in by_seed.values()] for by_seed in runs.values()]
        summaries = [summarize(values) for values in errors]
        xs = [depth + apart * (i - (len(families) - 1) / 2) for depth in runs]
        means, sds = [summary.mean for summary in summaries], [summary.sd or 0 for summary in summaries]
        axes.errorbar(xs, means, yerr=sds, markersize=7, capsize=4, linewidth=1.5, label=family, **style)
        for x, values in zip(xs, errors, strict=True):
            axes.plot(
                [x] * len(values), values, ".", color=style["color"], mfc="white", mew=0.8, markersize=5, zorder=3
            )
    axes.set_xticks(depths)
    axes.set_xlabel("depth (weighted layers)")
    axes.set_ylabel("final training error (%)")
    axes.set_title("Mean and s.d. over seeds; small circles: the seeds", fontweight="normal", fontsize=10)
    axes.legend(loc="upper left")
    return figure


@dataclass(frozen=True)
class Panel:
    """A part of a probe's figure: a column of its CSV file by layer, at the beginning or at the end of training."""

    title: str
    column: str
    at_end: bool
    log: bool = True
    descending: bool = False  # sorted, as the lower half of He et al. 2015, figure 7


PROBES = {
    "responses": (
        Panel("std of responses at the end, in layer order", "std", at_end=True, log=False),
        Panel("the same, sorted", "std", at_end=True, log=False, descending=True),
    ),
    "gradients": (
        Panel("norm of the gradient of each layer's weights, at the beginning", "gradient", at_end=False),
        Panel("at the end", "gradient", at_end=True),
    ),
    "signals": (
        Panel("variance of each block's output, at the beginning", "variance", at_end=False),
        Panel("variance of the gradient there", "gradient_variance", at_end=False),
    ),
    "gradient_correlation": (
        Panel("absolute correlation of the images' gradients, at the beginning", "absolute_correlation", at_end=False),
        Panel("at the end", "absolute_correlation", at_end=True),
    ),
}


def probe_figure(probe: str, observed: Mapping[str, Mapping[int, Sequence[Observed]]]) -> Figure:
    """What a probe has found, by family and depth: a line for each, means over seeds.

    Over the layers, or, of a probe that knows one value for the whole net, over depth.
    """
    depths = sorted({depth for by_depth in observed.values() for depth in by_depth})
    panels = PROBES[probe]
    figure = Figure(figsize=(5.4 * len(panels), 4.4))
    grid: list[Axes] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=True):
        for colour, marker, (family, by_depth) in zip(cycle(COLOURS), cycle(MARKERS), observed.items(), strict=False):
            found = {depth: _means(of_seeds, panel) for depth, of_seeds in by_depth.items()}
            style: dict[str, Any] = {"marker": marker, "markersize": 3, "linewidth": 1.2}
            if all(len(values) == 1 for values in found.values()):
                axes.plot(list(found), [value for (value,) in found.values()], color=colour, label=family, **style)
                axes.set_xlabel("depth (weighted layers)")
                continue
            for depth, values in found.items():
                shade = _shade(colour, depths.index(depth), len(depths))
                label = f"{family}, {depth} layers"
                axes.plot(range(1, len(values) + 1), values, color=shade, label=label, **style)
            axes.set_xlabel("block" if probe == "signals" else "layer")
        axes.set_yscale("log" if panel.log else "linear")
        axes.set_title(panel.title, fontweight="normal", fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def observations(probe: str, families: Families) -> tuple[dict[str, dict[int, list[Observed]]], list[tuple[str, str]]]:
    """What a probe has found, by family and depth in as many runs as have it; the runs' folders of no use, and why."""
    observed: dict[str, dict[int, list[Observed]]] = {}
    unusable = []
    for family, by_depth in families.items():
        observed[family] = {}
        for depth, by_seed in by_depth.items():
            found: list[Observed] = []
            for run in by_seed.values():
                try:
                    one = _read(run.folder / "probes" / f"{probe}.csv", [panel.column for panel in PROBES[probe]])
                    if one and found and _layers(one) != _layers(found[0]):
                        raise ValueError("other layers than in other seeds")
                except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
                    unusable.append((run.folder.name, f"probes/{probe}.csv is damaged ({error!r}) and not drawn"))
                    continue
                found += [one] if one else []
            if found:
                observed[family][depth] = found
    return observed, unusable


def _read(file: Path, columns: Iterable[str]) -> Observed:
    """Some columns of what a probe has found in a run, nothing if it has not looked.

    Raises:
        OSError, KeyError, TypeError, ValueError, csv.Error: the file is damaged.
    """
    found: Observed = {}
    for row in read_rows(file) if file.exists() else []:
        at_step = found.setdefault(int(row["step"]), {column: [] for column in columns})
        for column, values in at_step.items():
            if int(row["layer"]) != len(values):
                raise ValueError(f"step {row['step']} has a layer doubled or left out")
            values.append(float(row[column]))
    if len({len(values) for at_step in found.values() for values in at_step.values()}) > 1:
        raise ValueError("steps have different layers")
    return found


def _layers(observed: Observed) -> int:
    """The number of layers in which something has been found."""
    return len(next(iter(next(iter(observed.values())).values())))


def _means(observed: Sequence[Observed], panel: Panel) -> list[float]:
    """What a panel shows of each layer, the mean over runs."""
    columns = [one[max(one) if panel.at_end else min(one)][panel.column] for one in observed]
    columns = [sorted(column, reverse=True) if panel.descending else column for column in columns]
    return [summarize(values).mean for values in zip(*columns, strict=True)]


def _shade(colour: str, i: int, n: int) -> tuple[float, ...]:
    """The i-th of n shades, from half-way to white to half-way to black."""
    share = 0.0 if n == 1 else 0.6 - 1.1 * i / (n - 1)
    target = 1.0 if share > 0 else 0.0
    return tuple(part + (target - part) * abs(share) for part in to_rgb(colour))


def mean_curve(runs: Iterable[Run], column: str) -> tuple[list[float], list[float]]:
    """The steps of some runs' curves, and a column's mean over the runs at each."""
    values: defaultdict[float, list[float]] = defaultdict(list)
    for run in runs:
        for row in run.curve():
            values[row["step"]].append(row[column])
    steps = sorted(values)
    return steps, [summarize(values[step]).mean for step in steps]
