"""How many channels of each group stay, and which layers become products: the least damage within a cost.

The damages are measured, of each group and layer alone, and interpolated; that they add up is a model. The allocation
is solved exactly (:mod:`.knapsack`), channels and products in one problem: a layer between two groups costs by what is
left of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from laconic.search.costs import CHANNELS, FORM, Costs
from laconic.search.knapsack import least_damage
from laconic.search.space import FACTORED, KEEPS, Allocation

_FOR_NOTHING = 1e-6  # of the largest damage: what harms nothing is not removed for nothing


class Damage:
    """The damage of each group at each notch, and of each layer in each form, from probes of one of them alone at some
    ratios. ``groups`` and ``layers``: by name, ``{ratio: damage}``."""

    def __init__(
        self, groups: Mapping[str, Mapping[float, float]], layers: Mapping[str, Mapping[float, float]] | None = None
    ) -> None:
        self.groups = {name: _curve(known, [1 - keep for keep in KEEPS]) for name, known in groups.items()}
        self.layers = {name: _curve(known, FACTORED) for name, known in (layers or {}).items()}

    def of(self, allocation: Allocation) -> float:
        """The damages of all groups and layers, added up."""
        groups = (self.groups[name][notch] for name, notch in allocation.notches.items())
        return sum(groups) + sum(self.layers[name][form] for name, form in allocation.forms.items())


def _curve(known: Mapping[float, float], ratios: Sequence[float]) -> tuple[float, ...]:
    """Interpolated between probes, never falling; where nothing is left all is lost. A damage is a square, and its root
    is what rises about evenly with what is removed."""
    x = [0.0, *sorted(known), 1.0]
    y = np.maximum.accumulate([0.0, *(known[ratio] for ratio in x[1:-1]), max(1.0, *known.values())])
    return tuple(float(np.interp(ratio, x, np.sqrt(y))) ** 2 for ratio in ratios)


class Allocator:
    """Allocations of least damage; ``costs`` and ``damage`` are of the same network."""

    def __init__(self, costs: Costs, damage: Damage) -> None:
        self.damage = damage
        curves: dict[Any, tuple[float, ...]] = {(CHANNELS, name): curve for name, curve in damage.groups.items()}
        curves |= {(FORM, name): curve for name, curve in damage.layers.items()}
        little = _FOR_NOTHING * max((curve[-1] for curve in curves.values()), default=0.0)
        self._damages = {item: {i: d + i * little for i, d in enumerate(curve)} for item, curve in curves.items()}
        self._terms = costs.terms(damage.groups, damage.layers)
        self._changing = sum(float(term.cost.flat[0]) for term in self._terms)

    def within(self, cost: float) -> Allocation | None:
        """The allocation of least damage whose cost is at most ``cost`` of the original's; None where there is none."""
        found = least_damage(self._damages, {}, self._changing - (1 - cost), terms=self._terms)
        if found is None:
            return None
        return Allocation(
            {name: found[CHANNELS, name] for name in self.damage.groups if found[CHANNELS, name]},
            {name: found[FORM, name] for name in self.damage.layers if found[FORM, name]},
        )
