"""Statistics over a few seeds: mean and spread, paired differences with intervals and tests, trends.

Runs of one seed use the same order of samples and, at equal depth, start from the same backbone weights. Two nets are
therefore compared seed by seed, which cancels the variation that both share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t; importing scipy.stats takes a second

from plainres.console import quantity

CONFIDENCE = 0.95
LEVEL = 0.05  # significance level of tests; 1 - CONFIDENCE would be rounded
RESOLUTION = 1e-4  # percentage points, one image in a million; smaller differences are rounding errors
INTERVAL_FROM, SIGNS_FROM = 3, 5  # seeds
MORE = f"add seeds, e.g. seed={','.join(map(str, range(INTERVAL_FROM)))}"  # advice that leads to an interval
# Simulated coverage of the interval for the true mean difference: (probability of failure, seeds, coverage). A run's
# difference is drawn from N(5, 2) points, or from N(70, 5) if the run fails. A test repeats the simulation.
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
    """Differences a - b in percentage points, over the seeds that a and b share.

    Args:
        by_seed: the differences.
        unpaired: the seeds that only one of the two has, which are ignored.
        mean: the mean difference; None without a common seed.
        interval: Student's 95 % interval of the mean. None for fewer than three seeds, and if all seeds have the same
            difference, since the formula would then yield an interval of length 0.
        p: the p-value of Student's two-sided test that the mean is 0; None without an interval.
        p_signs: the p-value of the exact two-sided sign-flip test; None for fewer than five seeds. The test assumes
            only that under the null hypothesis a difference is as likely as its opposite (Fisher 1935, The Design of
            Experiments, section 21). With n seeds the p-value is at least 2 / 2^n.
    """

    by_seed: Mapping[int, float]
    unpaired: tuple[int, ...]
    mean: float | None
    interval: tuple[float, float] | None
    p: float | None
    p_signs: float | None

    def verdict(self, higher: str, lower: str, p_holm: float | None, more: str = MORE) -> str:
        """Return the claim that the differences support, with its size, or the reason why they are inconclusive.

        Args:
            higher: the claim for a > b.
            lower: the claim for a < b.
            p_holm: `p`, corrected for the other comparisons under the same heading.
            more: the advice if there are too few seeds.
        """
        n = len(self.by_seed)
        if self.mean is None:
            return "no seed in common: no comparison; train both with the same seeds"
        if n > 1 and self._equal:
            equal = abs(self.mean) < RESOLUTION
            return "equal in every seed" if equal else "the same difference in every seed: no interval, no claim"
        if self.interval is None or p_holm is None:
            return f"{quantity(n, 'seed')}: too few for a claim; {more}"
        low, high = self.interval
        claim = f"{higher if low > 0 else lower} by {abs(self.mean):.2f} points"
        if low <= 0 <= high:
            claim = f"inconclusive: {n} seeds leave room for {low:+.2f} to {high:+.2f}"
        elif p_holm >= LEVEL:
            claim = "inconclusive after Holm's correction"
        return claim

    @property
    def _equal(self) -> bool:
        """Whether the difference is the same in every seed, up to rounding."""
        values = self.by_seed.values()
        return max(values) - min(values) < RESOLUTION


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Return the mean difference of two nets, with its interval and tests, from their errors in percent by seed.

    For d_i = a_i - b_i over the n common seeds, the interval is mean(d) -+ t(0.975, n - 1) s(d) / sqrt(n). It assumes
    that the d_i are draws from one normal distribution (Student 1908, "The probable error of a mean"). It is clipped to
    [-100, 100], the possible differences of errors in percent.
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

    rng = np.random.default_rng(0)  # used for more than 13 seeds; otherwise all 2^n flips are enumerated
    test = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=2**13, rng=rng)
    return float(test.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for multiple testing by Holm's method; None stands for no test and is not counted.

    Holm 1979 ("A simple sequentially rejective multiple test procedure") multiplies the i-th smallest of m p-values,
    with i from 0, by m - i. The results are capped at 1 and made monotone. Rejecting below 0.05 rejects no true
    hypothesis in at least 95 % of tables, for any dependence between the tests.
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
    """Page's trend test of errors, with the depths as ordered treatments and the seeds as blocks.

    Args:
        seeds: the seeds that have every depth.
        statistic: L, the sum over depths of a depth's 1-based position times its rank sum over seeds.
        p: the one-sided p-value, the probability of an L at least as large if errors do not depend on depth.
    """

    seeds: tuple[int, ...]
    statistic: float
    p: float


def page_test(errors: Sequence[Mapping[int, float]]) -> PageTest | None:
    """Test whether errors grow with depth by Page's test (Page 1963, "Ordered hypotheses for multiple treatments").

    Args:
        errors: for each depth, in ascending order, the errors by seed.

    Returns:
        The test, or None for fewer than two common seeds or fewer than three depths.
    """
    seeds = tuple(sorted(set.intersection(*(set(by_seed) for by_seed in errors)))) if errors else ()
    if len(seeds) < 2 or len(errors) < 3:
        return None
    from scipy.stats import page_trend_test

    test = page_trend_test([[round(by_seed[seed] / RESOLUTION) for by_seed in errors] for seed in seeds])
    return PageTest(seeds, float(test.statistic), float(test.pvalue))
