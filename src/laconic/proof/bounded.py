"""Betting test that a mean drop is below the floor: paired records anywhere in [0, 1].

Waudby-Smith and Ramdas 2020 (arXiv 2010.09686; JRSS B 2024), "Estimating means of bounded random variables by betting".
From differences d_i = b_i - c_i in [-1, 1] (baseline less candidate) come X_i = (1 - d_i) / 2 in [0, 1]. A drop of at
least the floor means a mean of X of at most m = (1 - floor) / 2. Against that a gambler's capital grows as::

    K_t      = prod over i <= t of  (1 + lambda_i (X_i - m))
    lambda_i = min( sqrt(2 log(1 / alpha) / (n var_{i-1})),  c / m )       predictable plug-in, fixed n; c = 3/4
    var_i    = (1/4 + sum over j <= i of (X_j - mean_j)^2) / (i + 1)
    mean_i   = (1/2 + sum over j <= i of X_j) / (i + 1)

Under the hypothesis K_t is a supermartingale, so by Ville's inequality 1 / max_t K_t is a p-value, whatever alpha is:
that only says where the bets are sharpest (0.05 here).

**Deviations.** One-sided: the capital that bets on a larger mean alone, hence log(1 / alpha). The samples are taken in
one fixed pseudo-random order: the inequality wants each independent of those before it, and data sets are often sorted
by class. So the result is deterministic. The p-value falls as the floor rises, for every factor grows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from laconic.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

_ALPHA = 0.05
_CAP = 0.75
_RESOLUTION = 1e-6


def p_value(differences: Array, floor: float) -> float:
    """The p-value of H0: the mean of ``differences`` (n,), baseline less candidate, is at least ``floor``.

    >>> p_value(np.zeros(1000), 0.01) < 0.05 < p_value(np.zeros(100), 0.01)
    True
    """
    if not -1 < floor < 1:
        raise ValueError(f"a floor is a fraction between -1 and 1, got {floor}")
    return _p_value(*_bets(differences), floor)


def upper_bound(differences: Array, confidence: float) -> float:
    """The one-sided upper confidence bound of the mean: the least floor with a p-value of at most 1 - confidence.

    Rounded up by at most one millionth; below 0 where the candidate won for certain.

    >>> 0.003 < upper_bound(np.zeros(1000), 0.95) < 0.006
    True
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is a fraction above 0 and below 1, got {confidence}")
    X, bets = _bets(differences)
    low, high = -1.0, 1.0
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        low, high = (low, middle) if _p_value(X, bets, middle) <= 1 - confidence else (middle, high)
    return high


def _bets(differences: Array) -> tuple[Array, Array]:
    """The samples X in the order of play, and the bet on each before the cap."""
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not len(d):
        raise DataError("differences are one row of numbers", got=f"shape {d.shape}", wanted="(n,) with n at least 1")
    if not (np.abs(d) <= 1).all():
        raise DataError("a difference of records out of range", got=d[~(np.abs(d) <= 1)][0], wanted="-1 to 1")
    n = len(d)
    X = (1 - np.random.default_rng(0).permutation(d)) / 2
    count = np.arange(2, n + 2)
    mean = (0.5 + np.cumsum(X)) / count
    var = (0.25 + np.cumsum((X - mean) ** 2)) / count
    before = np.concatenate([[0.25], var[:-1]])
    return X, np.sqrt(2 * math.log(1 / _ALPHA) / (n * before))


def _p_value(X: Array, bets: Array, floor: float) -> float:
    m = (1 - floor) / 2
    capital = np.cumsum(np.log1p(np.minimum(bets, _CAP / m) * (X - m)))
    return float(np.exp(-max(capital.max(), 0.0)))
