"""What a few seeds support: mean and spread, and paired differences with a 95 % interval.

Runs of one seed see the same order of samples and, at one depth, start from the same backbone weights, so two nets are
compared seed by seed and the spread that both share cancels. An interval holds for its own comparison, not for several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # Student's quantile; importing scipy.stats takes a second

CONFIDENCE = 0.95
RESOLUTION = 1e-4  # percentage points, one image of a million: less is rounding, not a difference


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of n values; `sd` is None for a single value."""

    n: int
    mean: float
    sd: float | None


def summarize(values: Sequence[float]) -> Summary:
    """The mean and s = sqrt(sum (x_i - mean)^2 / (n - 1)) of at least one value."""
    n = len(values)
    return Summary(n, float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else None)


@dataclass(frozen=True)
class Difference:
    """A difference a - b, in percentage points, over the seeds that both have.

    `mean` is None without a common seed. `interval` is None for fewer than two seeds, and when every seed has
    the same difference: from no spread at all the formula would conclude perfect certainty.
    """

    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]  # seeds that only one of the two has; they do not count
    mean: float | None
    interval: tuple[float, float] | None

    def verdict(self, higher: str, lower: str) -> str:
        """What the interval supports, and no more: `higher` if it lies above 0, `lower` if it lies below."""
        if self.mean is None:
            return "no seed in common: no comparison"
        if len(self.seeds) == 1:
            return "one seed: no interval, no claim"
        if self.interval is None:
            equal = abs(self.mean) < RESOLUTION
            return "equal in every seed" if equal else "the same in every seed: no interval, no claim"
        low, high = self.interval
        if low > 0:
            return higher
        if high < 0:
            return lower
        return f"no difference that these runs support (<= {max(-low, high):.2f})"


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """The mean difference of two nets and its Student-t interval, from their errors by seed, in percent.

    With d_i = a_i - b_i over the n common seeds: mean(d) -+ t(0.975, n - 1) s(d) / sqrt(n), which takes the
    d_i as draws from one normal distribution (Student 1908, "The probable error of a mean").
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    unpaired = tuple(sorted(a.keys() ^ b.keys()))
    if not seeds:
        return Difference(seeds, unpaired, None, None)
    differences = [a[seed] - b[seed] for seed in seeds]
    summary = summarize(differences)
    if summary.sd is None or max(differences) - min(differences) < RESOLUTION:
        return Difference(seeds, unpaired, summary.mean, None)
    half = float(stdtrit(summary.n - 1, (1 + CONFIDENCE) / 2)) * summary.sd / summary.n**0.5
    return Difference(seeds, unpaired, summary.mean, (summary.mean - half, summary.mean + half))
