"""How many bits each layer's weights get: what :mod:`.knapsack` is told, and what Quantize is told of its answer.

The damages are measured, of each layer alone in each width with everything else in float (the sensitivities of Dong et
al. 2019, arXiv 1905.03696, there from second derivatives, here from the network itself); that they add up is a model,
so what the knapsack finds is a proposal: a trial measures it. The costs are bytes or milliseconds, whatever counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from laconic.core import Recipe, Step, Width

FLOAT = 32
"""The bits of a layer that is left in float."""


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
    """What :func:`.knapsack.least_damage` takes as ``cost`` and ``once`` where bytes count: ``params`` are those of
    each layer. A layer so small that it does not pay is stored in 8 bits whatever its codes."""
    cost = {
        name: {bits: min(w.bits * count / 8 + w.layer_bytes, count) for bits, w in widths.items()}
        for name, count in params.items()
    }
    return cost, {bits: float(width.once_bytes) for bits, width in widths.items()}
