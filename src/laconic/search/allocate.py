"""How much of each group stays, and which layers become products: the least damage within a cost.

The damages are measured, of each group and layer alone, and interpolated; that they add up is a model. The allocation
is solved exactly (:mod:`.knapsack`), everything in one problem: a layer between two groups costs by what is left of
both, and nothing where the block around it is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from laconic.search.costs import FORM, GROUP, Costs
from laconic.search.knapsack import least_damage
from laconic.search.space import FACTORED, Allocation

_FOR_NOTHING = 1e-6  # of the largest damage: what harms nothing is not removed for nothing


class Damage:
    """The damage of each group and each layer as a product, at any ratio, from probes of one of them alone at some.
    ``groups`` and ``layers``: by name, ``{ratio: damage}``, the ratio being what goes."""

    def __init__(
        self, groups: Mapping[str, Mapping[float, float]], layers: Mapping[str, Mapping[float, float]] | None = None
    ) -> None:
        self.groups = {name: Curve(known) for name, known in groups.items()}
        self.layers = {name: Curve(known) for name, known in (layers or {}).items()}

    def of(self, allocation: Allocation) -> float:
        """The damages of all groups and layers, added up."""
        groups = (self.groups[name](1 - keep) for name, keep in allocation.keeps.items())
        return sum(groups) + sum(self.layers[name](form) for name, form in allocation.forms.items())


class Curve:
    """Interpolated between probes, never falling; where nothing is left all is lost, unless a probe says what is. A
    damage is a square, and its root is what rises about evenly with what is removed."""

    def __init__(self, known: Mapping[float, float]) -> None:
        ends = {0.0: 0.0, 1.0: max(1.0, *known.values())} | dict(known)
        self._x = sorted(ends)
        self._root = np.sqrt(np.maximum.accumulate([ends[x] for x in self._x]))

    def __call__(self, ratio: float) -> float:
        return float(np.interp(ratio, self._x, self._root)) ** 2


class Allocator:
    """Allocations of least damage; ``costs`` and ``damage`` are of the same network."""

    def __init__(self, costs: Costs, damage: Damage) -> None:
        self._choices: dict[Any, tuple[float, ...]] = {}
        hurts: dict[Any, list[float]] = {}
        for name, curve in damage.groups.items():
            self._choices[GROUP, name] = costs.space.groups[name].keeps
            hurts[GROUP, name] = [curve(1 - keep) for keep in self._choices[GROUP, name]]
        for name, curve in damage.layers.items():
            self._choices[FORM, name] = FACTORED
            hurts[FORM, name] = [curve(ratio) for ratio in FACTORED]
        little = _FOR_NOTHING * max((of_item[-1] for of_item in hurts.values()), default=0.0)
        self._damages = {item: {i: d + i * little for i, d in enumerate(of_item)} for item, of_item in hurts.items()}
        self._terms = costs.terms(damage.groups, damage.layers)
        self._changing = sum(float(term.cost.flat[0]) for term in self._terms)

    def within(self, cost: float) -> Allocation | None:
        """The allocation of least damage whose cost is at most ``cost`` of the original's; None where there is none."""
        found = least_damage(self._damages, {}, self._changing - (1 - cost), terms=self._terms)
        if found is None:
            return None
        chosen = {item: self._choices[item][i] for item, i in found.items() if i}
        return Allocation(
            {name: keep for (kind, name), keep in chosen.items() if kind == GROUP},
            {name: form for (kind, name), form in chosen.items() if kind == FORM},
        )
