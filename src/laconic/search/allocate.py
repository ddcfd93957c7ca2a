"""How much of each group to remove so that the whole reaches a cost: where it hurts least per cost saved.

Greedy on marginal ratios: one group goes one notch further at a time, the one that saves most cost per damage. The
damage of a group at a notch is interpolated from probes of that group alone; damages are taken to add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from laconic.search.space import KEEPS, Space


class Damage:
    """The damage of each group at each notch, from probes of ``{group: {ratio: damage}}``."""

    def __init__(self, probes: Mapping[str, Mapping[float, float]]) -> None:
        self._curves = {group: self._curve(values) for group, values in probes.items()}

    @staticmethod
    def _curve(values: Mapping[float, float]) -> tuple[float, ...]:
        ratios = [0.0, *sorted(values), 1.0]
        damages = [0.0, *(values[r] for r in ratios[1:-1]), max(1.0, *values.values())]  # nothing left: all is lost
        known = np.maximum.accumulate(damages)
        return tuple(float(np.interp(1 - keep, ratios, known)) for keep in KEEPS)

    def at(self, group: str, notch: int) -> float:
        return self._curves[group][notch]


def allocate(
    space: Space,
    damage: Damage,
    target: float,
    minimize: Literal["latency", "size", "macs"],
) -> dict[str, int]:
    """A notch per group whose cost is at most ``target`` of the original's, as near as the notches allow."""
    notches = dict.fromkeys(space.groups, 0)
    cost = space.cost(notches, minimize)
    while cost > target:
        best: tuple[float, str, float] | None = None
        for group in space.groups:
            if notches[group] + 1 == len(KEEPS):
                continue
            next_cost = space.cost(notches | {group: notches[group] + 1}, minimize)
            hurt = damage.at(group, notches[group] + 1) - damage.at(group, notches[group])
            gain = (cost - next_cost) / max(hurt, 1e-12)
            if next_cost < cost and (best is None or gain > best[0]):
                best = (gain, group, next_cost)
        if best is None:
            break
        notches[best[1]] += 1
        cost = best[2]
    return notches
