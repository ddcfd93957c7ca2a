"""AMC: the agent's gradients, its bounds, and whether it learns more than chance finds."""

from __future__ import annotations

import numpy as np
import pytest

from laconic.search.allocate import Allocator, Damage
from laconic.search.amc import Agent, Net, amc
from laconic.search.costs import counted
from laconic.search.space import Allocation, Group, LayerCost, Space

HARMS = {"a": 2.0, "b": 0.01, "c": 0.5, "d": 0.02, "e": 1.0, "f": 0.05}


def space() -> Space:
    layers = [LayerCost(g, "conv", 100.0, 10.0, g, {}) for g in HARMS]
    return Space(dict.fromkeys(HARMS, Group(32)), layers, True, ("f32",), True, 100)


DAMAGE = Damage({g: {0.25: harm / 16, 0.5: harm / 4, 0.75: harm * 9 / 16} for g, harm in HARMS.items()})


def test_gradients_are_those_of_differences() -> None:
    random = np.random.default_rng(0)
    net, x = Net(3, random), random.normal(size=(5, 3))
    net._weights[-1] += random.normal(size=net._weights[-1].shape)
    net.forward(x)
    weights, inputs = net.backward(np.ones(5))
    for weight, gradient in zip(net._weights, weights, strict=True):
        weight[1, 0] += 1e-6
        up = net.forward(x).sum()
        weight[1, 0] -= 2e-6
        down = net.forward(x).sum()
        weight[1, 0] += 1e-6
        assert gradient[1, 0] == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-7)
    moved = x.copy()
    moved[2, 1] += 1e-6
    assert inputs[2, 1] == pytest.approx((net.forward(moved).sum() - net.forward(x).sum()) / 1e-6, rel=1e-3, abs=1e-6)


def test_the_actor_climbs_to_the_action_that_is_rewarded() -> None:
    random = np.random.default_rng(0)
    agent, state = Agent(random), np.zeros(7)
    for _ in range(200):
        action = float(random.uniform())
        agent.remember([(state, action)], -((action - 0.8) ** 2))
    for _ in range(1500):
        agent.learn()
    assert agent.action(state) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_every_walk_costs_what_is_allowed(target: float) -> None:
    costs = counted(space(), "macs")
    seen: list[Allocation] = []

    def probe(allocation: Allocation) -> float:
        seen.append(allocation)
        return DAMAGE.of(allocation)

    found = amc(costs, probe, target, walks=30, seed=0)
    assert all(costs.of(allocation) <= target for allocation in seen)
    assert found.damage == min(found.damages) == DAMAGE.of(found.allocation)
    assert len(seen) == 30


def test_it_learns_more_than_chance_finds_and_no_more_than_there_is() -> None:
    costs = counted(space(), "macs")
    found = amc(costs, DAMAGE.of, 0.5, walks=150, seed=1)
    assert np.mean(found.damages[-20:]) < 0.5 * np.mean(found.damages[:20])
    best = Allocator(costs, DAMAGE).within(0.5)
    assert best is not None
    assert DAMAGE.of(best) <= found.damage * 1.001 + 1e-9


def test_the_same_seed_walks_the_same_way_and_a_probe_that_fails_costs_everything() -> None:
    costs = counted(space(), "macs")
    runs = [amc(costs, DAMAGE.of, 0.5, walks=25, seed=3).damages for _ in range(2)]
    assert runs[0] == runs[1]
    assert amc(costs, lambda allocation: None, 0.5, walks=2, seed=0).damages == (1.0, 1.0)
