"""The betting test against a plain loop over the paper's formulas, and simulated error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from laconic.errors import DataError
from laconic.proof.bounded import p_value, upper_bound

differences = arrays(np.float64, st.integers(1, 200), elements=st.floats(-1, 1))


def capital_by_hand(d, floor):
    """The largest capital, one sample at a time."""
    X = [(1 - value) / 2 for value in np.random.default_rng(0).permutation(d)]
    m, n = (1 - floor) / 2, len(X)
    capital = largest = 1.0
    total, squares, variance = 0.5, 0.25, 0.25
    for i, x in enumerate(X, start=1):
        bet = min(math.sqrt(2 * math.log(20) / (n * variance)), 0.75 / m)
        capital *= 1 + bet * (x - m)
        largest = max(largest, capital)
        total += x
        squares += (x - total / (i + 1)) ** 2
        variance = squares / (i + 1)
    return largest


@pytest.mark.parametrize("floor", [-0.2, 0.0, 0.01, 0.1, 0.6])
def test_p_value_is_one_over_the_largest_capital(floor):
    d = np.random.default_rng(3).uniform(-0.5, 0.45, size=150)
    assert p_value(d, floor) == pytest.approx(1 / capital_by_hand(d, floor), rel=1e-9)


def test_what_is_won_for_certain_is_a_bound_below_zero():
    d = np.random.default_rng(1).uniform(-0.5, 0.1, size=1000)
    assert d.mean() < upper_bound(d, 0.95) < -0.1


def test_first_bet_by_hand():
    """One sample, d = -1, X = 1; variance 1/4, so the bet is capped: 0.75 / 0.45; capital 1 + 0.75 / 0.45 * 0.55."""
    assert p_value(np.array([-1.0]), 0.1) == pytest.approx(1 / (1 + 0.75 / 0.45 * 0.55))


def test_a_loss_is_no_evidence():
    assert p_value(np.full(50, 0.5), 0.4) == 1.0
    assert upper_bound(np.ones(50), 0.95) == 1.0


@given(differences, st.floats(-0.999, 0.999), st.floats(-0.999, 0.999))
@settings(max_examples=100, deadline=None)
def test_a_larger_floor_has_a_smaller_p_value(d, one, other):
    low, high = sorted((one, other))
    assert p_value(d, high) <= p_value(d, low) * (1 + 1e-9)


@given(differences, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=100, deadline=None)
def test_bound_inverts_p_value(d, confidence):
    bound = upper_bound(d, confidence)
    if bound < 1:
        assert p_value(d, bound) <= 1 - confidence
    if bound > 2e-6 - 1:
        assert p_value(d, bound - 1.1e-6) > 1 - confidence


SHAPES = {
    "fine": lambda rng, n: (rng.beta(2, 2, n) - 0.5) * 0.2 + 0.05,
    "rare and large": lambda rng, n: rng.choice([1.0, -1.0, 0.0], p=[0.06, 0.01, 0.93], size=n),
    "sorted by class": lambda rng, n: np.sort(rng.choice([0.9, 0.0, -0.5], p=[0.1, 0.82, 0.08], size=n)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_size_at_a_true_drop_equal_to_the_floor(shape):
    rng = np.random.default_rng(11)
    wrong = sum(p_value(SHAPES[shape](rng, 400), 0.05) <= 0.05 for _ in range(2000))
    assert wrong <= 123


def test_power_adapts_to_the_variance():
    """At a true drop of 0 and a floor of 0.02, 400 samples with small differences prove it; Hoeffding needs 15,000."""
    rng = np.random.default_rng(5)
    proved = sum(p_value(rng.uniform(-0.1, 0.1, 400), 0.02) <= 0.05 for _ in range(200))
    assert proved >= 180


def test_is_deterministic_and_leaves_its_input_alone():
    d = np.random.default_rng(0).uniform(-1, 1, 100)
    before = d.copy()
    assert p_value(d, 0.1) == p_value(d, 0.1)
    np.testing.assert_array_equal(d, before)


@pytest.mark.parametrize(
    ("d", "message"),
    [
        ([0.0, float("nan")], "got nan, wanted -1 to 1"),
        ([0.0, 1.5], "got 1.5, wanted -1 to 1"),
        ([], r"got shape \(0,\)"),
        ([[0.0]], r"got shape \(1, 1\)"),
    ],
)
def test_refuses_bad_differences(d, message):
    with pytest.raises(DataError, match=message):
        p_value(np.array(d), 0.1)
    with pytest.raises(DataError, match=message):
        upper_bound(np.array(d), 0.95)


def test_refuses_bad_levels():
    with pytest.raises(ValueError, match="a floor is a fraction"):
        p_value(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="a confidence is a fraction"):
        upper_bound(np.zeros(3), 0.0)
