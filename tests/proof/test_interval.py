from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from laconic.errors import DataError
from laconic.proof.interval import median_interval, proportion_interval


@pytest.mark.parametrize(
    ("n", "confidence", "rank"),
    # Ranks of the tables of the sign test: the r-th smallest and the r-th largest value.
    [
        (6, 0.95, 1),
        (8, 0.95, 1),
        (9, 0.95, 2),
        (10, 0.95, 2),
        (20, 0.95, 6),
        (25, 0.95, 8),
        (10, 0.99, 1),
        (50, 0.95, 18),
    ],
)
def test_ranks_agree_with_the_sign_test(n, confidence, rank):
    values = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert median_interval(values, confidence) == ((n + 1) / 2, rank, n + 1 - rank)


@pytest.mark.parametrize("n", [7, 30, 101])
def test_coverage_is_at_least_the_confidence_and_no_rank_is_wasted(n):
    _, low, high = median_interval(np.arange(1.0, n + 1))
    rank = int(low)
    assert high == n + 1 - rank
    assert 2 * stats.binom.cdf(rank - 1, n, 0.5) <= 0.05 < 2 * stats.binom.cdf(rank, n, 0.5)


def test_interval_holds_the_median_of_a_skewed_distribution():
    rng = np.random.default_rng(4)
    held = 0
    for values in rng.lognormal(size=(2000, 21)):
        _, low, high = median_interval(values)
        held += low <= 1 <= high
    assert held >= stats.binom.ppf(0.001, 2000, 0.95)


def test_five_values_are_too_few():
    with pytest.raises(DataError, match="got 5, wanted at least 6"):
        median_interval(np.arange(5.0))


def test_the_number_wanted_is_enough():
    with pytest.raises(DataError, match="wanted at least 8"):
        median_interval(np.arange(3.0), 0.99)
    assert median_interval(np.arange(8.0), 0.99)[1:] == (0.0, 7.0)
    with pytest.raises(DataError, match="got 7"):
        median_interval(np.arange(7.0), 0.99)


def test_refuses_values_that_are_not_finite():
    with pytest.raises(DataError, match="got inf"):
        median_interval(np.array([1.0] * 9 + [np.inf]))


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (81, 263)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_proportion_agrees_with_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
    assert proportion_interval(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_proportion_refuses_bad_counts(successes, n):
    with pytest.raises(ValueError, match="successes count some of n"):
        proportion_interval(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_refuses_a_bad_confidence(confidence):
    with pytest.raises(ValueError, match="a confidence is a fraction"):
        proportion_interval(1, 10, confidence)
    with pytest.raises(ValueError, match="a confidence is a fraction"):
        median_interval(np.arange(10.0), confidence)
