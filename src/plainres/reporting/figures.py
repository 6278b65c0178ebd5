"""Figures of a study, as SVG and PNG: curves as in He et al. 2015, Figure 6, and final error by depth.

Runs come as family -> depth (ascending) -> seed -> run. Families have the colours of Okabe and Ito (2008), which
colour-blind readers can tell apart; within a family, the deeper the darker.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from plainres.reporting.statistics import Summary, summarize
from plainres.runs.record import Run

Families = Mapping[str, Mapping[int, Mapping[int, Run]]]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
BAND: dict[str, Any] = {"alpha": 0.18, "linewidth": 0}
SPREAD = Patch(color="#444444", label="s.d. over seeds", **BAND)  # for legends
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
    """Running training error (dashed) and test error (bold), means over seeds, with their s.d. shaded: a panel for each
    family."""
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
                steps, summaries = _summarized(by_seed.values(), column)
                errors = [summary.mean for summary in summaries]
                label = f"{depth} layers" if style == "-" else None
                dot = "." if len(steps) == 1 else None
                panel.plot(steps, errors, style, color=shade, linewidth=width, label=label, marker=dot)
                _band(panel, steps, summaries, shade)
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
    styles: list[Artist] = [
        Line2D([], [], color="#444444", linestyle="--", linewidth=1, label="training error"),
        Line2D([], [], color="#444444", linewidth=2, label="test error"),
    ]
    if any(panel.collections for panel in panels):
        styles.append(SPREAD)
    figure.legend(handles=styles, loc="outside lower center", ncols=len(styles))
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
    of_net: bool = False  # one value for the whole net, by depth


def _both(title: str, column: str, **options: bool) -> tuple[Panel, Panel]:
    """The panels of a column at the beginning and at the end."""
    return (
        Panel(f"{title}, at the beginning", column, at_end=False, **options),
        Panel(f"{title}, at the end", column, at_end=True, **options),
    )


PROBES: dict[str, tuple[tuple[Panel, Panel], ...]] = {  # rows of panels, each row on one scale
    "responses": (
        (
            Panel("std of responses at the end, in layer order", "std", at_end=True, log=False),
            Panel("the same, sorted", "std", at_end=True, log=False, descending=True),
        ),
    ),
    "gradients": (
        _both("norm of the gradient of each layer's weights", "gradient"),
        _both("norm of the update relative to that of the weights", "update_to_weight"),
    ),
    "signals": (
        _both("mean of each block's output", "mean", log=False),
        _both("variance of each block's output", "variance"),
        _both("variance of the gradient there", "gradient_variance"),
    ),
    "gradient_correlation": (
        _both("absolute correlation of the images' gradients", "absolute_correlation", log=False, of_net=True),
    ),
}
LEFT_OUT = {"responses": "head.linear"}  # He et al. 2015, figure 7, has the 3x3 layers alone


@dataclass(frozen=True)
class Observed:
    """What a probe has found in a run.

    Args:
        layers: their names.
        values: for each layer, by column, at the beginning (False) and at the end (True), where it has looked then. An
            infinite value is NaN: it has no place in a figure, which leaves a gap.
    """

    layers: list[str]
    values: dict[bool, dict[str, list[float]]]


def probe_figure(probe: str, observed: Mapping[str, Mapping[int, Sequence[Observed]]]) -> Figure:
    """What a probe has found, by family and depth: a line for each, means over seeds, with their s.d. shaded.

    Over the layers, or, of a probe that knows one value for the whole net, over depth.
    """
    figure = Figure(figsize=(10.8, 0.8 + 3.6 * len(PROBES[probe])))
    grid = figure.subplots(len(PROBES[probe]), 2, sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for row, panels in zip(grid, PROBES[probe], strict=True):
        for axes, panel in zip(row, panels, strict=True):
            handles |= _draw(axes, panel, observed)
            axes.set_title(panel.title, fontweight="normal", fontsize=10)
            axes.set_xlabel("depth (weighted layers)" if panel.of_net else "block" if probe == "signals" else "layer")
            axes.set_yscale("log" if panel.log else "linear")
        if panels[0].log:  # on which a band has no end where the s.d. is as large as the mean
            seen = [[_columns(seeds, panel) for panel in panels for seeds in of.values()] for of in observed.values()]
            found = [v for of in seen for columns in of for values in columns for v in values if v > 0]
            row[0].set_ylim(bottom=max(row[0].get_ylim()[0], min(found, default=0) / 2))
    if any(isinstance(shaded, PolyCollection) for axes in grid.flat for shaded in axes.collections):
        handles[str(SPREAD.get_label())] = SPREAD
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, fontsize=8.5)
    return figure


def _draw(axes: Axes, panel: Panel, observed: Mapping[str, Mapping[int, Sequence[Observed]]]) -> dict[str, Any]:
    """Draw a panel; return its lines by their labels."""
    depths = sorted({depth for by_depth in observed.values() for depth in by_depth})
    handles: dict[str, Any] = {}
    for colour, marker, (family, by_depth) in zip(cycle(COLOURS), cycle(MARKERS), observed.items(), strict=False):
        style: dict[str, Any] = {"marker": marker, "markersize": 3, "linewidth": 1.2}
        columns = {depth: _columns(of_seeds, panel) for depth, of_seeds in by_depth.items()}
        found = {depth: [summarize(values) for values in of_depth] for depth, of_depth in columns.items() if of_depth}
        if panel.of_net and found:
            ends = {depth: summary for depth, summaries in found.items() for summary in summaries}
            means, sds = [one.mean for one in ends.values()], [one.sd or 0 for one in ends.values()]
            handles[family] = axes.errorbar(list(ends), means, yerr=sds, capsize=4, color=colour, **style)
            continue
        for depth, summaries in found.items():
            shade = _shade(colour, depths.index(depth), len(depths))
            numbers = range(1, len(summaries) + 1)
            (line,) = axes.plot(numbers, [summary.mean for summary in summaries], color=shade, **style)
            _band(axes, numbers, summaries, shade)
            handles[f"{family}, {depth} layers"] = line
    return handles


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
                    one = _read(run, probe)
                    if one and found and one.layers != found[0].layers:
                        raise ValueError("other layers than in other seeds")
                except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
                    unusable.append((run.folder.name, f"probes/{probe}.csv is damaged ({error!r}) and not drawn"))
                    continue
                found += [one] if one else []
            if found:
                observed[family][depth] = found
    return observed, unusable


def _read(run: Run, probe: str) -> Observed | None:
    """What a probe has found in a finished run at its beginning and its end, None if it has looked at neither.

    Raises:
        OSError, KeyError, TypeError, ValueError, csv.Error: the file is damaged.
    """
    found: dict[int, list[dict[str, str]]] = {}
    for row in run.probe_rows(probe):
        found.setdefault(int(row["step"]), []).append(row)
    for step, rows in found.items():
        if [int(row["layer"]) for row in rows] != list(range(len(rows))):
            raise ValueError(f"step {step} has a layer doubled or left out")
    names = [[row["name"] for row in rows if row["name"] != LEFT_OUT.get(probe)] for rows in found.values()]
    if any(of_step != names[0] for of_step in names):
        raise ValueError("steps have different layers")
    values = {}
    for at_end, step in ((False, 0), (True, run.result["steps"])):  # a run may go on with a probe it has begun without
        if step in found:
            rows = [row for row in found[step] if row["name"] in names[0]]
            columns = {panel.column for panels in PROBES[probe] for panel in panels}
            values[at_end] = {column: [_finite(row[column]) for row in rows] for column in columns}
    return Observed(names[0], values) if values else None


def _finite(text: str) -> float:
    """Read a value; an infinite one is NaN."""
    value = float(text)
    return value if math.isfinite(value) else math.nan


def _columns(observed: Iterable[Observed], panel: Panel) -> list[tuple[float, ...]]:
    """What a panel shows of each layer, of each run that has it."""
    found = [one.values[panel.at_end][panel.column] for one in observed if panel.at_end in one.values]
    return list(zip(*(sorted(values, reverse=True) if panel.descending else values for values in found), strict=True))


def _band(axes: Axes, xs: Sequence[float], summaries: Iterable[Summary], colour: tuple[float, ...]) -> None:
    """Shade mean -+ sample s.d., if there are several seeds."""
    summaries = list(summaries)
    if any(summary.n > 1 for summary in summaries):
        low, high = ([one.mean + sign * (one.sd or 0) for one in summaries] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, **BAND)


def _shade(colour: str, i: int, n: int) -> tuple[float, ...]:
    """The i-th of n shades, from half-way to white to half-way to black."""
    share = 0.0 if n == 1 else 0.6 - 1.1 * i / (n - 1)
    target = 1.0 if share > 0 else 0.0
    return tuple(part + (target - part) * abs(share) for part in to_rgb(colour))


def mean_curve(runs: Iterable[Run], column: str) -> tuple[list[float], list[float]]:
    """The steps of some runs' curves, and a column's mean over the runs at each."""
    steps, summaries = _summarized(runs, column)
    return steps, [summary.mean for summary in summaries]


def _summarized(runs: Iterable[Run], column: str) -> tuple[list[float], list[Summary]]:
    """The steps of some runs' curves, and a column's mean and s.d. over the runs at each."""
    values: defaultdict[float, list[float]] = defaultdict(list)
    for run in runs:
        for row in run.curve():
            values[row["step"]].append(row[column])
    steps = sorted(values)
    return steps, [summarize(values[step]) for step in steps]
