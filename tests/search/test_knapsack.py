"""The knapsack: against every choice there is."""

from __future__ import annotations

import doctest
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.search import knapsack
from laconic.search.knapsack import Term, least_damage

BITS = (2, 4, 8)
rows = st.lists(st.tuples(*(st.floats(0, 10) for _ in BITS)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows, st.data())
def test_no_choice_hurts_less(damages: list[tuple[float, ...]], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 50), min_size=len(damages), max_size=len(damages)))
    limit = data.draw(st.integers(0, 8 * sum(counts)))
    damage = {f"l{i}": dict(zip(BITS, row, strict=True)) for i, row in enumerate(damages)}
    cost = {f"l{i}": {bits: float(bits * size) for bits in BITS} for i, size in enumerate(counts)}
    once = dict(zip(BITS, data.draw(st.tuples(*(st.integers(0, 40) for _ in BITS))), strict=True))
    found = least_damage(damage, cost, limit, once)
    within = [
        dict(zip(damage, bits, strict=True))
        for bits in product(BITS, repeat=len(damage))
        if sum(cost[name][b] for name, b in zip(damage, bits, strict=True)) + sum(once[b] for b in set(bits)) <= limit
    ]
    if not within:
        assert found is None
        return
    assert found is not None
    spent = sum(cost[name][bits] for name, bits in found.items()) + sum(once[b] for b in set(found.values()))
    assert spent <= limit + 1e-6
    least = min(sum(damage[name][b] for name, b in chosen.items()) for chosen in within)
    assert sum(damage[name][b] for name, b in found.items()) == pytest.approx(least, abs=1e-5)


def test_damages_far_below_the_solvers_tolerance_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        names = [f"l{i}" for i in range(6)]
        damage = {n: {b: float(d) for b, d in zip(BITS, rng.uniform(1, 9, 3) * 1e-8, strict=True)} for n in names}
        cost = {n: {b: float(b * size) for b in BITS} for n, size in zip(names, rng.integers(1, 50, 6), strict=True)}
        limit = 0.6 * sum(of_layer[8] for of_layer in cost.values())
        found = least_damage(damage, cost, limit)
        assert found is not None
        choices = [dict(zip(names, bits, strict=True)) for bits in product(BITS, repeat=6)]
        within = [c for c in choices if sum(cost[n][b] for n, b in c.items()) <= limit]
        assert found == min(within, key=lambda c: sum(damage[n][b] for n, b in c.items()))


def test_without_layers_there_is_nothing_to_choose() -> None:
    assert least_damage({}, {}, 0.0) == {}


def test_the_example() -> None:
    assert doctest.testmod(knapsack).failed == 0


numbers = st.lists(st.floats(0, 10), min_size=27, max_size=27)


@settings(max_examples=40, deadline=None)
@given(numbers, numbers, numbers, st.floats(0, 30), st.booleans())
def test_no_choice_hurts_less_where_items_cost_together(
    pair: list[float], three: list[float], hurts: list[float], limit: float, free: bool
) -> None:
    damage = {item: dict(zip(BITS, hurts[3 * i : 3 * i + 3], strict=True)) for i, item in enumerate("abc")}
    terms = [Term(("a", "c"), np.reshape(pair[:9], (3, 3))), Term(("a", "b", "c"), np.reshape(three, (3, 3, 3)))]
    if free:  # as a block that is gone: of whatever is in it nothing costs
        terms[1].cost[:, 2] = 0
    cost = {"b": dict(zip(BITS, pair[9:12], strict=True))}

    def price(chosen: dict[str, int]) -> float:
        at = {item: BITS.index(choice) for item, choice in chosen.items()}
        return cost["b"][chosen["b"]] + sum(float(t.cost[tuple(at[i] for i in t.items)]) for t in terms)

    every = [dict(zip("abc", chosen, strict=True)) for chosen in product(BITS, repeat=3)]
    found = least_damage(damage, cost, limit, terms=terms)
    within = [chosen for chosen in every if price(chosen) <= limit]
    if found is None:
        assert not [chosen for chosen in within if price(chosen) < limit - 1e-5]
        return
    assert price(found) <= limit + 1e-5
    least = min((sum(damage[i][c] for i, c in chosen.items()) for chosen in within), default=np.inf)
    assert sum(damage[i][c] for i, c in found.items()) <= least * 1.001 + 1e-5
