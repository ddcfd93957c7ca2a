"""In which order, and which, to show to a test that stops at the first failure."""

from __future__ import annotations

from collections.abc import Sequence


def best_line(gains: Sequence[float], chances: Sequence[float], most: int) -> list[int]:
    """The indices of at most ``most`` candidates, in their order, of which the most is to be expected.

    ``gains`` rise; the one that passed last is won. ``chances`` of passing are taken as independent, so what is
    expected of a line i_1 < i_2 < ... is the sum over k of (gains[i_k] - gains[i_{k-1}]) chances[i_1] ... chances[i_k];
    the gain of none is 0. Found exactly, from the end on (dynamic programming).

    >>> best_line([1.0, 1.1, 2.0], [0.99, 0.8, 0.8], most=3)  # the second gains less than it is stumbled over
    [0, 2]
    """
    # value[i]: what is expected beyond i once it has passed, behind[i]: the line that it is expected of
    value, behind = [0.0] * len(gains), [[] for _ in gains]  # type: tuple[list[float], list[list[int]]]
    for _ in range(most - 1):
        pairs = [_continued(i + 1, gains[i], gains, chances, value, behind) for i in range(len(gains))]
        value, behind = [worth for worth, _ in pairs], [line for _, line in pairs]
    return _continued(0, 0.0, gains, chances, value, behind)[1]


def _continued(
    start: int,
    won: float,
    gains: Sequence[float],
    chances: Sequence[float],
    value: Sequence[float],
    behind: Sequence[list[int]],
) -> tuple[float, list[int]]:
    """The most to expect beyond ``won`` of the candidates from ``start`` on, and the line that it is expected of."""
    best: tuple[float, list[int]] = (0.0, [])
    for i in range(start, len(gains)):
        worth = chances[i] * (gains[i] - won + value[i])
        if worth > best[0]:
            best = worth, [i, *behind[i]]
    return best
