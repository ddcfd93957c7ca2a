"""Which of a few shared numbers, and with which sign, each weight of a layer is: by a hash, so that no index is stored.

Chen, Wilson, Tyree, Weinberger and Chen 2015, arXiv 1504.04788, section 4: V_ij = w_h(i,j) xi(i,j), where h gives one
of K numbers and xi a sign. Weight n of a layer, counted row by row (so n stands for i and j), is

    a number below 2K, i = H(n) mod 2K: w_i where i < K, else -w_(i-K).

H is a keyed Feistel network over the numbers modulo P whose round function is the cube (as in MiMC; Albrecht et al.
2016, IACR 2016/492): n = P l + r, and in each round (l, r) becomes (r, l + (r + key)^3 mod P). It is a permutation of
the numbers below P^2, and no number on the way is 2^31 or more, so that it is the same on every machine and can be
written in the operators of a runtime that has 32-bit integers alone, and no shifts
(:mod:`laconic.runtime.onnx_hashed`). The paper uses xxHash, which multiplies modulo 2^32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from laconic.core import Array

P = 46_337
"""The largest prime whose square is below 2^31; x -> x^3 is one to one modulo P, for 3 does not divide P - 1."""
KEYS = (31_415, 9_265, 35_897, 9_323)
"""Of each round; digits of pi."""


def hashes(count: int) -> Array:
    """H(0), ..., H(count - 1): int64, from 0 to P^2 - 1.

    >>> hashes(3).tolist()
    [283810236, 1706989523, 2143757208]
    """
    left, right = np.divmod(np.arange(count, dtype=np.int64), P)
    for key in KEYS:
        x = (right + key) % P
        left, right = right, (x * x % P * x + left) % P
    return left * P + right


def places(count: int, entries: int) -> Array:
    """For each of ``count`` weights its place among ``entries`` numbers followed by their negatives, int64 (count,).

    >>> places(6, entries=4).tolist()
    [4, 3, 0, 2, 7, 4]
    """
    return hashes(count) % (2 * entries)
