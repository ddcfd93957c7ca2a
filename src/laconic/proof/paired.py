"""Exact unconditional test that a candidate lost no more than the floor: paired records of 0 and 1.

Of ``n`` samples the baseline has b_i in {0, 1} right and the candidate c_i. ``lost`` counts b_i = 1, c_i = 0 (its
probability is p10) and ``won`` counts b_i = 0, c_i = 1 (p01). The drop is p10 - p01. The hypothesis that a
certificate must reject is H0: p10 - p01 >= floor. Every quantity is a fraction: 0.01 is one point.

**Statistic** (Tango 1998, Statistics in Medicine 17, 891-908), with x, y for lost, won and D for a supposed drop::

    T(x, y; D) = (x - y - n D) / sqrt(n (2 q + D (1 - D)))
    q          = the likelihood's best p01 under p10 = p01 + D: the larger root of  2 n q^2 + B q + C = 0,
                 B = -x - y + D (2 n - x + y),   C = -y D (1 - D)

T falls as D rises; Tango's upper limit is the D at which T = -z, and z = 1.645 serves here for all levels.

**P-value** (Lloyd and Moldovan 2008, Statistics in Medicine 27, 3540-3549: their maximisation): the largest
probability, under H0, of an outcome at least as good as the one seen. The nuisance is the discordance psi = p10 + p01.
Given the number d of discordant samples lost is Bin(d, p10 / psi), so at a drop equal to the floor::

    P(psi) = sum over d of  Bin(d; n, psi) * Pr(Bin(d, (1 + floor / psi) / 2) <= k(d))

where k(d) is the largest lost at which an outcome with d discordant samples is as good as the one seen. Larger drops
at the same psi make lost larger, hence P smaller, so the boundary of H0 is enough. (A floor below 0 asks whether the
candidate won: of H0 is then also any psi below -floor, where a drop of -psi is the best for it, and P rises with psi up
to the boundary's own psi = -floor.)

**Deviations.** (1) "As good" means a Tango limit no larger than the one seen, not a T no larger at the floor: one order
then serves every floor, so the p-value falls as the floor rises, and the bound that inverts it (Buehler 1957, JASA 52,
482-493) is exact too. Ordered by T at the floor, p-values rose in places, by up to half. (2) No estimation step.
(3) psi is confined to its Clopper-Pearson interval at level 1 - gamma, and gamma = 1e-6 is added (Berger and Boos 1994,
JASA 89, 1012-1016): still valid, and no p-value is below 1e-6.

**No grid error.** The outcomes as good as the one seen stay so when lost falls or won rises. So over p01 in [q1, q2]
the probability is at most that at p10 = q1 + floor, p01 = q2. Cells of p01 are bounded in this way, and split until
the bound is within 1 % (or 1e-6) of a value that is attained. The bound is what is returned: never too small.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, special

Array = np.ndarray[Any, np.dtype[Any]]

_Z = 1.6448536269514722
_GAMMA = 1e-6
_TAIL = 1e-9  # what the sum over d leaves out at each end; counted in full
_SLACK = 0.01
_CELLS = 16
_LEAST = 1e-300  # a share of 0, for a logarithm


def p_value(lost: int, won: int, n: int, floor: float) -> float:
    """The p-value of H0: drop >= ``floor``, having seen ``lost`` and ``won`` among ``n`` samples; a floor below 0 is a
    gain.

    >>> p_value(0, 0, 304, 0.01) < 0.05 < p_value(0, 0, 296, 0.01)
    True
    """
    _check(lost, won, n)
    if not -1 < floor < 1:
        raise ValueError(f"a floor is a fraction between -1 and 1, got {floor}")
    return 1.0 if lost == n else _order(lost, won, n).p_value(floor)


def upper_bound(lost: int, won: int, n: int, confidence: float) -> float:
    """The one-sided upper confidence bound of the drop: the least floor with a p-value of at most 1 - confidence; below
    0 where the candidate won for certain.

    Rounded up, to a p-value between 98.5 and 100 % of 1 - confidence.

    >>> round(upper_bound(0, 0, 300, 0.95), 2), round(upper_bound(10, 40, 300, 0.95), 2)
    (0.01, -0.06)
    """
    _check(lost, won, n)
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is a fraction above 0 and below 1, got {confidence}")
    if lost == n:
        return 1.0
    order = _order(lost, won, n)
    alpha = 1 - confidence
    width = order.limit - (lost - won) / n
    low, high, floor = -1.0, 1.0, order.limit  # low is not proved, high is
    while high - low > width / 1000:
        if not low < floor < high:
            floor = (low + high) / 2
        p = order.p_value(floor)
        low, high = (low, floor) if p <= alpha else (floor, high)
        if 0.985 * alpha <= p <= alpha:
            break
        # The normal quantile of p is nearly linear in the floor: _Z for each width.
        floor += width / _Z * float(special.ndtri(p) - special.ndtri(0.9925 * alpha))
    return high


def score(lost: Array | int, won: Array | int, n: int, drop: float) -> Array:
    """Tango's T for a supposed ``drop`` (module docstring)."""
    B = drop * (2 * n - lost + won) - lost - won
    C = -won * drop * (1 - drop)
    q = (np.sqrt(np.maximum(B * B - 8.0 * n * C, 0)) - B) / (4 * n)
    return np.asarray((lost - won - n * drop) / np.sqrt(n * (2 * q + drop * (1 - drop))))


def _check(lost: int, won: int, n: int) -> None:
    if lost < 0 or won < 0 or n < 1 or lost + won > n:
        raise ValueError(f"lost and won count some of n samples, got lost {lost}, won {won}, n {n}")


def _limit(lost: int, won: int, n: int) -> float:
    """Tango's upper limit of the drop: where T = -z."""
    drop = (lost - won) / n  # T is 0 here, and without bound at a drop of 1
    margin = 1e-9 * (1 - drop)
    return float(
        optimize.brentq(lambda D: float(score(lost, won, n, D)) + _Z, drop + margin, 1 - margin, xtol=1e-15, rtol=1e-14)
    )


class _Order:
    """The outcomes as good as (lost, won): at ``d`` discordant samples, those that lost at most ``k``."""

    def __init__(self, lost: int, won: int, n: int) -> None:
        self.n = n
        self.limit = _limit(lost, won, n)
        discordant = lost + won
        low = special.betaincinv(discordant, n - discordant + 1, _GAMMA / 2) if discordant else 0.0
        high = special.betaincinv(discordant + 1, n - discordant, 1 - _GAMMA / 2) if discordant < n else 1.0
        self.low, self.high = float(low), float(high)

        self.d = _support(n, self.low, self.high)
        self.k = _most_lost(self.d, n, self.limit)

        # From d to d + 1, k rises by ``rise``, 0 or 1, and Pr(lost <= k) by (rise - p10 / psi) Pr(lost = k + rise).
        self._rise = np.diff(self.k, append=self.k[-1])
        assert np.isin(self._rise, (0, 1)).all()  # as good stays as good when lost falls or won rises
        pivot = self.k + self._rise
        possible = (pivot >= 0) & (pivot <= self.d)
        pivot = np.where(possible, pivot, 0)
        choose = np.where(possible, _log_choose(self.d, pivot), -np.inf)
        self._log_jump = np.stack([choose, pivot, self.d - pivot])  # (3, d): times 1, log share, log(1 - share)
        self._log_weight = np.stack([_log_choose(n, self.d), self.d, n - self.d])

    def probability(self, p10: Array, p01: Array) -> Array:
        """The probability of the outcomes as good as the one seen, for each pair; at most 2 tails too small."""
        psi = p10 + p01  # (cells,)
        share = np.maximum(p10 / psi, _LEAST)
        first = special.bdtr(float(self.k[0]), int(self.d[0]), share) if self.k[0] >= 0 else np.zeros_like(share)
        given_d = np.exp(_log_powers(share) @ self._log_jump)  # (cells, d)
        given_d *= self._rise - share[:, None]
        given_d = np.cumsum(np.concatenate([first[:, None], given_d[:, :-1]], axis=1), axis=1)
        return np.asarray(np.einsum("cd,cd->c", np.exp(_log_powers(psi) @ self._log_weight), given_d))

    def p_value(self, floor: float) -> float:
        allowance = _GAMMA + 2 * _TAIL
        if self.high <= floor:
            return allowance
        if self.high <= -floor:
            return min(1.0, float(self.probability(np.zeros(1), np.array([self.high]))[0]) + allowance)
        widest = max(self.high - floor, 1e-12)  # never so narrow that a share rounds to 1
        edges = np.linspace(max(self.low, abs(floor)) - floor, widest, _CELLS + 1) / 2
        left, right = edges[:-1], edges[1:]
        attained = bound = 0.0
        while len(left):
            bounds = self.probability(left + floor, right)
            assert np.isfinite(bounds).all()
            worst = np.argmax(bounds)
            middle = (left + right)[[worst]] / 2
            attained = max(attained, float(self.probability(middle + floor, middle)[0]))
            allowed = max(attained * (1 + _SLACK), _GAMMA)
            wide = bounds > allowed
            bound = max(bound, float(bounds[~wide].max(initial=0.0)))
            excess = (bounds[wide] - attained) / (allowed - attained)
            left, right = _split(left[wide], right[wide], np.clip(np.ceil(excess), 2, 32).astype(int))
        return min(1.0, max(bound, attained) + allowance)


_order = lru_cache(maxsize=32)(_Order)


def _split(left: Array, right: Array, parts: Array) -> tuple[Array, Array]:
    """Each cell in so many equal parts."""
    width = np.repeat((right - left) / parts, parts)
    place = np.arange(len(width)) - np.repeat(np.cumsum(parts) - parts, parts)
    begin = np.repeat(left, parts) + place * width
    return begin, begin + width


def _log_powers(p: Array) -> Array:
    return np.stack([np.ones_like(p), np.log(p), np.log1p(-p)], axis=1)


def _log_choose(n: Array | int, k: Array) -> Array:
    return np.asarray(special.gammaln(np.add(n, 1)) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


def _support(n: int, low: float, high: float) -> Array:
    """The counts that Bin(n, psi) takes for psi in low..high, less a tail at each end (Bernstein's inequality)."""

    def reach(psi: float) -> float:
        size = -math.log(_TAIL)
        return size / 3 + math.sqrt(size * size / 9 + 2 * n * psi * (1 - psi) * size)

    first = max(0, math.floor(n * low - reach(low)))
    last = min(n, math.ceil(n * high + reach(high)))
    return np.arange(first, last + 1)


def _most_lost(d: Array, n: int, limit: float) -> Array:
    """For each count ``d`` of discordant samples the largest lost with T(lost, d - lost; limit) <= -z, or -1."""
    yes, no = np.full(d.shape, -1), d + 1
    while (no - yes > 1).any():
        middle = np.maximum((yes + no) // 2, 0)
        good = score(middle, d - middle, n, limit) <= -_Z + 1e-9  # the outcome seen is in, whatever the rounding
        unknown = no - yes > 1
        yes, no = np.where(unknown & good, middle, yes), np.where(unknown & ~good, middle, no)
    return yes
