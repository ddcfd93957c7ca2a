"""Bits for layers: their sizes, their sensitivities, and the settings that they are."""

from __future__ import annotations

from collections.abc import Mapping

from laconic.core import Recipe, Width
from laconic.search.precision import FLOAT, exchanged, near, sensitivities, sizes, with_bits
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize


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


def test_layers_are_exchanged_in_the_widest_network_and_a_width_that_fails_costs_all() -> None:
    def exchange(recipes: Mapping[int, Recipe], base: int) -> dict[str, dict[int, float]]:
        assert base == 8
        assert recipes == {b: Recipe((Quantize(bits=b, exclude=("c",)), GPTQ())) for b in (3, 4, 8)}
        return {"a": {3: 0.75, 4: 0.5, 8: 0.0}, "b": {4: 0.5, 8: 0.0}, "c": {3: 0.1}}

    found = exchanged((Quantize(exclude=("c",)), GPTQ()), "ab", (3, 4, 8), exchange)
    assert found == {"a": {3: 0.75, 4: 0.5, 8: 0.0}, "b": {3: 1.0, 4: 0.5, 8: 0.0}}


def test_near_widths() -> None:
    assert near((2, 3, 4, 5, 6, 8), 4) == [2, 3, 4, 5, 8]
    assert near((2, 3, 4, 5, 6, 8), 2) == [2, 3, 8]
    assert near((4, 8), 8) == [4, 8]
