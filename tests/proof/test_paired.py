"""The exact paired test against published examples, full enumeration and Clopper-Pearson."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from laconic.proof import paired
from laconic.proof.paired import p_value, score, upper_bound

SLACK = 1.011  # a p-value is at most 1 % (and the tails' allowance) above the exact one


@st.composite
def outcomes(draw, most=400):
    n = draw(st.integers(1, most))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


def every_outcome(n):
    return [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]


@lru_cache
def trinomial(n, p10, p01):
    """The probability of every outcome, in the order of every_outcome."""
    lost, won = np.array(every_outcome(n)).T
    return stats.binom.pmf(won, n, p01) * stats.binom.pmf(lost, n - won, min(p10 / (1 - p01), 1.0))


@pytest.mark.parametrize(
    ("lost", "won", "n", "drop", "expected"),
    [
        (1, 0, 44, 0.1, -1.709),  # Tango 1998: 44 patients of a lens disinfection trial, margin 0.1
        (7, 1, 21, 0.517, -1.96),  # Fagerland, Lydersen and Laake 2014: 95 % interval 0.026 to 0.517
        (7, 1, 21, 0.026, 1.96),
    ],
)
def test_score_agrees_with_published_examples(lost, won, n, drop, expected):
    assert float(score(lost, won, n, drop)) == pytest.approx(expected, abs=0.003)


def test_score_uses_the_constrained_maximum_of_the_likelihood():
    lost, won, n, drop = 9, 4, 60, 0.2

    def loss(q):
        return -(lost * np.log(q + drop) + won * np.log(q) + (n - lost - won) * np.log(1 - 2 * q - drop))

    q = optimize.minimize_scalar(loss, bounds=(1e-9, 0.4 - 1e-9), method="bounded", options={"xatol": 1e-12}).x
    expected = (lost - won - n * drop) / np.sqrt(n * (2 * q + drop - drop**2))
    assert float(score(lost, won, n, drop)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [7, 24])
def test_score_is_monotone_so_that_the_boundary_and_the_cells_are_enough(n):
    lost, won = np.array([outcome for outcome in every_outcome(n) if sum(outcome) < n]).T
    for drop in (-0.4, -0.05, 0.01, 0.1, 0.5):
        here = score(lost, won, n, drop)
        assert (score(lost + 1, won, n, drop) > here - 1e-12).all()
        assert (score(lost, won + 1, n, drop) < here + 1e-12).all()
        assert (score(lost, won + 1, n, drop) < score(lost + 1, won, n, drop)).all()
    over_drops = np.array([score(lost, won, n, drop) for drop in np.linspace(-0.99, 0.99, 100)])
    assert (np.diff(over_drops, axis=0) < 0).all()


@cache
def tango_limit(lost, won, n):
    drop = (lost - won) / n
    return optimize.brentq(
        lambda D: float(score(lost, won, n, D)) + stats.norm.ppf(0.95), drop + 1e-9, 1 - 1e-9, xtol=1e-14
    )


@pytest.mark.parametrize("seen", [(0, 0), (1, 0), (2, 5), (6, 1), (4, 4), (0, 9), (3, 12)])
@pytest.mark.parametrize("floor", [-0.4, -0.1, 0.0, 0.02, 0.15, 0.4])
def test_p_value_is_the_largest_probability_of_outcomes_as_good(seen, floor):
    n = 18
    limits = np.array([1.0 if lost == n else tango_limit(lost, won, n) for lost, won in every_outcome(n)])
    as_good = limits <= tango_limit(*seen, n) + 1e-9
    discordant = sum(seen)
    low = stats.beta.ppf(5e-7, discordant, n - discordant + 1) if discordant else 0.0
    high = stats.beta.ppf(1 - 5e-7, discordant + 1, n - discordant)
    grid = np.linspace(max(low, floor), high, 400) if high > floor else []
    drops = [max(floor, -psi) for psi in grid]  # of H0, the least drop that a discordance allows
    pairs = [((psi + drop) / 2, (psi - drop) / 2) for psi, drop in zip(grid, drops, strict=True)]
    largest = max((min(1.0, trinomial(n, p10, p01)[as_good].sum()) for p10, p01 in pairs), default=0.0)
    p = p_value(*seen, n, floor)
    assert largest <= p <= largest * SLACK + 3e-6


@pytest.mark.parametrize("n", [11, 30])
def test_size_is_at_most_alpha_for_every_true_state(n):
    """All outcomes, many nuisance values, true drops at the floor and above it."""
    largest = 0.0
    for floor in (-0.1, 0.0, 0.03, 0.1, 0.3):
        p = np.array([p_value(lost, won, n, floor) for lost, won in every_outcome(n)])
        for drop in (floor, floor + 0.02, floor + 0.2):
            for p01 in np.linspace(max(0, -drop), (1 - drop) / 2, 80):
                probability = trinomial(n, p01 + drop, p01)
                for alpha in (0.01, 0.05, 0.2):
                    size = probability[p <= alpha].sum()
                    assert size <= alpha
                    largest = max(largest, size / alpha)
    assert largest > 0.9  # the test is not valid merely by being useless


def test_bound_covers_every_true_drop():
    n, alpha = 25, 0.1
    bounds = np.array([upper_bound(lost, won, n, 1 - alpha) for lost, won in every_outcome(n)])
    for drop in np.linspace(-0.9, 0.9, 91):
        for p01 in np.linspace(max(0, -drop), (1 - drop) / 2, 30):
            assert trinomial(n, p01 + drop, p01)[bounds < drop].sum() <= alpha


@given(outcomes(), st.floats(-0.999, 0.999))
@settings(max_examples=150, deadline=None)
def test_more_lost_or_fewer_won_is_never_better(outcome, floor):
    lost, won, n = outcome
    p = p_value(lost, won, n, floor)
    if lost + won < n:
        assert p_value(lost + 1, won, n, floor) >= p / SLACK - 2e-6
        assert p_value(lost, won + 1, n, floor) <= p * SLACK + 2e-6
    if lost:
        assert p_value(lost - 1, won + 1, n, floor) <= p * SLACK + 2e-6


@given(outcomes(), st.floats(-0.999, 0.999), st.floats(-0.999, 0.999))
@settings(max_examples=150, deadline=None)
def test_a_larger_floor_has_a_smaller_p_value(outcome, one, other):
    low, high = sorted((one, other))
    assert p_value(*outcome, high) <= p_value(*outcome, low) * SLACK + 2e-6


@given(outcomes(most=3000), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
@settings(max_examples=150, deadline=None)
def test_bound_inverts_p_value(outcome, confidence):
    lost, won, n = outcome
    bound = upper_bound(lost, won, n, confidence)
    assert -1 < bound <= 1
    assert bound >= (lost - won) / n or confidence < 0.9
    if bound < 1:
        assert p_value(*outcome, bound) <= 1 - confidence
    width = max(bound - (lost - won) / n, 1e-6)
    below = bound - 0.02 * width
    if below > -1 and bound < 1:
        assert p_value(*outcome, below) > (1 - confidence) * 0.98


@pytest.mark.parametrize(("n", "floor"), [(1000, 0.01), (5000, 0.003), (5000, 0.01), (10_000, 0.01), (2000, 0.05)])
def test_nothing_won_certifies_as_much_as_clopper_pearson(n, floor):
    """Agreement without labels: the baseline is right by definition, lost is Bin(n, drop)."""
    lost = np.arange(int(n * floor) + 1)
    exact = stats.binom.cdf(lost, n, floor)
    ours = np.array([p_value(int(count), 0, n, floor) for count in lost])
    assert (ours >= exact).all()
    assert ((ours <= 0.05) == (exact <= 0.05)).all()


@pytest.mark.parametrize(("lost", "n"), [(0, 300), (0, 20), (7, 500), (40, 10_000)])
def test_bound_with_nothing_won_is_close_above_clopper_pearson(lost, n):
    exact = stats.beta.ppf(0.95, lost + 1, n - lost)
    assert exact <= upper_bound(lost, 0, n, 0.95) <= exact * 1.05


def test_power_at_the_designs_example():
    """5,000 samples, floor 0.3 points, true drop 0.05, discordance 0.3 %; exact, by summation over outcomes."""
    n, floor, p10, p01 = 5000, 0.003, 0.00175, 0.00125

    def power(certifies):
        total = 0.0
        for won in range(30):
            most = next(lost for lost in range(80) if not certifies(lost, won)) - 1
            total += stats.binom.pmf(won, n, p01) * stats.binom.cdf(most, n - won, p10 / (1 - p01))
        return total

    def split(lost, won):
        """Clopper-Pearson twice: p10 from above, p01 from below, half the error each."""
        least = stats.beta.ppf(0.025, won, n - won + 1) if won else 0.0
        return stats.beta.ppf(0.975, lost + 1, n - lost) - least < floor

    assert power(lambda lost, won: p_value(lost, won, n, floor) <= 0.05) == pytest.approx(0.90, abs=0.015)
    assert power(split) == pytest.approx(0.59, abs=0.015)


@pytest.mark.parametrize(
    ("lost", "won", "n", "floor"),
    [(-1, 0, 10, 0.1), (0, -1, 10, 0.1), (6, 5, 10, 0.1), (0, 0, 0, 0.1), (1, 1, 10, -1.0), (1, 1, 10, 1.0)],
)
def test_p_value_refuses_bad_input(lost, won, n, floor):
    with pytest.raises(ValueError, match="got"):
        p_value(lost, won, n, floor)


@pytest.mark.parametrize("floor", [float("nan"), -1.5, 1.5])
def test_p_value_refuses_a_bad_floor(floor):
    with pytest.raises(ValueError, match="a floor is a fraction"):
        p_value(1, 1, 10, floor)


def test_bound_refuses_bad_input():
    with pytest.raises(ValueError, match="confidence"):
        upper_bound(1, 1, 10, 1.0)
    with pytest.raises(ValueError, match="count some of n"):
        upper_bound(6, 5, 10, 0.95)


def test_what_is_won_for_certain_is_a_bound_below_zero():
    """McNemar's exact test asks the same of a floor of 0, of the discordant samples alone."""
    for lost, won, n in ((5, 30, 400), (47, 125, 10_000), (10, 18, 1000), (3, 4, 100)):
        sign_test = stats.binomtest(won, lost + won, alternative="greater").pvalue
        assert (upper_bound(lost, won, n, 0.95) < 0) == (sign_test < 0.05)
    won = stats.beta.ppf(0.05, 40, 1)  # of 40 of 40, and whatever else happens may be a loss
    assert upper_bound(0, 40, 40, 0.95) == pytest.approx(1 - 2 * won, abs=0.001)


def test_everything_lost_proves_nothing():
    assert p_value(40, 0, 40, 0.99) == 1.0
    assert upper_bound(40, 0, 40, 0.95) == 1.0


def test_p_value_agrees_with_plain_sums_for_many_samples():
    n, lost, won, floor = 20_000, 70, 60, 0.0015
    limit = tango_limit(lost, won, n)
    d = np.arange(300)[:, None]
    x = np.minimum(np.arange(300), d)
    k = np.where(score(x, d - x, n, limit) <= -stats.norm.ppf(0.95) + 1e-9, x, -1).max(axis=1)
    low, high = stats.beta.ppf([5e-7, 1 - 5e-7], [130, 131], [n - 129, n - 130])
    d = d[:, 0]
    largest = max(
        (stats.binom.pmf(d, n, psi) * stats.binom.cdf(k, d, (1 + floor / psi) / 2)).sum()
        for psi in np.linspace(max(low, floor), high, 200)
    )
    assert 0.01 < largest < 0.2
    assert largest * 0.999 <= p_value(lost, won, n, floor) <= largest * SLACK + 2e-6


@pytest.mark.parametrize(
    ("n", "low", "high"), [(10, 0.0, 0.3), (500, 0.02, 0.02), (5000, 0.4, 0.7), (10**6, 1e-6, 2e-5)]
)
def test_what_the_sum_leaves_out_is_less_than_a_tail(n, low, high):
    d = paired._support(n, low, high)
    for psi in (low, high):
        assert stats.binom.cdf(d[0] - 1, n, psi) <= paired._TAIL
        assert stats.binom.sf(d[-1], n, psi) <= paired._TAIL
    assert len(d) <= n * (high - low) + 20 * np.sqrt(n * high) + 40
