"""Bits for layers: against every choice there is."""

from __future__ import annotations

import doctest
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core import Recipe, Width
from laconic.search import precision
from laconic.search.precision import FLOAT, allocate_bits, sensitivities, sizes, with_bits
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize

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
    found = allocate_bits(damage, cost, limit, once)
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
        found = allocate_bits(damage, cost, limit)
        assert found is not None
        choices = [dict(zip(names, bits, strict=True)) for bits in product(BITS, repeat=6)]
        within = [c for c in choices if sum(cost[n][b] for n, b in c.items()) <= limit]
        assert found == min(within, key=lambda c: sum(damage[n][b] for n, b in c.items()))


def test_sizes_by_hand() -> None:
    cost, once = sizes({"large": 800, "tiny": 10}, {3: Width(3.0, 50, 200), 8: Width(8.0)})
    assert cost == {"large": {3: 350, 8: 800}, "tiny": {3: 10, 8: 10}}
    assert once == {3: 200, 8: 0}


def test_bits_as_settings_of_quantize() -> None:
    bits = {"a": 3, "b": 3, "c": 8, "d": FLOAT}
    assert with_bits(Quantize(weight_ranges="mse"), bits) == Quantize(
        weight_ranges="mse", bits=3, layers={"c": 8}, exclude=("d",)
    )
    assert with_bits(Quantize(), {"a": FLOAT}) == Quantize(exclude=("a",))


def test_sensitivities_are_of_each_layer_alone() -> None:
    asked = []

    def probe(recipe: Recipe) -> float | None:
        asked.append(recipe)
        return None if len(asked) == 1 else 0.25

    found = sensitivities((Quantize(bits=4), GPTQ()), "ab", (2, 8), probe)
    assert found == {"a": {2: 1.0, 8: 0.25}, "b": {2: 0.25, 8: 0.25}}
    assert asked[3] == Recipe((Quantize(bits=8, exclude=("a",)), GPTQ()))


def test_without_layers_there_is_nothing_to_choose() -> None:
    assert allocate_bits({}, {}, 0.0) == {}


def test_the_example() -> None:
    assert doctest.testmod(precision).failed == 0
