"""Statistics of a few seeds: mean and spread, paired differences with intervals and tests, trends.

Runs of one seed see the same order of samples and, at one depth, start from the same backbone weights, so two nets are
compared seed by seed and the spread that both share cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t; importing scipy.stats takes a second

CONFIDENCE = 0.95
LEVEL = 0.05  # of tests: 1 - CONFIDENCE, exactly
RESOLUTION = 1e-4  # percentage points, one image of a million: less is rounding, not a difference
INTERVAL_FROM, SIGNS_FROM = 3, 5  # seeds
# The share of studies whose interval covers the true mean difference, where of N(5, 2) points each run's difference
# fails to N(70, 5) with this chance: (chance of failure, seeds, coverage). A test simulates it.
COVERAGE = ((0.1, 3, 0.42), (0.3, 3, 0.63), (0.3, 5, 0.83))


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of n values; `sd` is None for a single value."""

    n: int
    mean: float
    sd: float | None


def summarize(values: Sequence[float]) -> Summary:
    """Return the mean and s = sqrt(sum (x_i - mean)^2 / (n - 1)) of at least one value."""
    n = len(values)
    return Summary(n, float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else None)


@dataclass(frozen=True)
class Difference:
    """Differences a - b, in percentage points, over the seeds that both have.

    Args:
        by_seed: the differences.
        unpaired: seeds that only one of the two has; they do not count.
        mean: None without a common seed.
        interval: Student's 95 % interval of the mean. None below three seeds, and when every seed has the same
            difference: from no spread at all the formula would conclude perfect certainty.
        p: of Student's two-sided test that the mean is 0; None where there is no interval.
        p_signs: of the exact two-sided sign-flip test; None below five seeds. It assumes no more than that a difference
            is as likely as its opposite if there is none (Fisher 1935, The Design of Experiments, section 21). With n
            seeds it is at least 2 / 2^n.
    """

    by_seed: Mapping[int, float]
    unpaired: tuple[int, ...]
    mean: float | None
    interval: tuple[float, float] | None
    p: float | None
    p_signs: float | None

    def verdict(self, higher: str, lower: str, p_holm: float | None) -> str:
        """Return what the differences support: `higher` or `lower` with the size, or that they are inconclusive.

        Args:
            higher: the claim if a is greater than b.
            lower: the claim if b is greater than a.
            p_holm: `p`, corrected for the other comparisons of the same table.
        """
        n = len(self.by_seed)
        if self.mean is None:
            return "no seed in common: no comparison"
        if n == 1:
            return "one seed: no interval, no claim"
        if self._equal:
            equal = abs(self.mean) < RESOLUTION
            return "equal in every seed" if equal else "the same in every seed: no interval, no claim"
        if self.interval is None or p_holm is None:
            return f"{n} seeds: too few to say"
        low, high = self.interval
        claim = f"{higher if low > 0 else lower} by {abs(self.mean):.2f} points"
        if low <= 0 <= high:
            claim = f"inconclusive: {n} seeds leave room for {low:+.2f} to {high:+.2f}"
        elif p_holm >= LEVEL:
            claim = "inconclusive after Holm's correction"
        return claim

    @property
    def _equal(self) -> bool:
        """Whether the difference is the same in every seed, but for rounding."""
        values = self.by_seed.values()
        return max(values) - min(values) < RESOLUTION


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Return the mean difference of two nets, its interval and tests, from their errors by seed, in percent.

    With d_i = a_i - b_i over the n common seeds the interval is mean(d) -+ t(0.975, n - 1) s(d) / sqrt(n), which takes
    the d_i as draws from one normal distribution (Student 1908, "The probable error of a mean"), as far as it lies
    between -100 and 100, the differences that errors in percent can have.
    """
    by_seed = {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}
    unpaired = tuple(sorted(a.keys() ^ b.keys()))
    if not by_seed:
        return Difference(by_seed, unpaired, None, None, None, None)
    values = np.array([*by_seed.values()])
    summary = summarize([*by_seed.values()])
    if summary.sd is None or summary.n < INTERVAL_FROM or np.ptp(values) < RESOLUTION:
        return Difference(by_seed, unpaired, summary.mean, None, None, None)
    error, freedom = summary.sd / summary.n**0.5, summary.n - 1
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    interval = max(summary.mean - half, -100.0), min(summary.mean + half, 100.0)
    p = 2 * float(stdtr(freedom, -abs(summary.mean) / error))
    return Difference(by_seed, unpaired, summary.mean, interval, p, _p_signs(values))


def _p_signs(values: np.ndarray) -> float | None:
    if len(values) < SIGNS_FROM:
        return None
    from scipy.stats import permutation_test

    rng = np.random.default_rng(0)  # for more than 13 seeds: up to 2^13 flips are all made
    test = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=2**13, rng=rng)
    return float(test.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for each other; None, of no test, stays and does not count.

    Holm 1979 ("A simple sequentially rejective multiple test procedure"): the i-th smallest of m, from 0, is multiplied
    by m - i, at most 1, and none is less than one before it. Rejecting below 0.05 rejects no true hypothesis in 95 % of
    tables, whatever the dependence.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class PageTest:
    """Page's test that errors grow along ordered treatments, the depths, with the seeds as blocks.

    Args:
        seeds: those that have every depth.
        statistic: L, the sum over depths of a depth's number, from 1, times its ranks summed over seeds.
        p: one-sided, that L is as large if the order of depths means nothing.
    """

    seeds: tuple[int, ...]
    statistic: float
    p: float


def page_test(errors: Sequence[Mapping[int, float]]) -> PageTest | None:
    """Test whether errors grow along their order, the smallest depth first, each with its errors by seed.

    Page 1963 ("Ordered hypotheses for multiple treatments"). Returns None for less than two seeds in common or less
    than three depths.
    """
    seeds = tuple(sorted(set.intersection(*(set(by_seed) for by_seed in errors)))) if errors else ()
    if len(seeds) < 2 or len(errors) < 3:
        return None
    from scipy.stats import page_trend_test

    test = page_trend_test([[round(by_seed[seed] / RESOLUTION) for by_seed in errors] for seed in seeds])
    return PageTest(seeds, float(test.statistic), float(test.pvalue))
