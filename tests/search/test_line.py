"""The line that is shown to a test which stops at the first failure, against every line there is."""

from __future__ import annotations

import doctest
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.search import line
from laconic.search.line import best_line


def expected(chosen: tuple[int, ...] | list[int], gains: list[float], chances: list[float]) -> float:
    won, passed, total = 0.0, 1.0, 0.0
    for i in chosen:
        passed *= chances[i]
        total += passed * (gains[i] - won)
        won = gains[i]
    return total


candidates = st.lists(st.tuples(st.floats(0.01, 4), st.floats(1e-6, 1)), max_size=7).map(sorted)


@settings(max_examples=200, deadline=None)
@given(candidates, st.integers(1, 5))
def test_no_line_is_expected_to_win_more(found: list[tuple[float, float]], most: int) -> None:
    gains, chances = [gain for gain, _ in found], [chance for _, chance in found]
    chosen = best_line(gains, chances, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    lines = [c for length in range(most + 1) for c in combinations(range(len(found)), length)]
    best = max(expected(c, gains, chances) for c in lines)
    assert expected(chosen, gains, chances) == pytest.approx(best)


def test_the_example() -> None:
    assert doctest.testmod(line).failed == 0
