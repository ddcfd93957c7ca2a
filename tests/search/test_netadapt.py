"""NetAdapt: each cut saves what is asked, where it loses least, and the probes decide."""

from __future__ import annotations

import itertools

from laconic.search.allocate import Damage
from laconic.search.costs import counted, tabulated
from laconic.search.netadapt import netadapt, spaced
from laconic.search.space import FACTORED, KEEPS, Allocation, Group, LayerCost, Space


def space(*names: str, macs: float = 100.0) -> Space:
    layers = [LayerCost(n, "conv", macs, 10.0, n, {}, "LowRank") for n in names]
    return Space(dict.fromkeys(names, Group(16)), layers, True, ("f32",), True, 100)


def test_every_cut_saves_what_is_asked_and_not_a_notch_more() -> None:
    made = space("a", "b")
    costs, damage = counted(made, "macs"), Damage({"a": {0.5: 0.2}, "b": {0.5: 0.1}}, {"a": {0.5: 0.3}})
    path = [Allocation(), *netadapt(Allocation(), costs, damage, damage.of, 0.05)]
    assert len(path) > 5
    for before, after in itertools.pairwise(path):
        changed = [g for g in "ab" if before.keeps.get(g, 1) != after.keeps.get(g, 1)]
        changed_forms = [g for g in "a" if before.forms.get(g, 0) != after.forms.get(g, 0)]
        assert len(changed) + len(changed_forms) == 1
        assert costs.of(after) <= costs.of(before) * 0.95 + 1e-12
        if changed:
            less = KEEPS[KEEPS.index(after.keeps[changed[0]]) - 1]
            less = Allocation({**after.keeps, changed[0]: less}, after.forms)
            assert costs.of(less) > costs.of(before) * 0.95
    end, most = path[-1], {"a": FACTORED[-1]}
    deepest = [Allocation({**end.keeps, g: KEEPS[-1]}, end.forms) for g in "ab"] + [Allocation(end.keeps, most)]
    assert all(costs.of(cut) > costs.of(end) * 0.95 for cut in deepest)


def test_the_probe_of_the_whole_decides_against_what_the_damages_alone_say() -> None:
    damage = Damage({"a": {0.5: 0.1}, "b": {0.5: 0.3}})
    costs = counted(space("a", "b"), "macs")
    assert next(netadapt(Allocation(), costs, damage, damage.of, 0.05)).keeps == {"a": KEEPS[1]}
    turned = next(netadapt(Allocation(), costs, damage, lambda cut: -damage.of(cut), 0.05))
    assert turned.keeps == {"b": KEEPS[1]}


def test_a_cut_is_judged_by_what_it_loses_for_what_it_saves() -> None:
    small = LayerCost("a", "conv", 20.0, 10.0, "a", {})
    made = Space(
        dict.fromkeys("ab", Group(16)), [small, LayerCost("b", "conv", 980.0, 10.0, "b", {})], True, ("f32",), True, 100
    )
    damage = Damage({"a": {0.5: 0.02}, "b": {0.5: 0.4}})  # a's least cut loses less than b's, and saves far less
    cut = next(netadapt(Allocation(), counted(made, "macs"), damage, damage.of, 0.01))
    assert damage.of(cut) > damage.of(Allocation({"a": 1 / 2}))
    assert cut.keeps == {"b": KEEPS[1]}


def test_few_are_probed_and_those_that_fail_are_not_taken() -> None:
    names = "abcdef"
    damage = Damage({n: {0.5: 0.1 * (i + 1)} for i, n in enumerate(names)})
    probed: list[Allocation] = []

    def probe(allocation: Allocation) -> float | None:
        probed.append(allocation)
        return None if "a" in allocation.keeps else damage.of(allocation)

    first = next(netadapt(Allocation(), counted(space(*names), "macs"), damage, probe, 0.01))
    assert [set(cut.keeps) for cut in probed] == [{"a"}, {"b"}, {"c"}]
    assert first.keeps == {"b": KEEPS[1]}


def test_it_goes_where_the_measured_time_is_and_not_where_the_macs_are() -> None:
    made = space("a", "b")
    slow = tabulated(made, {1.0: {"a": 9.0, "b": 1.0}, 0.5: {"a": 4.5, "b": 0.5}})
    assert slow is not None
    damage = Damage({"a": {0.5: 0.11}, "b": {0.5: 0.1}})
    by_macs = next(netadapt(Allocation(), counted(made, "macs"), damage, damage.of, 0.05))
    by_time = next(netadapt(Allocation(), slow, damage, damage.of, 0.05))
    assert by_macs.keeps == {"b": KEEPS[1]}
    assert by_time.keeps == {"a": KEEPS[1]}


def test_it_ends_where_nothing_more_can_be_cut() -> None:
    damage = Damage({"a": {0.5: 0.1}})
    costs = counted(space("a"), "macs")
    assert list(netadapt(Allocation({"a": KEEPS[-1]}), costs, damage, damage.of, 0.05)) == []
    assert list(netadapt(Allocation(), costs, damage, lambda cut: None, 0.05)) == []
    assert list(netadapt(Allocation(), counted(space(), "macs"), Damage({}), damage.of, 0.05)) == []
    assert costs.of(list(netadapt(Allocation(), costs, damage, damage.of, 0.5))[-1]) == KEEPS[-1]


def test_those_are_tried_that_save_enough_since_the_last() -> None:
    costs, damage = counted(space("a", "b"), "macs"), Damage({"a": {0.5: 0.2}, "b": {0.5: 0.1}})
    every = list(netadapt(Allocation(), costs, damage, damage.of))
    some = list(spaced(iter(every), costs, Allocation(), 0.2))
    assert 1 < len(some) < len(every)
    assert [cut for cut in every if cut in some] == some
    for before, after in itertools.pairwise([Allocation(), *some]):
        assert costs.of(after) <= 0.8 * costs.of(before)
        between = every[every.index(before) + 1 if before.keeps else 0 : every.index(after)]
        assert all(costs.of(cut) > 0.8 * costs.of(before) for cut in between)
    assert list(spaced(iter(every), costs, every[-1], 0.2)) == []
