"""Costs: counted, against sums done by hand; read from tables, at and between what was measured; and as terms."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from laconic.search.costs import FORM, GROUP, Costs, counted, filled_up, rank_filled_up, tabulated
from laconic.search.space import FACTORED, HEADS, KEEPS, Allocation, Group, LayerCost, Space


def space(*layers: LayerCost, groups: dict[str, int] | None = None) -> Space:
    sizes = {"a": 8, "b": 16} if groups is None else groups
    return Space({name: Group(units) for name, units in sizes.items()}, layers, True, ("f32",), True, 100)


CHAIN = (
    LayerCost("a", "conv", macs=100.0, params=10.0, gives="a", reads={}),
    LayerCost("b", "conv", macs=400.0, params=40.0, gives="b", reads={"a": 1.0}, factors="LowRank"),
    LayerCost("c", "linear", macs=20.0, params=20.0, gives=None, reads={"b": 1.0}),
)
HALF, QUARTER = 1 / 2, 1 / 4


def cost(minimize: Any, forms: dict[str, float] | None = None, **keeps: float) -> float:
    return counted(space(*CHAIN), minimize).of(Allocation(keeps, forms or {}))


def test_untouched_costs_one() -> None:
    assert cost("latency") == 1.0
    assert cost("size", a=1.0, b=1.0) == 1.0


def test_macs_by_hand() -> None:
    # a at a half: layer a gives half of 100, layer b reads half: 200 of 400; c is as it was
    assert cost("macs", a=HALF) == pytest.approx((50 + 200 + 20) / 520)
    # both: b gives a quarter of what it reads of a half, c reads a quarter
    assert cost("macs", a=HALF, b=QUARTER) == pytest.approx((50 + 50 + 5) / 520)
    # and b as a product of a third of its MACs
    assert cost("macs", {"b": 2 / 3}, a=HALF) == pytest.approx((50 + 200 / 3 + 20) / 520)


def test_size_counts_weights_alone() -> None:
    assert cost("size", a=HALF) == pytest.approx((5 + 20 + 20) / 70)


def test_latency_counts_both() -> None:
    before = (100 + 8 * 10) + (400 + 8 * 40) + (20 + 8 * 20)
    after = (100 + 8 * 10) + 0.5 * (400 + 8 * 40) + 0.5 * (20 + 8 * 20)
    assert cost("latency", b=HALF) == pytest.approx(after / before)


def test_a_network_without_costs_is_not_divided_by_nothing() -> None:
    assert counted(space(groups={}), "latency").of(Allocation()) == 0.0


# --------------------------------------------------------------------------------------------------------------- tables

MS = {
    1.0: {"a": 4.0, "b": 8.0, "c": 1.0, "add": 2.0},
    0.5: {"a": 3.0, "b": 4.0, "c": 1.1, "add": 1.0},
    0.25: {"a": 2.5, "b": 2.0, "c": 0.5, "add": 0.5},
}


def table(**products: Any) -> Costs:
    found = tabulated(space(*CHAIN), MS, products.get("products"))
    assert found is not None
    return found


def test_at_what_was_measured_a_table_says_what_was_measured() -> None:
    assert table().whole == pytest.approx(15.0)
    for keep in (0.5, 0.25):
        both = dict.fromkeys("ab", keep)
        wanted = sum(MS[keep].values()) + (1.0 - 1.1 if keep == 0.5 else 0.0)  # less work never takes longer: noise
        rest = 2.0 - 1.5 * (1 - keep) / 0.75  # what belongs to no layer falls evenly
        assert table().of(Allocation(both)) * 15 == pytest.approx(wanted - MS[keep]["add"] + rest)


def test_between_it_is_interpolated_over_the_share_of_the_work() -> None:
    # a alone at a half (3 ms): b's work is a half, which lies between a quarter (both at a half) and all of it
    b = 4.0 + (0.5 - 0.25) / 0.75 * 4.0
    rest = 2.0 - 1.5 * (8 * 10 / (8 * 10 + 16 * 10)) * 0.5 / 0.75
    assert table().of(Allocation({"a": HALF})) * 15 == pytest.approx(3.0 + b + 1.0 + rest)


def test_a_layer_of_several_parts_and_one_that_was_written_as_a_product() -> None:
    costs = table(products={0.5: {"a": 4.0, "b.vertical": 2.0, "b.horizontal": 4.0, "c": 1.0, "add": 2.0}})
    assert costs.products["b"] == {0.0: 1.0, 0.5: 0.75}
    assert costs.of(Allocation(forms={"b": 1 / 2})) * 15 == pytest.approx(13.0)


def test_a_table_that_tells_of_other_things_is_of_no_use() -> None:
    assert tabulated(space(*CHAIN), {1.0: {"a": 1.0, "Subgraph": 9.0}}) is None


def test_channels_that_kernels_fill_up_take_as_long_as_the_next_multiple() -> None:
    groups = {"a": 64, "b": 40}
    ms = {keep: {name: keep * time for name, time in MS[1.0].items()} for keep in (1.0, 0.5, 0.25)}
    costs = tabulated(space(*CHAIN, groups=groups), ms, alignment=16)
    assert costs is not None

    def took(**keeps: float) -> float:
        return costs.of(Allocation(keeps)) * costs.whole

    assert took(a=40 / 64) == took(a=48 / 64) > took(a=32 / 64)
    assert took(b=33 / 40) == took(b=1.0)  # 40 are filled up to 48 themselves
    # two of b's three blocks stay. The table's half of b (20 channels) was two blocks too, so that with half of a, a
    # third of b's work took 4 ms, and c with two blocks 0.5; the rest falls by b's part of all values
    rest = 2.0 - 1.5 * (40 * 10 / (64 * 10 + 40 * 10)) * (1 / 3) / 0.75
    assert took(b=32 / 40) == pytest.approx(4.0 + (4.0 + (2 / 3 - 1 / 3) / (1 - 1 / 3) * 4.0) + 0.5 + rest)


def test_terms_fill_up_too() -> None:
    made = space(*CHAIN, groups={"a": 64, "b": 40})
    ms = {keep: {name: keep * time for name, time in MS[1.0].items()} for keep in (1.0, 0.5)}
    costs = tabulated(made, ms, alignment=16)
    assert costs is not None
    for a, b in itertools.product(range(0, len(KEEPS), 3), repeat=2):
        terms = costs.terms(["a", "b"], [])
        at = {(GROUP, "a"): a, (GROUP, "b"): b}
        found = sum(float(term.cost[tuple(at[item] for item in term.items)]) - term.cost.flat[0] for term in terms)
        assert found == pytest.approx(costs.of(Allocation({"a": KEEPS[a], "b": KEEPS[b]})) - 1, abs=1e-9)


def test_a_rank_that_kernels_fill_up_takes_as_long_as_the_next_multiple() -> None:
    layer = LayerCost("b", "conv", 1.0, 1.0, None, {}, "SpatiallySeparable", rank=48.0)
    forms = [rank_filled_up(layer, form, 16) for form in FACTORED]  # ranks 48, 32, 24, 16, 12 and 8
    assert forms == pytest.approx([0.0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert [rank_filled_up(layer, form, 1) for form in FACTORED] == list(FACTORED)
    assert rank_filled_up(replace(layer, rank=8.0), 0.5, 16) == 0.0  # four that take as long as the layer itself


def test_tables_of_products_are_read_where_ranks_fill_up() -> None:
    layers = (CHAIN[0], replace(CHAIN[1], rank=48.0), CHAIN[2])
    products = {0.5: {"a": 4.0, "b": 6.0, "c": 1.0, "add": 2.0}, 0.75: {"a": 4.0, "b": 3.0, "c": 1.0, "add": 2.0}}
    costs = tabulated(space(*layers, groups={}), {1.0: MS[1.0]}, products, alignment=16)
    assert costs is not None
    took = [costs.of(Allocation(forms={"b": form})) * 15 - 7.0 for form in FACTORED]
    assert took == pytest.approx([8.0, 6.0, 6.0, 3.0, 3.0, 3.0])
    (term,) = costs.terms([], ["b"])
    assert 15 * term.cost == pytest.approx(took)


def test_heads_are_not_filled_up() -> None:
    assert filled_up(Group(4, HEADS), 0.25, 16) == 0.25
    assert filled_up(Group(64), 0.25, 1) == 0.25
    assert filled_up(Group(64), 1 / 64, 16) == 0.25


# ---------------------------------------------------------------------------------------------------------------- terms

JOINED = (
    *CHAIN[:2],
    LayerCost("d", "conv", macs=300.0, params=30.0, gives="b", reads={"a": 0.25, "b": 0.5}),
    LayerCost("c", "linear", macs=20.0, params=20.0, gives=None, reads={"b": 1.0}),
)


@pytest.mark.parametrize("layers", [CHAIN, JOINED])
@pytest.mark.parametrize("timed", [False, True])
def test_terms_add_up_to_the_cost(layers: tuple[LayerCost, ...], timed: bool) -> None:
    made = space(*layers)
    costs = counted(made, "latency")
    if timed and layers is CHAIN:  # a layer that reads two groups is told exactly only where costs are proportional
        costs = table()
    terms = costs.terms(["a", "b"], ["b"])
    some = range(0, len(KEEPS), 4), range(0, len(KEEPS), 3), range(len(FACTORED))
    whole = None
    for a, b, form in itertools.product(*some):
        at = {(GROUP, "a"): a, (GROUP, "b"): b, (FORM, "b"): form}
        found = sum(float(term.cost[tuple(at[item] for item in term.items)]) for term in terms)
        whole = found if whole is None else whole
        assert found - whole == pytest.approx(
            costs.of(Allocation({"a": KEEPS[a], "b": KEEPS[b]}, {"b": FACTORED[form]})) - 1, abs=1e-9
        )


def test_what_nobody_chooses_is_in_no_term() -> None:
    terms = counted(space(*CHAIN), "macs").terms(["a"], [])
    assert {item for term in terms for item in term.items} == {(GROUP, "a")}
    assert np.isclose(sum(term.cost.flat[KEEPS.index(HALF)] - term.cost.flat[0] for term in terms), -250 / 520)
