"""Confidence intervals that assume no distribution: of a median, and of a proportion.

**Median** (order statistics; Conover 1999, "Practical Nonparametric Statistics", section 3.2). Of n independent values
the number below the median is Bin(n, 1/2) if the distribution is continuous (ties only widen the coverage). With r the
largest rank at which Pr(Bin(n, 1/2) < r) <= alpha / 2, the interval is [X_(r), X_(n + 1 - r)].

**Proportion** (Clopper and Pearson 1934, Biometrika 26, 404-413). The two-sided exact interval: quantiles alpha / 2 of
Beta(s, n - s + 1) and 1 - alpha / 2 of Beta(s + 1, n - s).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from laconic.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def median_interval(values: Array, confidence: float = 0.95) -> tuple[float, float, float]:
    """The median of ``values`` (n,) and the interval that holds the true one: (median, low, high).

    >>> median_interval(np.arange(1.0, 11.0))
    (5.5, 2.0, 9.0)
    """
    _check(confidence)
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    n = len(ordered)
    if not np.isfinite(ordered).all():
        raise DataError("values that are not finite numbers", got=ordered[~np.isfinite(ordered)][0])
    alpha = 1 - confidence
    if 2.0 ** (1 - n) > alpha:
        needed = math.ceil(1 - math.log2(alpha))
        raise DataError(f"too few values for a {confidence:.0%} interval", got=n, wanted=f"at least {needed}")
    rank = int((special.bdtr(np.arange(n), n, 0.5) <= alpha / 2).sum())
    return float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[n - rank])


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Clopper-Pearson interval (low, high) of a proportion.

    >>> low, high = proportion_interval(0, 100)
    >>> low, round(high, 4)
    (0.0, 0.0362)
    """
    _check(confidence)
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes count some of n samples, got {successes} of {n}")
    alpha = 1 - confidence
    low = special.betaincinv(successes, n - successes + 1, alpha / 2) if successes else 0.0
    high = special.betaincinv(successes + 1, n - successes, 1 - alpha / 2) if successes < n else 1.0
    return float(low), float(high)


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is a fraction above 0 and below 1, got {confidence}")
