"""How many bits each layer's weights get: the least damage within a cost, a multiple-choice knapsack solved exactly.

The damages are measured, of each layer alone in each width with everything else in float (the sensitivities of Dong et
al. 2019, arXiv 1905.03696, there from second derivatives, here from the network itself); that they add up is a model,
so what the knapsack finds is a proposal: a trial measures it. The costs are bytes or milliseconds, whatever counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from laconic.core import Recipe, Step, Width

Choices = Mapping[str, Mapping[int, float]]

FLOAT = 32
"""The bits of a layer that is left in float."""
_FINEST = 1e-9  # of the largest damage: what is smaller counts as this


def sensitivities(
    steps: Sequence[Step], layers: Iterable[str], widths: Iterable[int], probe: Callable[[Recipe], float | None]
) -> dict[str, dict[int, float]]:
    """The damage of each of the ``layers`` alone in each of the ``widths``; one that fails costs everything.

    ``steps``: the Quantize whose settings are meant, its bits apart, and what chooses its codes, if anything does.
    """
    (step, *behind), names, found = steps, list(layers), {}
    for name in names:
        alone = {b: with_bits(step, dict.fromkeys(names, FLOAT) | {name: b}) for b in widths}
        damages = {bits: probe(Recipe((changed, *behind))) for bits, changed in alone.items()}
        found[name] = {bits: 1.0 if damage is None else damage for bits, damage in damages.items()}
    return found


def with_bits(step: Step, bits: Mapping[str, int]) -> Step:
    """``step``, a Quantize, with each layer's bits: the most frequent ones are everybody's, the others are said."""
    usual = Counter(b for b in bits.values() if b != FLOAT).most_common(1)
    settings: dict[str, Any] = {
        "bits": usual[0][0] if usual else 8,
        "layers": {name: b for name, b in bits.items() if b not in (FLOAT, usual[0][0])} if usual else {},
        "exclude": tuple(name for name, b in bits.items() if b == FLOAT),
    }
    return replace(step, **settings)  # type: ignore[type-var]


def sizes(
    params: Mapping[str, float], widths: Mapping[int, Width]
) -> tuple[dict[str, dict[int, float]], dict[int, float]]:
    """What :func:`allocate_bits` takes as ``cost`` and ``once`` where bytes count: ``params`` are those of each layer.
    A layer so small that it does not pay is stored in 8 bits whatever its codes."""
    cost = {
        name: {bits: min(w.bits * count / 8 + w.layer_bytes, count) for bits, w in widths.items()}
        for name, count in params.items()
    }
    return cost, {bits: float(width.once_bytes) for bits, width in widths.items()}


def allocate_bits(
    damage: Choices, cost: Choices, limit: float, once: Mapping[int, float] | None = None
) -> dict[str, int] | None:
    """The bits of each layer whose damages add up to the least, while their costs add up to ``limit`` at most; None
    where even the cheapest choices cost more.

    ``damage`` and ``cost`` hold the same choices, by layer and bits; ``once`` what bits cost where any layer has them.
    Solved by SciPy's HiGHS to optimality.

    >>> damage = {"a": {8: 0.0, 4: 1.0}, "b": {8: 0.0, 4: 3.0}}
    >>> allocate_bits(damage, {"a": {8: 8, 4: 4}, "b": {8: 8, 4: 4}}, limit=12)
    {'a': 4, 'b': 8}
    """
    choices = [(layer, bits) for layer, of_layer in damage.items() for bits in of_layer]
    if not choices:
        return {}
    layers, widths = list(damage), sorted({bits for _, bits in choices})
    n, m = len(choices), len(widths)  # variables: whether a choice is taken, whether a width occurs
    one_each, occurs = np.zeros((len(layers), n + m)), np.zeros((n, n + m))
    for column, (layer, bits) in enumerate(choices):
        one_each[layers.index(layer), column] = 1
        occurs[column, [column, n + widths.index(bits)]] = 1, -1
    damages = _scaled(np.array([damage[layer][bits] for layer, bits in choices]))
    costs = [cost[layer][bits] for layer, bits in choices] + [(once or {}).get(bits, 0.0) for bits in widths]
    found = milp(
        np.concatenate([damages, np.zeros(m)]),
        integrality=np.ones(n + m),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(occurs, -np.inf, 0),
            LinearConstraint(np.array([costs]), -np.inf, limit),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return {layer: bits for (layer, bits), taken in zip(choices, found.x[:n], strict=True) if taken > 1 / 2}


def _scaled(damages: Any) -> Any:
    """In units of the smallest that counts: HiGHS takes sums within 1e-6 of each other for equal."""
    positive = damages[damages > 0]
    return damages / max(positive.min(), positive.max() * _FINEST) if len(positive) else damages
