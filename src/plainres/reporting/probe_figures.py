"""Figures of probes: values by layer, values over training, and the weights of what blocks read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from plainres.reporting.figures import (
    PANEL,
    PLAIN,
    SCALE,
    SPREAD,
    band,
    columns_in,
    family_style,
    legend_below,
    mark_below,
    note_below,
    shade_of,
    titled_figure,
    wrapped_to,
)
from plainres.reporting.observations import (
    OVER_TRAINING,
    PROBES,
    Observed,
    Panel,
    Reading,
    layer_values,
    values_over_training,
)
from plainres.reporting.statistics import summarize

OF_BLOCKS = ("signals", "connections")  # probes with a value for each block


def probe_figure(
    probe: str,
    observed: Mapping[str, Mapping[int, Sequence[Observed]]],
    title: str = "",
    width: float | None = None,
) -> Figure:
    """Draw the measurements of a probe as means over seeds with the s.d. shaded, a line per family and depth.

    The horizontal axis is the layer, or the depth if the probe measures one value for the whole net.
    """
    rows = PROBES[probe]
    columns = columns_in(2, width, 2.2)
    wide = (width or 10.8) / columns
    figure = titled_figure(wide * columns, 0.8 + len(rows) * 2 / columns * (0.5 * wide + 0.9), title)
    grid = figure.subplots(len(rows) * 2 // columns, columns, squeeze=False).reshape(len(rows), 2)
    handles: dict[str, Any] = {}
    for (left, right), panels in zip(grid, rows, strict=True):
        right.sharey(left)
        right.tick_params(labelleft=columns == 1)
        for axes, panel in zip((left, right), panels, strict=True):
            axes.set_title(wrapped_to(panel.title, wide - SCALE), **PLAIN)
            axes.set_xlabel("depth (weighted layers)" if panel.of_net else "block" if probe in OF_BLOCKS else "layer")
            axes.set_yscale("log" if panel.log else "linear")
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            handles |= _draw(axes, panel, observed)
        if panels[0].log:  # a band with an s.d. as large as the mean would extend the axis without limit
            shown = [
                [layer_values(of_seeds, panel) for panel in panels for of_seeds in by_depth.values()]
                for by_depth in observed.values()
            ]
            positive = [v for of_family in shown for layers in of_family for values in layers for v in values if v > 0]
            left.set_ylim(bottom=max(left.get_ylim()[0], min(positive, default=0) / 2))
    if any(isinstance(shaded, PolyCollection) for axes in grid.flat for shaded in axes.collections):
        handles[str(SPREAD.get_label())] = SPREAD
    for label, handle in handles.items():
        handle.set_label(label)
    legend_below(figure, list(handles.values()))
    return figure


def series_figure(
    probe: str,
    observed: Mapping[str, Mapping[int, Sequence[Observed]]],
    title: str = "",
    width: float | None = None,
) -> Figure:
    """Draw the values of a probe over training as means over seeds with the s.d. shaded, a line per family and depth.

    A point without positive values of all its seeds is left out of the logarithmic panels.
    """
    panels = OVER_TRAINING[probe]
    columns = columns_in(len(panels), width, 2.2)
    wide = (width or PANEL * columns) / columns
    rows = -(-len(panels) // columns)
    figure = titled_figure(wide * columns, rows * (0.62 * wide + 0.6), title)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    depths = sorted({depth for by_depth in observed.values() for depth in by_depth})
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        axes.set_title(wrapped_to(panel.title, wide - SCALE), **PLAIN)
        axes.set_xlabel("iterations")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_yscale("log")
        for i, (family, by_depth) in enumerate(observed.items()):
            style: dict[str, Any] = {**family_style(i), "markersize": 3, "linewidth": 1.2}
            for depth, of_seeds in by_depth.items():
                style["color"] = shade_of(family_style(i)["color"], depths.index(depth), len(depths))
                values = values_over_training(of_seeds, panel)
                points = {step: summarize(each) for step, each in values.items() if min(each) > 0}
                (handles[f"{family}, {depth} layers"],) = axes.plot(
                    list(points), [point.mean for point in points.values()], **style
                )
                band(axes, list(points), points.values(), style["color"])
        if panel.bound is not None:
            axes.axhline(panel.bound, color="#777777", linestyle=":")
    for label, handle in handles.items():
        handle.set_label(label)
    legend_below(figure, list(handles.values()))
    return figure


def reading_figure(readings: Mapping[str, Reading], title: str = "", width: float | None = None) -> Figure:
    """Draw the weights of the sources that each block reads as a heat map for each family's deepest network.

    The sources are streams, or the outputs since the start of the stage, whose input is the first. All panels share a
    scale, on which 0 is white.
    """
    columns = columns_in(min(len(readings), 3), width)
    wide = (width or PANEL * columns) / columns
    rows = -(-len(readings) // columns)
    figure = titled_figure(wide * columns, rows * (0.8 * wide + 0.6), title)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    largest = max(abs(weight) for reading in readings.values() for weights in reading.blocks for weight in weights)
    shown = None
    for axes, (family, reading) in zip(grid, readings.items(), strict=False):
        sources = max(map(len, reading.blocks))
        weights = [[*block, *[math.nan] * (sources - len(block))] for block in reading.blocks]
        shown = axes.pcolormesh(weights, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_title(wrapped_to(f"{family}, {reading.depth} layers", 0.8 * wide))
        axes.set_xticks([i + 0.5 for i in range(sources)], [str(i + 1) for i in range(sources)])
        axes.set_yticks([i + 0.5 for i in range(len(weights))], [str(i + 1) for i in range(len(weights))])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_tick_params(labelsize="x-small")
            for i, label in enumerate(axis.get_ticklabels()):
                label.set_visible(i % -(-len(axis.get_ticklabels()) // 12) == 0)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlabel("source: stream, or output in the stage")
        axes.set_ylabel("block")
    for axes in grid[len(readings) :]:
        axes.set_axis_off()
    assert shown is not None
    figure.colorbar(shown, ax=grid, label="weight of the source in what the block reads")
    return figure


def _draw(axes: Axes, panel: Panel, observed: Mapping[str, Mapping[int, Sequence[Observed]]]) -> dict[str, Any]:
    """Draw a panel, and return its lines by their labels."""
    depths = sorted({depth for by_depth in observed.values() for depth in by_depth})
    handles: dict[str, Any] = {}
    below: list[float] = []  # means that have no logarithm
    open_below = False  # whether a band has no lower edge
    for i, (family, by_depth) in enumerate(observed.items()):
        style: dict[str, Any] = {**family_style(i), "markersize": 3, "linewidth": 1.2}
        columns = {depth: layer_values(of_seeds, panel) for depth, of_seeds in by_depth.items()}
        by_layer = {depth: [summarize(values) for values in layers] for depth, layers in columns.items() if layers}
        if panel.of_net and by_layer:
            of_nets = {depth: summary for depth, summaries in by_layer.items() for summary in summaries}
            means, sds = [one.mean for one in of_nets.values()], [one.sd or 0 for one in of_nets.values()]
            handles[family] = axes.errorbar(list(of_nets), means, yerr=sds, capsize=4, **style)
            continue
        for depth, summaries in by_layer.items():
            style["color"] = shade_of(family_style(i)["color"], depths.index(depth), len(depths))
            numbers = range(1, len(summaries) + 1)
            means = [summary.mean for summary in summaries]
            low = {number: mean for number, mean in zip(numbers, means, strict=True) if panel.log and mean <= 0}
            heights = [math.nan if number in low else mean for number, mean in zip(numbers, means, strict=True)]
            (handles[f"{family}, {depth} layers"],) = axes.plot(numbers, heights, **style)
            band(axes, numbers, summaries, style["color"])
            open_below |= panel.log and any((one.sd or 0) >= one.mean > 0 for one in summaries)
            if low:
                mark_below(axes, list(low), **style)
                below += low.values()
    notes = [note_below(below)] if below else []
    if open_below:
        notes.append("a band that leaves the panel below reaches 0 or less")
    axes.set_xlabel("\n".join([axes.get_xlabel(), *notes]))
    return handles
