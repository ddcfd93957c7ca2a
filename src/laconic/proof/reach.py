"""What a holdout can prove, before it is opened: planning with the exact paired test.

A candidate without any true drop still differs from the baseline on some samples; ``discordance`` is their fraction,
lost and won in equal parts. The more they are, the wider the bound, and the larger the least floor that can be proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from laconic.errors import GoalError
from laconic.proof import paired

_MOST = 10_000_000  # samples; a floor that needs more is refused


def least_floor(n: int, discordance: float, confidence: float) -> float:
    """The least floor that ``n`` samples prove if as many are won as lost (each count rounded up).

    >>> round(least_floor(10_000, 0.0, 0.95), 4)
    0.0003
    """
    pairs = _pairs(n, discordance)
    return paired.upper_bound(pairs, pairs, n, confidence)


def samples_needed(floor: float, discordance: float, confidence: float) -> int:
    """The least n whose :func:`least_floor` is at most ``floor``.

    >>> 296 <= samples_needed(0.01, 0.0, 0.95) <= 304
    True
    """
    if not 0 < floor < 1:
        raise ValueError(f"a floor is a fraction above 0 and below 1, got {floor}")

    def enough(n: int) -> bool:
        pairs = _pairs(n, discordance)
        return paired.p_value(pairs, pairs, n, floor) <= 1 - confidence

    if discordance == 0:
        return _first(enough, _MOST)

    # Counts are whole, so least_floor is a saw over n: it falls while the pairs stay the same and jumps where one comes
    # in. At the foot of each tooth, the largest n with those pairs, it falls from tooth to tooth.
    def foot(pairs: int) -> int:
        return math.floor(2 * pairs / discordance + 1e-9)

    pairs = _first(lambda pairs: enough(foot(pairs)), math.ceil(_MOST * discordance / 2))
    return _bisect(enough, foot(pairs - 1), foot(pairs))


def expected_bound(lost: int, won: int, n: int, n_holdout: int, confidence: float) -> float:
    """The upper bound that the holdout would give if it showed the proportions that ``n`` samples of ``search`` did.

    Lost is rounded up and won down.
    """
    scale = n_holdout / n
    return paired.upper_bound(math.ceil(lost * scale - 1e-9), math.floor(won * scale + 1e-9), n_holdout, confidence)


def _pairs(n: int, discordance: float) -> int:
    if not 0 <= discordance <= 1:
        raise ValueError(f"a discordance is a fraction, got {discordance}")
    return min(math.ceil(n * discordance / 2 - 1e-9), n // 2)


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The least count at which ``holds`` turns true, found by doubling up to ``most`` and bisection."""
    count = 1
    while not holds(count):
        count *= 2
        if count > most:
            raise GoalError("a floor too small to prove", wanted=f"one that {_MOST:,} samples can prove")
    return _bisect(holds, count // 2, count)


def _bisect(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The least count above ``low`` at which ``holds`` is true, given that it is at ``high``."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
