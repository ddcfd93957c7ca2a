"""How many bits each layer's weights get: what :mod:`.knapsack` is told, and what Quantize is told of its answer.

The damages are measured, of each layer alone in each width with everything else as it is (the sensitivities of Dong et
al. 2019, arXiv 1905.03696, there from second derivatives, here from the network itself); that they add up is a model,
so what the knapsack finds is a proposal: a trial measures it. For narrow widths (:func:`exchanged`) each width is
quantized once, and of the widest network, in which everything else is nearly exact, one layer after the other is
exchanged for its narrow form, activations in float: among narrow layers, which correct each other's errors, one that is
suddenly better looked worse. The costs are bytes or milliseconds, whatever counts.
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
    steps: Sequence[Step],
    layers: Iterable[str],
    widths: Iterable[int],
    probe: Callable[[Recipe], float | None],
) -> dict[str, dict[int, float]]:
    """The damage of each of the ``layers`` in each of the ``widths``, with all others in float; one that fails costs
    everything.

    ``steps``: the Quantize whose settings are meant, its bits apart, and what chooses its codes, if anything does.
    """
    (step, *behind), names = steps, list(layers)
    others = dict.fromkeys((*getattr(step, "exclude", ()), *names), FLOAT)

    def damage(bits: Mapping[str, int]) -> float:
        found = probe(Recipe((with_bits(step, bits), *behind)))
        return 1.0 if found is None else found

    return {name: {b: damage(others | {name: b}) for b in widths} for name in names}


def exchanged(
    steps: Sequence[Step],
    layers: Iterable[str],
    widths: Iterable[int],
    exchange: Callable[[Mapping[int, Recipe], int], Mapping[str, Mapping[int, float]]],
) -> dict[str, dict[int, float]]:
    """The damage of each of the ``layers`` in each of the ``widths``, with all others in the widest, in which it has
    none; a width that fails costs everything. ``steps`` as in :func:`sensitivities`; ``exchange`` is that of
    :class:`.tools.Tools`."""
    (step, *behind), names = steps, list(layers)
    floats = dict.fromkeys(getattr(step, "exclude", ()), FLOAT)
    recipes = {b: Recipe((with_bits(step, floats | dict.fromkeys(names, b)), *behind)) for b in widths}
    measured = exchange(recipes, max(recipes))
    return {name: {b: measured.get(name, {}).get(b, 1.0) for b in recipes} for name in names}


def near(widths: Iterable[int], width: int) -> list[int]:
    """``width`` and those of ``widths`` that a layer may rather have where all have it: up to two narrower ones, the
    next wider and the widest."""
    ordered = sorted(widths)
    narrower, wider = [w for w in ordered if w < width], [w for w in ordered if w > width]
    return sorted({*narrower[-2:], width, *wider[:1], *wider[-1:]})


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
