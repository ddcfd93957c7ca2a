from __future__ import annotations

import math

import pytest
from scipy import stats

from laconic.errors import GoalError
from laconic.proof.paired import p_value, upper_bound
from laconic.proof.reach import expected_bound, least_floor, samples_needed


@pytest.mark.parametrize("n", [200, 5000])
def test_least_floor_without_discordance_is_close_above_the_rule_of_three(n):
    exact = 1 - 0.05 ** (1 / n)
    assert exact <= least_floor(n, 0.0, 0.95) <= exact * 1.03


@pytest.mark.parametrize("discordance", [0.01, 0.04])
def test_least_floor_is_close_to_the_normal_bound(discordance):
    n = 10_000
    normal = stats.norm.ppf(0.95) * math.sqrt(discordance / n)
    assert least_floor(n, discordance, 0.95) == pytest.approx(normal, rel=0.05)


def test_least_floor_rounds_the_pairs_up():
    assert least_floor(1000, 0.0011, 0.95) == upper_bound(1, 1, 1000, 0.95)
    assert least_floor(1000, 0.004, 0.95) == upper_bound(2, 2, 1000, 0.95)
    assert least_floor(1001, 1.0, 0.95) == upper_bound(500, 500, 1001, 0.95)


@pytest.mark.parametrize(
    ("floor", "discordance", "confidence"),
    [(0.01, 0.0, 0.95), (0.01, 0.01, 0.95), (0.02, 0.04, 0.9), (0.05, 0.3, 0.99)],
)
def test_samples_needed_is_the_first_that_proves_the_floor(floor, discordance, confidence):
    needed = samples_needed(floor, discordance, confidence)

    def proves(n):
        pairs = min(math.ceil(n * discordance / 2), n // 2)
        return p_value(pairs, pairs, n, floor) <= 1 - confidence

    assert proves(needed)
    assert not any(proves(n) for n in range(max(1, needed - 300), needed))


def test_samples_needed_without_discordance_is_close_above_the_rule_of_three():
    exact = math.log(0.05) / math.log(0.99)  # 298.07
    assert exact <= samples_needed(0.01, 0.0, 0.95) <= 304


@pytest.mark.parametrize("discordance", [0.0, 0.01])
def test_a_floor_beyond_reach_is_refused(discordance):
    with pytest.raises(GoalError, match="10,000,000 samples"):
        samples_needed(1e-8, discordance, 0.95)


@pytest.mark.parametrize(
    ("seen", "n_holdout", "scaled"),
    [
        ((4, 2, 1000), 2500, (10, 5)),
        ((3, 3, 1000), 1500, (5, 4)),  # 4.5 each: lost up, won down
        ((3, 3, 1000), 100, (1, 0)),
        ((0, 0, 700), 900, (0, 0)),
        ((3, 7, 10), 7, (3, 4)),
    ],
)
def test_expected_bound_scales_the_counts(seen, n_holdout, scaled):
    assert expected_bound(*seen, n_holdout, 0.95) == upper_bound(*scaled, n_holdout, 0.95)


def test_refuses_bad_input():
    with pytest.raises(ValueError, match="a discordance is a fraction"):
        least_floor(100, 1.5, 0.95)
    with pytest.raises(ValueError, match="a discordance is a fraction"):
        samples_needed(0.1, -0.1, 0.95)
    with pytest.raises(ValueError, match="a floor is a fraction"):
        samples_needed(0.0, 0.01, 0.95)
    with pytest.raises(ValueError, match="count some of n"):
        expected_bound(8, 3, 10, 100, 0.95)
