import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from plainres.reporting.statistics import RESOLUTION, Difference, paired_difference, summarize

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


@given(pairs)
def test_the_interval_is_that_of_scipys_t_test(both: dict[int, tuple[float, float]]):
    a, b = split(both)
    difference = paired_difference(a, b)
    if difference.interval is not None:
        expected = scipy.stats.ttest_rel([a[seed] for seed in both], [b[seed] for seed in both])
        interval = expected.confidence_interval(0.95)
        assert difference.interval == pytest.approx((interval.low, interval.high), abs=1e-6)


@given(pairs)
def test_the_interval_contains_the_mean(both: dict[int, tuple[float, float]]):
    difference = paired_difference(*split(both))
    if difference.interval is not None:
        assert difference.mean is not None
        assert difference.interval[0] < difference.mean < difference.interval[1]


@given(pairs)
def test_swapping_the_two_mirrors_the_interval(both: dict[int, tuple[float, float]]):
    a, b = split(both)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.mean == pytest.approx(-(back.mean or 0), abs=1e-9)
    if forth.interval is not None and back.interval is not None:
        assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)
    assert (forth.interval is None) == (back.interval is None)


@given(by_seed, st.floats(-50, 50))
def test_a_shift_of_one_shifts_the_interval(errors: dict[int, float], shift: float):
    zero = dict.fromkeys(errors, 0.0)
    before = paired_difference(errors, zero)
    after = paired_difference({seed: error + shift for seed, error in errors.items()}, zero)
    if before.interval is not None and after.interval is not None:
        moved = (before.interval[0] + shift, before.interval[1] + shift)
        assert after.interval == pytest.approx(moved, abs=1e-6)


@given(pairs, st.dictionaries(st.integers(0, 20), percent))
def test_what_both_share_in_a_seed_cancels(both: dict[int, tuple[float, float]], shared: dict[int, float]):
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
    assert set(difference.seeds) == set(a) & set(b)
    assert set(difference.unpaired) == set(a) ^ set(b)
    common = paired_difference({s: a[s] for s in difference.seeds}, {s: b[s] for s in difference.seeds})
    assert (difference.mean, difference.interval) == (common.mean, common.interval)


def verdict(*differences: float) -> str:
    return paired_difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0)).verdict(
        "worse", "better"
    )


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((5, 6, 7), "worse"),
        ((-5, -6, -7), "better"),
        ((-1, 0, 2), "no difference that these runs support (<= 4.13)"),
        ((-2, 0, 1), "no difference that these runs support (<= 4.13)"),
        ((50, 1), "no difference that these runs support (<= 336.80)"),
        ((5,), "one seed: no interval, no claim"),
        ((0,), "one seed: no interval, no claim"),
        ((), "no seed in common: no comparison"),
        ((0, 0, 0), "equal in every seed"),
        ((3, 3, 3), "the same in every seed: no interval, no claim"),
        ((3, 3 + RESOLUTION / 100, 3), "the same in every seed: no interval, no claim"),
    ],
)
def test_a_verdict_claims_what_the_interval_supports(differences: tuple[float, ...], expected: str):
    assert verdict(*differences) == expected


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_a_claim_needs_an_interval_on_one_side_of_zero(one: float, other: float):
    low, high = min(one, other), max(one, other)
    claimed = Difference((0, 1), (), (low + high) / 2, (low, high)).verdict("worse", "better")
    assert (claimed == "worse") == (low > 0)
    assert (claimed == "better") == (high < 0)
