"""Statistics of the values that were chosen for networks: which are as good, and how they depend on depth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from plainres.reporting.statistics import CONFIDENCE, INTERVAL_FROM, RESOLUTION, paired_difference
from plainres.runs.tuning import Choice


@dataclass(frozen=True)
class Exponent:
    """Least-squares fit log(best) = slope log(depth) + intercept.

    Args:
        slope: the exponent.
        intercept: the logarithm of the value at depth 1.
        interval: Student's 95 % interval of the slope; None if the fit is exact.
        depths: the depths that were used.
    """

    slope: float
    intercept: float
    interval: tuple[float, float] | None
    depths: tuple[int, ...]


def exponent(choices: Mapping[int, Choice]) -> Exponent | None:
    """Fit a power of depth to the best values; None for fewer than three depths with a best value inside its grid."""
    best = {depth: chosen.best for depth, chosen in choices.items() if not chosen.at_edge}
    points = {depth: value for depth, value in best.items() if value is not None}
    if len(points) < INTERVAL_FROM:
        return None
    x, y = np.log(list(points)), np.log(list(points.values()))
    slope, intercept = np.polyfit(x, y, 1)
    freedom = len(points) - 2
    residual = float(np.sum((y - slope * x - intercept) ** 2))
    error = math.sqrt(residual / freedom / float(np.sum((x - x.mean()) ** 2)))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    between = (slope - half, slope + half) if error > 1e-9 else None
    return Exponent(float(slope), float(intercept), between, tuple(points))


def interval(chosen: Choice) -> tuple[float, float] | None:
    """Return the smallest and largest value around the best one whose error is not shown to be higher than its error.

    Returns:
        The two values, the best one included; None without a best value, and for fewer than three seeds.
    """
    best = chosen.best
    if best is None or len(chosen.seeds) < INTERVAL_FROM:
        return None
    values = list(chosen.errors)
    at = values.index(best)
    low = high = best
    for value in reversed(values[:at]):
        if _is_higher(chosen, value, best):
            break
        low = value
    for value in values[at + 1 :]:
        if _is_higher(chosen, value, best):
            break
        high = value
    return low, high


def _is_higher(chosen: Choice, value: float, best: float) -> bool:
    """Whether the error of a value is shown to be higher than that of the best one."""
    if not math.isfinite(chosen.mean(value)):
        return True
    difference = paired_difference(chosen.errors[value], chosen.errors[best])
    if difference.interval is None:  # the same difference in every seed
        return (difference.mean or 0.0) >= RESOLUTION
    return difference.interval[0] > 0
