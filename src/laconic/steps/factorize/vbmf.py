"""How many of a matrix's singular values are more than noise: empirical variational Bayesian matrix factorization.

Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14. V (L x M, L <= M) is a product of low rank plus noise of variance s^2; with alpha = L / M and
the singular values g_h, those stay that exceed (theorem 2, corollary 5)

    sqrt(M s^2 x),   x = (1 + t) (1 + alpha / t),   t = 2.5129 sqrt(alpha)

The noise is that of the least free energy (theorem 6, eq. 37), a function of one number between known bounds (eq. 38):

    sum_h psi(g_h^2 / (M s^2)),    psi(z) = z - log z + [z > x] (log(tau + 1) + alpha log(tau / alpha + 1) - tau),
    tau(z) = (z - (1 + alpha) + sqrt((z - (1 + alpha))^2 - 4 alpha)) / 2

Deviation: that function may have several minima, so it is looked at on a grid before the best one is refined.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

from laconic.core import Array

_GRID = 200


def rank(matrix: Array) -> int:
    """The number of components of ``matrix`` (L, M) that stand above its noise; 0 where it is zero."""
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = matrix.shape[1]
    squares = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False) ** 2
    if squares[0] == 0:
        return 0
    alpha = len(squares) / wide
    return int((squares > wide * noise(squares, wide) * _edge(alpha)).sum())


def noise(squares: Array, wide: int) -> float:
    """s^2 from the squared singular values (L,), falling, of a matrix that is ``wide`` (M)."""
    tall = len(squares)
    alpha, edge = tall / wide, _edge(tall / wide)
    most = min(math.ceil(tall / (1 + alpha)) - 1, tall - 1)  # the components that can stand out
    upper = squares.sum() / (tall * wide)
    lower = max(squares[most] / (wide * edge), squares[most:].mean() / wide, upper * 1e-12)
    grid = np.geomspace(lower, upper, _GRID)
    energies = [_energy(s, squares, wide, alpha, edge) for s in grid]
    best = int(np.argmin(energies))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    refined = minimize_scalar(_energy, bounds=bounds, args=(squares, wide, alpha, edge), method="bounded")
    return float(refined.x if refined.fun < energies[best] else grid[best])


def _edge(alpha: float) -> float:
    t = 2.5129 * math.sqrt(alpha)
    return (1 + t) * (1 + alpha / t)


def _energy(s: float, squares: Array, wide: int, alpha: float, edge: float) -> float:
    z = np.maximum(squares / (wide * s), np.finfo(np.float64).tiny)
    above = z[z > edge]
    tau = (above - (1 + alpha) + np.sqrt((above - (1 + alpha)) ** 2 - 4 * alpha)) / 2
    return float((z - np.log(z)).sum() + (np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau).sum())
