"""How many bits each layer's weights get: the least damage within a size, a multiple-choice knapsack solved exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

Choices = Mapping[str, Mapping[int, float]]


def allocate_bits(damage: Choices, cost: Choices, limit: float) -> dict[str, int] | None:
    """The bits of each layer whose damages add up to the least, while their costs add up to ``limit`` at most; None
    where even the cheapest choices cost more.

    ``damage`` and ``cost`` hold the same choices, by layer and bits. Solved by SciPy's HiGHS to optimality.

    >>> damage = {"a": {8: 0.0, 4: 1.0}, "b": {8: 0.0, 4: 3.0}}
    >>> allocate_bits(damage, {"a": {8: 8, 4: 4}, "b": {8: 8, 4: 4}}, limit=12)
    {'a': 4, 'b': 8}
    """
    choices = [(layer, bits) for layer, of_layer in damage.items() for bits in of_layer]
    if not choices:
        return {}
    layers = list(damage)
    one_each = np.zeros((len(layers), len(choices)))
    for column, (layer, _) in enumerate(choices):
        one_each[layers.index(layer), column] = 1
    found = milp(
        np.array([damage[layer][bits] for layer, bits in choices]),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(np.array([[cost[layer][bits] for layer, bits in choices]]), -np.inf, limit),
        ],
    )
    if found.x is None:
        return None
    return {layer: bits for (layer, bits), taken in zip(choices, found.x, strict=True) if taken > 1 / 2}
