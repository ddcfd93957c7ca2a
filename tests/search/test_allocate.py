"""Allocation: it reaches the cost that is asked, and takes from where it hurts least."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.search.allocate import Damage, allocate
from laconic.search.space import KEEPS, LayerCost, Space

LAST = len(KEEPS) - 1


def even(*groups: str) -> Space:
    """Groups whose layers cost the same and read nothing of each other."""
    layers = [LayerCost(g, "conv", 100.0, 10.0, g, {}) for g in groups]
    return Space(dict.fromkeys(groups, 16), layers, True, ("f32",), True, 100)


def test_damage_is_interpolated_between_probes() -> None:
    damage = Damage({"a": {0.25: 0.1, 0.5: 0.3, 0.75: 0.4}})
    assert damage.at("a", 0) == 0.0
    assert damage.at("a", KEEPS.index(3 / 4)) == pytest.approx(0.1)
    assert damage.at("a", KEEPS.index(1 / 2)) == pytest.approx(0.3)
    assert damage.at("a", KEEPS.index(5 / 8)) == pytest.approx(0.2)
    assert damage.at("a", KEEPS.index(1 / 8)) == pytest.approx(0.7)  # half way from 0.4 to everything


def test_damage_never_falls_where_more_is_removed() -> None:
    damage = Damage({"a": {0.25: 0.5, 0.5: 0.1, 0.75: 2.0}})
    found = [damage.at("a", notch) for notch in range(len(KEEPS))]
    assert found == sorted(found)
    assert found[-1] > 1.0


def test_nothing_is_removed_where_nothing_need_be() -> None:
    damage = Damage({"a": {0.25: 0.1}, "b": {0.25: 0.1}})
    assert allocate(even("a", "b"), damage, 1.0, "latency") == {"a": 0, "b": 0}


def test_harmless_groups_go_first() -> None:
    damage = Damage({"a": {0.25: 0.8, 0.5: 0.9}, "b": {0.25: 0.0, 0.5: 0.001}})
    found = allocate(even("a", "b"), damage, 0.75, "latency")
    assert found["a"] == 0
    assert found["b"] == KEEPS.index(1 / 2)


def test_equal_groups_are_treated_alike() -> None:
    probe = {0.25: 0.1, 0.5: 0.3, 0.75: 0.6}
    found = allocate(even("a", "b", "c"), Damage(dict.fromkeys("abc", probe)), 0.5, "macs")
    assert max(found.values()) - min(found.values()) <= 1


def test_what_saves_more_for_the_same_damage_goes_first() -> None:
    layers = [LayerCost("a", "conv", 100.0, 10.0, "a", {}), LayerCost("b", "conv", 900.0, 90.0, "b", {})]
    space = Space({"a": 8, "b": 8}, layers, True, ("f32",), True, 100)
    assert allocate(space, Damage({group: {0.25: 0.1} for group in "ab"}), 0.9, "latency") == {"a": 0, "b": 1}


def test_an_impossible_target_gives_all_that_there_is() -> None:
    damage = Damage({"a": {0.25: 0.1}, "b": {0.25: 0.1}})
    assert allocate(even("a", "b"), damage, 0.0, "latency") == {"a": LAST, "b": LAST}


def test_without_groups_there_is_nothing_to_give() -> None:
    assert allocate(even(), Damage({}), 0.5, "latency") == {}


damages = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(*[st.floats(0, 2)] * 3).map(lambda d: dict(zip((0.25, 0.5, 0.75), d, strict=True))),
    min_size=1,
)


@settings(max_examples=60, deadline=None)
@given(damages, st.floats(0.05, 1.0), st.sampled_from(["latency", "size", "macs"]))
def test_the_target_is_reached_as_nearly_as_notches_allow(probes: dict, target: float, minimize: str) -> None:
    groups = sorted(probes)
    layers = [
        LayerCost(g, "conv", 50.0 * (i + 1), 7.0, g, {groups[i - 1]: 1.0} if i else {}) for i, g in enumerate(groups)
    ]
    space = Space(dict.fromkeys(groups, 16), layers, True, ("f32",), True, 100)
    found = allocate(space, Damage(probes), target, minimize)
    assert set(found) == set(groups)
    assert all(0 <= notch <= LAST for notch in found.values())
    cost = space.cost(found, minimize)
    assert cost <= target or all(notch == LAST for notch in found.values())
    before = [found | {g: notch - 1} for g, notch in found.items() if notch]  # one notch less misses it, for some group
    assert not before or any(space.cost(less, minimize) > target for less in before)
    assert found == allocate(space, Damage(probes), target, minimize)
