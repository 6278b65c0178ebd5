"""Figures of a study as SVG and PNG: curves as in He et al. 2015, Figure 6, and final error by depth; their style.

Runs are given as family -> depth (ascending) -> seed -> run. Within a family, deeper nets are darker. The first seven
families have the colours of Okabe and Ito (2008), which colour-blind readers can distinguish. Further families also
differ in their markers.
"""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import style as styles
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from plainres.config.schema import Config
from plainres.console import quantity
from plainres.reporting.observations import Families
from plainres.reporting.statistics import Summary, summarize
from plainres.runs.record import Run

COLOURS = (
    *("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),  # Okabe and Ito's
    *("#800000", "#1A237E", "#BDB76B", "#DC143C", "#2F4F4F", "#117733", "#C71585"),  # distinct from the first seven
)
MARKERS = "osD^vPX"
DATA = {  # display names of data sets, by the name or the class in their configuration
    "Digits": "Digits (scikit-learn)",
    "Synthetic": "random images",
    "uoft-cs/cifar10": "CIFAR-10",
    "uoft-cs/cifar100": "CIFAR-100",
    "ILSVRC/imagenet-1k": "ImageNet",
}
PANEL, NARROW = 4.8, 1.6  # inches: default width of a panel, and its minimum if the figure's width is given
SCALE = 0.38  # inches of a panel's width that its vertical scale takes
BAND: dict[str, Any] = {"alpha": 0.18, "linewidth": 0}
SPREAD = Patch(color="#444444", label="s.d. over seeds", **BAND)  # for legends
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "savefig.dpi": 150,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "figure.titlesize": "large",
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "plainres",  # makes the bytes of an SVG file reproducible
}
NO_STAMP: dict[str, Any] = {"Date": None, "Creator": None}
FIXED: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "savefig.dpi": 300}  # for papers, with a given width
PLAIN: dict[str, Any] = {"fontweight": "normal", "fontsize": "medium"}  # for titles that are sentences


def save(draw: Callable[[], Figure], file: Path, width: float | None = None) -> None:
    """Draw a figure in the common style, and write it to <file>.svg and <file>.png."""
    with styles.context(STYLE | (FIXED if width else {}), after_reset=True):  # not the user's matplotlibrc
        figure = draw()
        figure.savefig(file.with_name(f"{file.name}.svg"), metadata=NO_STAMP)
        figure.savefig(file.with_name(f"{file.name}.png"))


def study_title(study: str, configs: Iterable[Config]) -> str:
    """Return a title with the names of a study and its data sets."""
    data = (str(config.data.get("name") or config.data["_target_"].rpartition(".")[2]) for config in configs)
    return f"{study} · {', '.join(dict.fromkeys(DATA.get(name, name) for name in data))}"


def family_style(family: int) -> dict[str, Any]:
    """Return the colour and the marker of a family by its index; the first 98 combinations are distinct."""
    shift = family // len(MARKERS)
    return {"color": COLOURS[family % len(COLOURS)], "marker": MARKERS[(family + shift) % len(MARKERS)]}


# curves of an error: column of metrics.csv, line style, line width in units of the font size
ERROR_CURVES = (("train/error", "--", 0.1), ("test/error", "-", 0.2), ("validation/error", ":", 0.1))


def curves(families: Families, title: str = "", width: float | None = None) -> Figure:
    """Draw running training error (dashed) and test error (bold) as means over seeds, with the s.d. shaded.

    The validation error, if there is one, is dotted. There is one panel per family, which extends to the family's
    longest run.
    """
    columns = columns_in(min(len(families), 3), width)
    rows = -(-len(families) // columns)
    wide = (width or max(PANEL * columns, 6)) / columns
    depths = sorted({depth for runs in families.values() for depth in runs})
    ncols = _fitting([f"{depth} layers" for depth in depths], wide, 3)
    key: dict[str, Any] = {"handlelength": 1.2, "columnspacing": 1, "fontsize": "small", "ncols": ncols}
    high = 0.58 * wide + 1.3 + 0.17 * ((len(depths) - 1) // ncols)
    figure = titled_figure(wide * columns, rows * high, title)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    size = mpl.rcParams["font.size"]
    late = 0.0  # the largest error of the second half of training
    for i, (panel, (family, runs)) in enumerate(zip(panels, families.items(), strict=False)):
        for depth, by_seed in runs.items():
            shade = shade_of(family_style(i)["color"], depths.index(depth), len(depths))
            for column, style, thickness in ERROR_CURVES:
                if not all(column in run.curve()[-1] for run in by_seed.values()):
                    continue
                steps, summaries = _summarized(by_seed.values(), column)
                errors = [summary.mean for summary in summaries]
                label = f"{depth} layers" if style == "-" else None
                dot = "." if len(steps) == 1 else None
                panel.plot(steps, errors, style, color=shade, linewidth=thickness * size, label=label, marker=dot)
                band(panel, steps, summaries, shade)
                late = max(late, *(error for step, error in zip(steps, errors, strict=True) if 2 * step >= steps[-1]))
        panel.set_title(wrapped_to(family, 0.8 * wide))
        panel.set_xlabel("iterations")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_xlim(left=0)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45 / (0.65 * wide)), **key)
    for panel in panels[len(families) :]:
        panel.set_axis_off()
    top = min(100, max(1.35 * late, 5))
    panels[0].set_ylim(-0.01 * top, top)  # cuts off the large errors of the first steps, as in the paper
    for row in grid:
        row[0].set_ylabel("error (%)")
    styles: list[Artist] = [
        Line2D([], [], color="#444444", linestyle="--", linewidth=1, label="training error"),
        Line2D([], [], color="#444444", linewidth=2, label="test error"),
    ]
    if any(line.get_linestyle() == ":" for panel in panels for line in panel.lines):
        styles.append(Line2D([], [], color="#444444", linestyle=":", linewidth=1, label="validation error"))
    if any(panel.collections for panel in panels):
        styles.append(SPREAD)
    legend_below(figure, styles)
    return figure


def error_by_depth(families: Families, title: str = "", width: float | None = None) -> Figure:
    """Draw final training error (evaluation mode) against depth: a dot per seed, and the mean with its sample s.d."""
    wide = width or 6.4
    figure = titled_figure(wide, 0.5 * wide + 1.4, title)
    axes = figure.subplots()
    depths = sorted({depth for runs in families.values() for depth in runs})
    gap = min((b - a for a, b in pairwise(depths)), default=1)
    offset = min(0.02 * max(depths[-1] - depths[0], 1), 0.6 * gap / len(families))  # between neighbouring families
    handles: list[Any] = []
    size = mpl.rcParams["font.size"]
    for i, (family, runs) in enumerate(families.items()):
        style = family_style(i)
        errors = [[run.result["train_error_eval"] for run in by_seed.values()] for by_seed in runs.values()]
        summaries = [summarize(values) for values in errors]
        xs = [depth + offset * (i - (len(families) - 1) / 2) for depth in runs]
        means, sds = [summary.mean for summary in summaries], [summary.sd or 0 for summary in summaries]
        bars: dict[str, Any] = {"markersize": 0.7 * size, "capsize": 0.4 * size, "linewidth": 0.15 * size}
        handles.append(axes.errorbar(xs, means, yerr=sds, label=family, **style, **bars))
        for x, values in ((x, values) for x, values in zip(xs, errors, strict=True) if len(values) > 1):
            dots: dict[str, Any] = {"marker": ".", "markersize": 0.5 * size, "mfc": "white", "mew": 0.8}
            axes.plot([x] * len(values), values, linestyle="", zorder=3, **style | dots)
    axes.set_xticks(depths)
    axes.set_xlabel("depth (weighted layers)")
    axes.set_ylabel("final training error (%)")
    several = any(len(by_seed) > 1 for runs in families.values() for by_seed in runs.values())
    shown = "Mean and s.d. over seeds; small circles: the seeds" if several else "One seed per family and depth"
    axes.set_title(wrapped_to(shown, wide - SCALE), **PLAIN)
    legend_below(figure, handles)
    return figure


def titled_figure(width: float, height: float, title: str) -> Figure:
    """Return a figure of a size in inches, enlarged by the height of its title."""
    lines = wrapped_to(title, 0.8 * width)
    figure = Figure(figsize=(width, height + 0.25 * bool(title) * (1 + lines.count("\n"))))
    if title:
        figure.suptitle(lines, parse_math=False)
    return figure


def columns_in(maximum: int, width: float | None, narrowest: float = NARROW) -> int:
    """Return the number of panels, each at least `narrowest` inches wide, that fit next to each other."""
    return maximum if width is None else max(1, min(maximum, int(width / narrowest)))


def wrapped_to(text: str, width: float) -> str:
    """Wrap a text to a width in inches."""
    return textwrap.fill(text, max(int(width * 72 / (0.53 * mpl.rcParams["font.size"])), 10))


def _fitting(labels: Sequence[str], width: float, symbol: float = 4.5) -> int:
    """Return the number of legend columns that fit into a width in inches, with symbols of a width in ems."""
    size = mpl.rcParams["font.size"] * 0.83
    return min(len(labels), max(1, int(width * 72 / (size * (symbol + 0.55 * max(map(len, labels)))))))


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """Add a legend below all panels, and enlarge the figure by its height."""
    labels = [str(handle.get_label()) for handle in handles]
    columns = _fitting(labels, figure.get_figwidth())
    figure.legend(handles=handles, loc="outside lower center", fontsize="small", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * ((len(labels) - 1) // columns))


def mark_below(axes: Axes, xs: Sequence[float], **style: Any) -> None:
    """Mark the values of a logarithmic panel that have no logarithm, hollow and at its lower edge."""
    edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "linestyle": ""}
    axes.plot(xs, [0] * len(xs), **style | edge, mfc="white", zorder=3)


def note_below(values: Sequence[float]) -> str:
    """Explain the marks of `mark_below` for these values."""
    return f"{quantity(len(values), 'value')} of {'0 or less' if any(values) else '0'}: hollow, at the lower edge"


def band(axes: Axes, xs: Sequence[float], summaries: Iterable[Summary], colour: tuple[float, ...]) -> None:
    """Shade mean -+ sample s.d. if there are several seeds."""
    summaries = list(summaries)
    if any(summary.n > 1 for summary in summaries):
        low, high = ([one.mean + sign * (one.sd or 0) for one in summaries] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, **BAND)


def shade_of(colour: str, i: int, n: int) -> tuple[float, float, float]:
    """Return the i-th of n shades of a colour, from 60 % towards white to 50 % towards black."""
    share = 0.0 if n == 1 else 0.6 - 1.1 * i / (n - 1)
    target = 1.0 if share > 0 else 0.0
    red, green, blue = (part + (target - part) * abs(share) for part in to_rgb(colour))
    return red, green, blue


def mean_curve(runs: Iterable[Run], column: str) -> tuple[list[float], list[float]]:
    """Return the steps that the curves of all runs have, and the mean of a column over the runs at each."""
    steps, summaries = _summarized(runs, column)
    return steps, [summary.mean for summary in summaries]


def _summarized(runs: Iterable[Run], column: str) -> tuple[list[float], list[Summary]]:
    """Return the steps that the curves of all runs have, and the mean and s.d. of a column over the runs at each.

    At other steps, as of runs on another number of images, it would be a mean over other seeds.
    """
    curves = [run.curve() for run in runs]
    values: defaultdict[float, list[float]] = defaultdict(list)
    for curve in curves:
        for row in curve:
            values[row["step"]].append(row[column])
    steps = sorted(step for step in values if len(values[step]) == len(curves))
    return steps, [summarize(values[step]) for step in steps]
