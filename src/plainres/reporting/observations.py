"""Measurements of probes, read from the records of runs for the figures."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from plainres.runs.identity import measurement
from plainres.runs.record import Run

Families = Mapping[str, Mapping[int, Mapping[int, Run]]]  # family -> depth -> seed -> run


@dataclass(frozen=True)
class Panel:
    """A panel of a probe's figure, which shows a column of its CSV file by layer, before or after training."""

    title: str
    column: str
    at_end: bool
    log: bool = True
    descending: bool = False  # sorted, as in the lower half of He et al. 2015, figure 7
    of_net: bool = False  # one value for the whole net, drawn by depth


def _both(title: str, column: str, **options: bool) -> tuple[Panel, Panel]:
    """Return the panels of a column before and after training."""
    return (
        Panel(f"{title}, at the beginning", column, at_end=False, **options),
        Panel(f"{title}, at the end", column, at_end=True, **options),
    )


PROBES: dict[str, tuple[tuple[Panel, Panel], ...]] = {  # rows of panels that share a scale
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
    "connections": (
        _both("gain of the streams since the stage's start, forward", "forward_gain"),
        _both("the same, backward", "backward_gain"),
    ),
    "gradient_correlation": (
        _both("absolute correlation of the images' gradients", "absolute_correlation", log=False, of_net=True),
    ),
}


@dataclass(frozen=True)
class Series:
    """A panel of a figure that shows a column of a probe's CSV file over training.

    Args:
        title: the title of the panel.
        column: the column.
        bound: a value with a meaning, which is marked; None without one.
    """

    title: str
    column: str
    bound: float | None = None


OVER_TRAINING: dict[str, tuple[Series, ...]] = {
    "sharpness": (
        Series("largest eigenvalue of the Hessian", "sharpness"),
        Series("the same, relative to the largest stable one", "to_stable", 1),
    )
}
LEFT_OUT = {"responses": "head.linear"}  # He et al. 2015, figure 7, shows only the 3x3 layers


@dataclass(frozen=True)
class Observed:
    """Measurements of a probe in a run.

    Args:
        images: the images on which they were made, as "256 of 1500".
        settings: the settings of the probe that determine its values, and differ from their defaults.
        layers: the names of the layers.
        steps: the number of steps of the run.
        values: the values of each layer, by column, at each step that the figures show, if measured: before and after
            training, or all of a probe in OVER_TRAINING. Infinite values are replaced by NaN, which leaves a gap in a
            figure.
    """

    images: str
    settings: dict[str, str]
    layers: list[str]
    steps: int
    values: dict[int, dict[str, list[float]]]


def observations(probe: str, families: Families) -> tuple[dict[str, dict[int, list[Observed]]], list[tuple[str, str]]]:
    """Read the measurements of a probe in all runs that have them.

    Returns:
        The measurements by family and depth; and the folders of runs that are not drawn, or not in all panels, although
        other seeds are, with the reason.
    """
    observed: dict[str, dict[int, list[Observed]]] = {}
    unusable = []
    unmeasured = f"it has no measurements of {probe} and is not drawn, unlike other seeds"
    lacking = f"probes/{probe}.csv has no measurement {{}} training, where the figure shows only the other seeds"
    for family, by_depth in families.items():
        observed[family] = {}
        for depth, by_seed in by_depth.items():
            of_seeds: dict[str, Observed] = {}  # by folder
            without = []
            for run in by_seed.values():
                first = next(iter(of_seeds.values()), None)
                try:
                    of_run = _read(run, probe)
                    if of_run and first and of_run.layers != first.layers:
                        raise ValueError("other layers than in other seeds")
                except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
                    unusable.append((run.folder.name, f"probes/{probe}.csv is damaged ({error!r}) and not drawn"))
                    continue
                if of_run is None:
                    without.append(run.folder.name)
                elif first and of_run.images != first.images:
                    samples = f"{of_run.images} images and not drawn; that of another seed is of {first.images}"
                    unusable.append((run.folder.name, f"probes/{probe}.csv is of {samples}"))
                elif first and (settings := _differing(of_run.settings, first.settings)):
                    unusable.append((run.folder.name, f"probes/{probe}.csv has {settings} and is not drawn"))
                else:
                    of_seeds[run.folder.name] = of_run
            if of_seeds:
                observed[family][depth] = [*of_seeds.values()]
                unusable += [(folder, unmeasured) for folder in without]
                for when, at_end in (("before", False), ("after", True)) if probe in PROBES else ():
                    measured = [name for name, one in of_seeds.items() if (one.steps if at_end else 0) in one.values]
                    if measured:
                        unusable += [(name, lacking.format(when)) for name in of_seeds if name not in measured]
    return observed, unusable


@dataclass(frozen=True)
class Reading:
    """Weights of the sources that each block of a network reads after training, as means over seeds."""

    depth: int
    blocks: list[list[float]]


def readings(families: Families) -> tuple[dict[str, Reading], list[tuple[str, str]]]:
    """Read what the blocks of each family's deepest networks read, from the probe connections.

    Families without such weights are left out, and those with a seed whose weights cannot be averaged with the others:
    a mean over the others would hide it.

    Returns:
        The weights by family; and the folders of such seeds, with the reason.
    """
    found, unusable = {}, []
    for family, by_depth in families.items():
        depth = max(by_depth)
        of_seeds = {run.folder.name: _reads(run) for run in by_depth[depth].values()}
        with_weights = [read for read in of_seeds.values() if read and any(read.blocks)]
        if not with_weights:
            continue
        first = with_weights[0]
        if others := [name for name, read in of_seeds.items() if not (read and read.comparable(first))]:
            reason = f"its probes/connections.csv has no weights, or other blocks, images ({first.images} in the first "
            reason += f"seed) or settings; the figure of what blocks read is without {family}"
            unusable += [(name, reason) for name in others]
            continue
        blocks = [
            [sum(weights) / len(weights) for weights in zip(*block, strict=True)]
            for block in zip(*(read.blocks for read in with_weights), strict=True)
        ]
        found[family] = Reading(depth, blocks)
    return found, unusable


@dataclass(frozen=True)
class _Reads:
    """Weights of what the blocks of a run read after training, and how they were measured."""

    blocks: list[list[float]]
    images: str
    settings: dict[str, str]

    def comparable(self, other: "_Reads") -> bool:
        shapes = [[len(weights) for weights in read.blocks] for read in (self, other)]
        return shapes[0] == shapes[1] and (self.images, self.settings) == (other.images, other.settings)


def _reads(run: Run) -> _Reads | None:
    """Read the weights of the blocks of a run, or return None if its file is damaged."""
    try:
        rows = run.probe_rows("connections")
        last = [row for row in rows if int(row["step"]) == run.result["steps"]]
        blocks = [[float(weight) for weight in row["reads"].split()] for row in last]
        return _Reads(blocks, _sample(rows), measurement(run.config.probes.get("connections", {})))
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return None


def _read(run: Run, probe: str) -> Observed | None:
    """Read the measurements of a probe that its figure shows, or return None if there are none that are numbers.

    Raises:
        OSError, KeyError, TypeError, ValueError, csv.Error: the file is damaged.
    """
    by_step: dict[int, list[dict[str, str]]] = {}
    for row in run.probe_rows(probe):
        by_step.setdefault(int(row["step"]), []).append(row)
    for step, rows in by_step.items():
        if [int(row["layer"]) for row in rows] != list(range(len(rows))):
            raise ValueError(f"step {step} has a duplicate or missing layer")
    names = [[row["name"] for row in rows if row["name"] != LEFT_OUT.get(probe)] for rows in by_step.values()]
    if any(of_step != names[0] for of_step in names):
        raise ValueError("steps have different layers")
    steps = int(run.result["steps"])
    panels = OVER_TRAINING.get(probe) or [panel for row in PROBES[probe] for panel in row]
    values: dict[int, dict[str, list[float]]] = {}
    for step, rows in by_step.items():
        if probe in OVER_TRAINING or step in (0, steps):  # a probe added on resuming has no step 0
            shown = [row for row in rows if row["name"] in names[0]]
            values[step] = {panel.column: [_finite(row[panel.column]) for row in shown] for panel in panels}
    numbers = [value for columns in values.values() for column in columns.values() for value in column]
    if all(map(math.isnan, numbers)):
        return None
    images = _sample([row for rows in by_step.values() for row in rows])
    return Observed(images, measurement(run.config.probes.get(probe, {})), names[0], steps, values)


def _differing(settings: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Return the settings of a probe that are not those of another seed, "" if all are equal."""
    keys = sorted(key for key in settings.keys() | other.keys() if settings.get(key) != other.get(key))
    values = [f"{key} {settings.get(key, 'default')} (another seed: {other.get(key, 'default')})" for key in keys]
    return ", ".join(values)


def _sample(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the images on which a probe's rows were measured, "" without rows.

    Raises:
        ValueError: the rows have several samples.
    """
    samples = {row.get("images", "") for row in rows}  # an older version did not record them
    if len(samples) > 1:
        raise ValueError(f"it has several samples of images, {' and '.join(sorted(samples))}")
    return next(iter(samples), "")


def _finite(text: str) -> float:
    """Parse a value, and replace an infinite one by NaN."""
    value = float(text)
    return value if math.isfinite(value) else math.nan


def layer_values(observed: Iterable[Observed], panel: Panel) -> list[tuple[float, ...]]:
    """Return, for each layer of a panel, the values of all runs that have them."""
    measured = [one.values.get(one.steps if panel.at_end else 0) for one in observed]
    of_runs = [columns[panel.column] for columns in measured if columns is not None]
    return list(zip(*(sorted(values, reverse=True) if panel.descending else values for values in of_runs), strict=True))


def values_over_training(observed: Sequence[Observed], series: Series) -> dict[int, list[float]]:
    """Return the values of all runs by step.

    A step at which a run has no finite value is left out, since a mean over the others would hide it.
    """
    values = {}
    for step in sorted(set.intersection(*(set(one.values) for one in observed))):
        at_step = [value for one in observed for value in one.values[step][series.column]]
        if all(map(math.isfinite, at_step)):
            values[step] = at_step
    return values
