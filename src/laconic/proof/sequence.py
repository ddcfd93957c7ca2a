"""Fixed-sequence testing: many candidates, one error rate.

Angelopoulos, Bates, Candes, Jordan and Lei 2021 (arXiv 2110.01052), "Learn then Test", section on fixed-sequence
testing. The order is chosen before the p-values are seen (here: on another split). Each hypothesis is tested at the
full alpha, and testing ends at the first that is not rejected. The chance of any wrong rejection is then at most alpha,
however many candidates there are and however they depend on each other: to err at all, the first true hypothesis of the
sequence has to be rejected, and that one was fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence


def fixed_sequence(p_values: Sequence[float], alpha: float) -> list[int]:
    """The places of those that pass at level ``alpha``, from the first up to the first failure.

    >>> fixed_sequence([0.001, 0.04, 0.2, 0.001], alpha=0.05)
    [0, 1]
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability above 0 and below 1, got {alpha}")
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values are in 0..1, got {list(p_values)}")
    passed = 0
    while passed < len(p_values) and p_values[passed] <= alpha:
        passed += 1
    return list(range(passed))
