import math
from itertools import permutations, product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from plainres.reporting.statistics import (
    COVERAGE,
    RESOLUTION,
    Difference,
    holm,
    page_test,
    paired_difference,
    summarize,
)

percent = st.floats(0, 100)
by_seed = st.dictionaries(st.integers(0, 20), percent, min_size=2)
pairs = st.dictionaries(st.integers(0, 20), st.tuples(percent, percent), min_size=1)


def split(both: dict[int, tuple[float, float]]) -> tuple[dict[int, float], dict[int, float]]:
    return {seed: a for seed, (a, _) in both.items()}, {seed: b for seed, (_, b) in both.items()}


def test_summary_computed_by_hand():
    summary = summarize([1, 2, 6])
    assert (summary.n, summary.mean) == (3, 3)
    assert summary.sd == pytest.approx(math.sqrt(7))


def test_a_single_value_has_no_spread():
    assert summarize([4.0]).sd is None


def test_difference_computed_by_hand():
    # differences 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.3027 (any table), half = 4.3027 / sqrt(3) = 2.4841
    difference = paired_difference({0: 11, 1: 12, 2: 43}, {0: 10, 1: 10, 2: 40})
    assert difference.mean == 2
    assert difference.interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    # t = 2 sqrt(3) = 3.4641 of 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2) = 1 - 3.4641 / 3.7417
    assert difference.p == pytest.approx(0.07418, abs=1e-5)
    assert difference.p_signs is None


@given(pairs)
def test_the_interval_equals_scipys_t_test(both: dict[int, tuple[float, float]]):
    a, b = split(both)
    difference = paired_difference(a, b)
    if difference.interval is not None:
        expected = scipy.stats.ttest_rel([a[seed] for seed in both], [b[seed] for seed in both])
        interval = expected.confidence_interval(0.95)
        possible = max(interval.low, -100), min(interval.high, 100)
        assert difference.interval == pytest.approx(possible, abs=1e-6)
        assert difference.p == pytest.approx(expected.pvalue, abs=1e-6)


@given(pairs)
def test_the_interval_contains_the_mean(both: dict[int, tuple[float, float]]):
    difference = paired_difference(*split(both))
    if difference.interval is not None:
        assert difference.mean is not None
        assert difference.interval[0] <= difference.mean <= difference.interval[1]


@given(pairs)
def test_swapping_the_nets_mirrors_the_interval(both: dict[int, tuple[float, float]]):
    a, b = split(both)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.mean == pytest.approx(-(back.mean or 0), abs=1e-9)
    if forth.interval is not None and back.interval is not None:
        assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)
    assert (forth.interval is None) == (back.interval is None)


@given(st.dictionaries(st.integers(0, 20), st.floats(0, 10), min_size=3), st.floats(-10, 10))
def test_shifting_one_nets_errors_shifts_the_interval(errors: dict[int, float], shift: float):
    zero = dict.fromkeys(errors, 0.0)
    before = paired_difference(errors, zero)
    after = paired_difference({seed: error + shift for seed, error in errors.items()}, zero)
    if before.interval is not None and after.interval is not None:
        moved = before.interval[0] + shift, before.interval[1] + shift
        assert after.interval == pytest.approx(moved, abs=1e-6)


@given(pairs, st.dictionaries(st.integers(0, 20), percent))
def test_shared_variation_of_a_seed_cancels(both: dict[int, tuple[float, float]], shared: dict[int, float]):
    a, b = split(both)
    before = paired_difference(a, b)
    after = paired_difference(
        {seed: a[seed] + shared.get(seed, 0) for seed in a}, {seed: b[seed] + shared.get(seed, 0) for seed in b}
    )
    assert after.mean == pytest.approx(before.mean, abs=1e-6)
    if before.interval is not None and after.interval is not None:
        assert after.interval == pytest.approx(before.interval, abs=1e-6)


@given(by_seed, by_seed)
def test_only_common_seeds_count(a: dict[int, float], b: dict[int, float]):
    difference = paired_difference(a, b)
    assert set(difference.by_seed) == set(a) & set(b)
    assert set(difference.unpaired) == set(a) ^ set(b)
    common = paired_difference({s: a[s] for s in difference.by_seed}, {s: b[s] for s in difference.by_seed})
    assert (difference.mean, difference.interval) == (common.mean, common.interval)


def verdict(*differences: float) -> str:
    zero = dict.fromkeys(range(len(differences)), 0)
    difference = paired_difference(dict(enumerate(differences)), zero)
    return difference.verdict("worse", "better", difference.p)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((5, 6, 7), "worse by 6.00 points"),
        ((-5, -6, -7), "better by 6.00 points"),
        ((-1, 0, 2), "inconclusive: 3 seeds leave room for -3.46 to +4.13"),
        ((-2, 0, 1), "inconclusive: 3 seeds leave room for -4.13 to +3.46"),
        ((50, 1), "2 seeds: too few for a claim; add seeds, e.g. seed=0,1,2"),
        ((50, 1, 1), "inconclusive: 3 seeds leave room for -52.94 to +87.61"),
        ((99, 1, 1), "inconclusive: 3 seeds leave room for -100.00 to +100.00"),
        ((5,), "1 seed: too few for a claim; add seeds, e.g. seed=0,1,2"),
        ((0,), "1 seed: too few for a claim; add seeds, e.g. seed=0,1,2"),
        ((), "no seed in common: no comparison; train both with the same seeds"),
        ((0, 0, 0), "equal in every seed"),
        ((3, 3, 3), "the same difference in every seed: no interval, no claim"),
        ((3, 3 + RESOLUTION / 100, 3), "the same difference in every seed: no interval, no claim"),
    ],
)
def test_a_verdict_claims_what_the_interval_supports(differences: tuple[float, ...], expected: str):
    assert verdict(*differences) == expected


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0, 1))
def test_a_claim_needs_an_interval_on_one_side_of_zero_and_holms_p(a: float, b: float, p: float):
    low, high = min(a, b), max(a, b)
    difference = Difference({0: low, 1: (low + high) / 2, 2: high + 1}, (), (low + high) / 2, (low, high), p, None)
    claimed = difference.verdict("worse", "better", p)
    assert claimed.startswith("worse by ") == (low > 0 and p < 0.05)
    assert claimed.startswith("better by ") == (high < 0 and p < 0.05)
    assert ("leave room" in claimed) == (low <= 0 <= high)
    assert (claimed == "inconclusive after Holm's correction") == (p >= 0.05 and not low <= 0 <= high)


@pytest.mark.parametrize(("chance", "seeds", "coverage"), COVERAGE)
def test_the_interval_has_the_stated_coverage_if_runs_fail(chance: float, seeds: int, coverage: float):
    rng = np.random.default_rng(7)
    studies = 4000
    failed = rng.random((studies, seeds)) < chance
    differences = np.where(failed, rng.normal(70, 5, failed.shape), rng.normal(5, 2, failed.shape))
    truth = 5 + chance * (70 - 5)
    zero = dict.fromkeys(range(seeds), 0.0)
    covered = 0
    for values in differences.tolist():
        interval = paired_difference(dict(enumerate(values)), zero).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered / studies == pytest.approx(coverage, abs=0.025)  # three standard errors


def test_the_interval_covers_95_percent_if_its_assumption_holds():
    rng = np.random.default_rng(8)
    zero = dict.fromkeys(range(3), 0.0)
    covered = 0
    for values in rng.normal(5, 2, (4000, 3)).tolist():
        interval = paired_difference(dict(enumerate(values)), zero).interval
        assert interval is not None
        covered += interval[0] <= 5 <= interval[1]
    assert covered / 4000 == pytest.approx(0.95, abs=0.011)


@pytest.mark.parametrize("values", [(5, 6, 7, 8, 9), (-5, 6, 7, 1, -2), (1, -1, 2, -2, 3, 4), (0, 0, 0, 1, 2)])
def test_the_sign_flip_test_enumerates_all_flips(values: tuple[float, ...]):
    difference = paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0))
    flipped = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in product((1, -1), repeat=len(values))]
    above = sum(total >= sum(values) for total in flipped) / len(flipped)
    below = sum(total <= sum(values) for total in flipped) / len(flipped)
    assert difference.p_signs == pytest.approx(min(1, 2 * min(above, below)))


def test_the_sign_flip_test_needs_five_seeds():
    assert paired_difference({i: i + 1.0 for i in range(4)}, dict.fromkeys(range(4), 0)).p_signs is None
    assert paired_difference({i: i + 1.0 for i in range(5)}, dict.fromkeys(range(5), 0)).p_signs == 2 / 2**5


def test_holm_computed_by_hand():
    # Holm 1979: ascending 0.005, 0.011, 0.02, 0.04 times 4, 3, 2, 1, made monotone
    assert holm([0.02, 0.005, None, 0.04, 0.011]) == pytest.approx([0.04, 0.02, None, 0.04, 0.033])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_agrees_with_the_step_down_procedure(p_values: list[float]):
    level, rejected = 0.05, set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - rank) >= level:
            break
        rejected.add(i)
    corrected = holm(p_values)
    assert {i for i, p in enumerate(corrected) if p is not None and p < level} == rejected
    assert all(p is not None and q <= p for p, q in zip(corrected, p_values, strict=True))


def test_pages_test_enumerates_all_orders():
    errors = [{0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0}, {0: 3.0, 1: 3.0}]
    test = page_test(errors)
    assert test is not None
    # ranks 1, 2, 3 and 2, 1, 3: L = 1 (1 + 2) + 2 (2 + 1) + 3 (3 + 3)
    assert test.statistic == 27
    every = [
        sum((i + 1) * (a[i] + b[i]) for i in range(3)) for a in permutations((1, 2, 3)) for b in permutations((1, 2, 3))
    ]
    assert test.p == pytest.approx(sum(total >= 27 for total in every) / len(every))


def test_pages_test_equals_scipys_over_the_common_seeds():
    rng = np.random.default_rng(1)
    errors = [{seed: float(depth + rng.normal(0, 3)) for seed in range(5)} for depth in range(4)]
    expected = scipy.stats.page_trend_test([[by_seed[seed] for by_seed in errors] for seed in (0, 2, 3, 4)])
    del errors[2][1]
    test = page_test(errors)
    assert test is not None
    assert test.seeds == (0, 2, 3, 4)
    assert (test.statistic, test.p) == pytest.approx((expected.statistic, expected.pvalue))


@pytest.mark.parametrize("errors", [[], [{0: 1.0, 1: 2.0}] * 2, [{0: 1.0}] * 3, [{0: 1.0}, {1: 1.0}, {2: 1.0}]])
def test_pages_test_needs_three_depths_and_two_seeds(errors: list[dict[int, float]]):
    assert page_test(errors) is None


def test_rounding_errors_are_not_a_trend():
    test = page_test([dict.fromkeys(range(5), 1e-09 * depth) for depth in range(5)])
    assert test is not None
    assert test.p > 0.5
