"""The front chooses the test by the kind of the records, and refuses records that do not pair."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

from laconic import proof
from laconic.errors import DataError
from laconic.proof import bounded, paired

BASELINE = np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 1] * 30)
CANDIDATE = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1, 1] * 30)  # 30 lost, 30 won


def test_binary_records_take_the_exact_test():
    assert proof.count_flips(BASELINE, CANDIDATE) == (30, 30)
    assert proof.doubt_floor(BASELINE, CANDIDATE, 0.05, binary=True) == paired.p_value(30, 30, 300, 0.05)
    expected = (0.0, paired.upper_bound(30, 30, 300, 0.9))
    assert proof.bound_drop(BASELINE, CANDIDATE, 0.9, binary=True) == expected


def test_other_records_take_the_betting_test():
    baseline, candidate = BASELINE * 0.5, CANDIDATE * 0.5 - 0.0
    d = baseline - candidate
    assert proof.doubt_floor(baseline, candidate, 0.1, binary=False) == bounded.p_value(d, 0.1)
    assert proof.bound_drop(baseline, candidate, 0.9, binary=False) == (d.mean(), bounded.upper_bound(d, 0.9))


def test_the_drop_is_baseline_less_candidate():
    worse = np.array([1, 1, 0, 0])
    assert proof.count_flips(np.ones(4), worse) == (2, 0)
    assert proof.bound_drop(np.ones(4), worse, 0.95, binary=True)[0] == 0.5


def test_booleans_are_records():
    assert proof.count_flips(BASELINE.astype(bool), CANDIDATE.astype(bool)) == (30, 30)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [
        ([1, 0], [1, 0, 1], r"got shapes \(2,\) and \(3,\)"),
        ([], [], "at least one"),
        ([[1, 0]], [[1, 0]], "do not pair"),
        ([1, 0], [1, float("nan")], "got nan in row 1, wanted 0 to 1"),
        ([1, 1.5], [1, 0], "got 1.5 in row 1, wanted 0 to 1"),
        ([1, 0], [-0.25, 0], "got -0.25 in row 0, wanted 0 to 1"),
    ],
)
def test_bad_records_are_refused_in_one_line(baseline, candidate, message, binary):
    with pytest.raises(DataError, match=message) as caught:
        proof.doubt_floor(np.array(baseline), np.array(candidate), 0.1, binary)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=message):
        proof.bound_drop(np.array(baseline), np.array(candidate), 0.95, binary)


def test_fractions_are_not_binary():
    with pytest.raises(DataError, match=r"not 0 or 1: got 0\.5"):
        proof.doubt_floor(np.array([1.0, 1.0]), np.array([1.0, 0.5]), 0.1, binary=True)


@pytest.mark.parametrize("name", ["", *(f".{module.name}" for module in pkgutil.iter_modules(proof.__path__))])
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(f"laconic.proof{name}")
    assert doctest.testmod(module).failed == 0
