"""Bits for layers: against every choice there is."""

from __future__ import annotations

import doctest
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.search import precision
from laconic.search.precision import allocate_bits

BITS = (2, 4, 8)
rows = st.lists(st.tuples(*(st.floats(0, 10) for _ in BITS)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows, st.data())
def test_no_choice_hurts_less(damages: list[tuple[float, ...]], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=len(damages), max_size=len(damages)))
    limit = data.draw(st.integers(0, 8 * sum(sizes)))
    damage = {f"l{i}": dict(zip(BITS, row, strict=True)) for i, row in enumerate(damages)}
    cost = {f"l{i}": {bits: float(bits * size) for bits in BITS} for i, size in enumerate(sizes)}
    found = allocate_bits(damage, cost, limit)
    within = [
        dict(zip(damage, bits, strict=True))
        for bits in product(BITS, repeat=len(damage))
        if sum(cost[name][b] for name, b in zip(damage, bits, strict=True)) <= limit
    ]
    if not within:
        assert found is None
        return
    assert found is not None
    assert sum(cost[name][bits] for name, bits in found.items()) <= limit + 1e-6
    least = min(sum(damage[name][b] for name, b in chosen.items()) for chosen in within)
    assert sum(damage[name][b] for name, b in found.items()) == pytest.approx(least, abs=1e-5)


def test_without_layers_there_is_nothing_to_choose() -> None:
    assert allocate_bits({}, {}, 0.0) == {}


def test_the_example() -> None:
    assert doctest.testmod(precision).failed == 0
