"""Allocation: it reaches the cost that is asked with the least damage that there is, and takes from where it hurts
least."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.search.allocate import Allocator, Damage
from laconic.search.costs import counted
from laconic.search.space import KEEPS, Allocation, Group, LayerCost, Space

HALF = 1 / 2


def even(*groups: str) -> Space:
    """Groups whose layers cost the same and read nothing of each other."""
    layers = [LayerCost(g, "conv", 100.0, 10.0, g, {}) for g in groups]
    return Space(dict.fromkeys(groups, Group(16)), layers, True, ("f32",), True, 100)


def allocated(space: Space, damage: Damage, target: float, minimize: Any = "macs") -> Allocation | None:
    return Allocator(counted(space, minimize), damage).within(target)


def test_the_root_of_the_damage_is_interpolated_between_probes() -> None:
    curve = Damage({"a": {0.25: 0.01, 0.5: 0.09, 0.75: 0.36}}).groups["a"]
    assert curve(0) == 0.0
    assert curve(1 / 4) == pytest.approx(0.01)
    assert curve(1 / 2) == pytest.approx(0.09)
    assert curve(3 / 8) == pytest.approx(0.2**2)
    assert curve(7 / 8) == pytest.approx(0.8**2)  # half way from 0.6 to everything


def test_damage_never_falls_where_more_is_removed() -> None:
    damage = Damage({"a": {0.25: 0.5, 0.5: 0.1, 0.75: 2.0}}, {"b": {0.5: 0.3, 0.75: 0.1}})
    for curve in (damage.groups["a"], damage.layers["b"]):
        hurts = [curve(ratio / 10) for ratio in range(11)]
        assert hurts == sorted(hurts)
    assert damage.groups["a"](1) > 1.0
    assert damage.of(Allocation({"a": HALF}, {"b": 1 / 2})) == pytest.approx(0.5 + 0.3)


def test_nothing_is_removed_where_nothing_need_be() -> None:
    assert allocated(even("a", "b"), Damage({"a": {0.25: 0.0}, "b": {0.25: 0.1}}), 1.0) == Allocation()


def test_harmless_groups_go_first() -> None:
    damage = Damage({"a": {0.25: 0.8, 0.5: 0.9}, "b": {0.25: 0.0, 0.5: 0.001}})
    assert allocated(even("a", "b"), damage, 0.75) == Allocation({"b": HALF})


def test_channels_and_products_are_chosen_together() -> None:
    layers = [LayerCost(n, "conv", 100.0, 10.0, n, {}, "LowRank") for n in "ab"]
    space = Space(dict.fromkeys("ab", Group(16)), layers, True, ("f32",), True, 100)
    groups = {"a": {0.5: 0.9}, "b": {0.5: 0.001}}
    found = allocated(space, Damage(groups, {"a": {0.5: 0.002}, "b": {0.5: 0.5}}), 0.5)
    assert found == Allocation({"b": HALF}, {"a": 1 / 2})


def test_what_saves_more_for_the_same_damage_goes_first() -> None:
    layers = [LayerCost("a", "conv", 100.0, 10.0, "a", {}), LayerCost("b", "conv", 900.0, 90.0, "b", {})]
    space = Space(dict.fromkeys("ab", Group(8)), layers, True, ("f32",), True, 100)
    assert allocated(space, Damage({group: {0.25: 0.1} for group in "ab"}), 0.9, "latency") == Allocation(
        {"b": KEEPS[1]}
    )


def test_what_cannot_be_reached_is_nothing() -> None:
    damage = Damage({"a": {0.25: 0.1}, "b": {0.25: 0.1}})
    assert allocated(even("a", "b"), damage, 0.01) is None
    assert allocated(even("a", "b"), damage, KEEPS[-1]) == Allocation(dict.fromkeys("ab", KEEPS[-1]))


def test_groups_without_a_damage_stay_whole() -> None:
    assert allocated(even("a", "b"), Damage({"a": {0.25: 0.1}}), 0.75) == Allocation({"a": HALF})


def test_without_groups_there_is_nothing_to_give() -> None:
    assert allocated(even(), Damage({}), 1.0) == Allocation()


damages = st.dictionaries(
    st.sampled_from("abc"),
    st.tuples(*[st.floats(1e-4, 1)] * 2).map(lambda d: dict(zip((0.25, 0.75), sorted(d), strict=True))),
    min_size=1,
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(damages, st.floats(0.1, 1.0), st.sampled_from(["latency", "size", "macs"]))
def test_no_allocation_within_the_cost_hurts_less(probes: dict[str, Any], target: float, minimize: Any) -> None:
    groups = sorted(probes)
    layers = [
        LayerCost(g, "conv", 50.0 * (i + 1), 7.0, g, {groups[i - 1]: 1.0} if i else {}) for i, g in enumerate(groups)
    ]
    space = Space(dict.fromkeys(groups, Group(16)), layers, True, ("f32",), True, 100)
    damage, costs = Damage(probes), counted(space, minimize)
    found = Allocator(costs, damage).within(target)
    every = (Allocation(dict(zip(groups, n, strict=True))) for n in itertools.product(KEEPS, repeat=len(groups)))
    within = [damage.of(allocation) for allocation in every if costs.of(allocation) <= target]
    if found is None:
        assert not within
    else:
        assert costs.of(found) <= target + 1e-5
        assert damage.of(found) <= min(within) * 1.002 + 1e-5
