"""Figure of a tuned option: validation error against its values, and the best value against depth."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from plainres.reporting.choices import interval
from plainres.reporting.figures import (
    PANEL,
    columns_in,
    family_style,
    legend_below,
    shade_of,
    titled_figure,
    wrapped_to,
)
from plainres.reporting.statistics import summarize
from plainres.reporting.tuned import EXPECTED, Tuned

CROSS: dict[str, Any] = {"marker": "x", "markersize": 5, "linestyle": ""}  # of a value at which a run diverged


def tuned_figure(tuned: Tuned, title: str = "", width: float | None = None) -> Figure:
    """Draw the choice of a value: a panel for each network with a line for each depth, then the best value by depth.

    Lines are means over the seeds of the choice, bars their sample s.d., rings the best values, and crosses at the top
    values at which a run diverged. In the last panel, bars are the ranges of `interval`, solid lines the fits of
    `Tuned.fitted`, and the dotted line has the expected exponent.

    Args:
        tuned: the choices.
        title: the title of the figure.
        width: its width in inches; None uses the width that its panels need.
    """
    panels = len(tuned.choices) + 1
    columns = columns_in(min(panels, 3), width)
    rows = -(-panels // columns)
    wide = (width or PANEL * columns) / columns
    figure = titled_figure(wide * columns, rows * (0.62 * wide + 0.6), title)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.set_axis_off()
    depths = sorted({depth for by_depth in tuned.choices.values() for depth in by_depth})
    grey = [shade_of("#777777", i, len(depths)) for i in range(len(depths))]
    shades = [Line2D([], [], color=grey[i], label=f"depth {depth}") for i, depth in enumerate(depths)]
    if any(chosen.diverged for by_depth in tuned.choices.values() for chosen in by_depth.values()):
        shades.append(Line2D([], [], color="#777777", label="diverged", **CROSS))
    for i, label in enumerate(tuned.choices):
        _draw_errors(grid[i], tuned, label, family_style(i), depths)
        grid[i].set_title(wrapped_to(label, 0.8 * wide))
    top = min(100, max(axes.get_ylim()[1] for axes in grid[: panels - 1]))
    for axes in grid[: panels - 1]:
        axes.set_ylim(0, top)
    networks = _draw_best(grid[panels - 1], tuned, depths)
    legend_below(figure, [*shades, *networks])
    return figure


def _draw_errors(axes: Axes, tuned: Tuned, label: str, style: dict[str, Any], depths: list[int]) -> None:
    """Draw the validation errors of one network against the values."""
    for depth, chosen in tuned.choices[label].items():
        color = shade_of(style["color"], depths.index(depth), len(depths))
        finite = {
            value: summarize(list(errors.values()))
            for value, errors in chosen.errors.items()
            if errors.keys() >= set(chosen.seeds) and all(map(math.isfinite, errors.values()))
        }
        means, sds = [each.mean for each in finite.values()], [each.sd or 0 for each in finite.values()]
        axes.errorbar(list(finite), means, yerr=sds, color=color, marker=".", capsize=2, linewidth=1.2)
        if chosen.best is not None:
            ring: dict[str, Any] = {"marker": "o", "mfc": "none", "markersize": 9}
            axes.plot([chosen.best], [chosen.mean(chosen.best)], color=color, **ring)
        if chosen.diverged:
            height = 0.96 - 0.05 * depths.index(depth)  # of the panel, so that depths do not cover each other
            heights = [height] * len(chosen.diverged)
            axes.plot(chosen.diverged, heights, color=color, transform=axes.get_xaxis_transform(), **CROSS)
    axes.set_xscale("log")
    axes.set_xlabel(tuned.option)
    axes.set_ylabel("validation error (%)")


def _draw_best(axes: Axes, tuned: Tuned, depths: list[int]) -> list[Line2D]:
    """Draw the best values against depth, and return the handles of a legend."""
    handles = []
    highest = 0.0
    for i, (label, by_depth) in enumerate(tuned.choices.items()):
        style = family_style(i)
        points = {depth: chosen for depth, chosen in by_depth.items() if chosen.best is not None}
        for depth, chosen in points.items():
            best = chosen.best or math.nan
            low, high = (None if tuned.unequal[label][depth] else interval(chosen)) or (best, best)
            shifted = depth * 1.03 ** (i - (len(tuned.choices) - 1) / 2)
            inside = "full" if not chosen.at_edge else "none"
            bars: dict[str, Any] = {"capsize": 3, "linestyle": "", "fillstyle": inside}
            axes.errorbar([shifted], [best], yerr=[[best - low], [high - best]], **style, **bars)
            highest = max(highest, best)
        if fitted := tuned.fitted(label):
            ys = [math.exp(fitted.intercept) * depth**fitted.slope for depth in fitted.depths]
            axes.plot(fitted.depths, ys, color=style["color"], linewidth=1)
        handles.append(Line2D([], [], linestyle="", label=f"best, {label}", **style))
    if tuned.option in EXPECTED and highest:
        power, _ = EXPECTED[tuned.option]
        ys = [highest * (depth / depths[0]) ** power for depth in depths]
        axes.plot(depths, ys, ":", color="#777777")
        handles.append(Line2D([], [], linestyle=":", color="#777777", label=f"depth^({power:+g})"))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(depths)
    axes.set_yticks(
        sorted(
            {value for of_network in tuned.choices.values() for each in of_network.values() for value in each.errors}
        )
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("depth (weighted layers)")
    axes.set_ylabel(f"best {tuned.name}")
    axes.set_title("best value, with its range", fontweight="normal", fontsize="medium")
    return handles
