"""What a network costs by what is left of it: counted, or read from tables that were measured.

A layer's cost is a curve over the share of its work that is left (its output channels' times its input channels'), and,
where it is written as a product, what the product costs over the whole layer. Tables come from the whole network at a
few widths on the real runtime, layer by layer in its own profile (the latency tables of NetAdapt, Yang et al. 2018,
arXiv 1804.03230, section 3.3, there from layers run alone), and are interpolated; in steps, where kernels compute
channels in blocks. That layers' costs add up is a model: what counts afterwards is measured on the whole deployed file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from laconic.search.knapsack import Term
from laconic.search.space import CHANNELS, FACTORED, Allocation, Group, LayerCost, Space

Curve = Mapping[float, float]
Objective = Literal["latency", "size", "macs"]

GROUP, FORM = "group", "form"
"""What is chosen of: (GROUP, name) and (FORM, layer)."""

_MACS_PER_PARAM = 8.0
"""At batch 1 a weight is read once per sample: so many multiplications cost as much as one byte-sized weight."""
_LEAST_TOLD = 0.5  # of the whole time that a runtime tells, what must be in the layers for its table to be of use
_NONE = 1e-12
_ROUNDED = 1e-6  # (1 - 5 / 6) * 48 is a little less than 8


@dataclass(frozen=True)
class Costs:
    """``curves``: by layer, its cost by the share of its work that is left; ``products``: by layer and ratio, what it
    costs as a product over the whole layer; ``rest``: what belongs to no layer, by the share of channels that stays.
    ``alignment``: kernels fill channels up to a multiple of it, and take as long for these as for those.
    """

    space: Space
    curves: Mapping[str, Curve]
    products: Mapping[str, Curve]
    rest: Curve
    alignment: int = 1

    def of(self, allocation: Allocation) -> float:
        """The network's cost over the original's."""
        return self._sum(allocation) / max(self.whole, _NONE)

    @property
    def whole(self) -> float:
        """The original's cost, in the curves' unit."""
        return self._sum(Allocation())

    def _sum(self, allocation: Allocation) -> float:
        keeps = {
            group: filled_up(self.space.groups[group], keep, self.alignment) for group, keep in allocation.keeps.items()
        }
        layers = (
            self._layer(layer, layer.share(keeps), allocation.forms.get(layer.name, 0.0)) for layer in self.space.layers
        )
        stays = 1 - sum(weight * (1 - keeps.get(group, 1.0)) for group, weight in self._weights().items())
        return sum(layers) + self._rest(stays)

    def _layer(self, layer: LayerCost, share: float, form: float) -> float:
        product = _at(self.products.get(layer.name, {}), rank_filled_up(layer, form, self.alignment), 1.0)
        return float(_at(self.curves.get(layer.name, {}), share, 0.0) * product)

    def _rest(self, stays: float) -> float:
        """Linear between the narrowest network known and the whole one, so that groups' parts of it add up."""
        whole, low = self.rest.get(1.0, 0.0), min(self.rest, default=1.0)
        return whole - (whole - self.rest[low]) * (1 - stays) / (1 - low) if low < 1 else whole

    def _weights(self) -> dict[str, float]:
        """Each group of channels' share of all their values: channels times the places at which its layers run."""
        values = dict.fromkeys(self.space.removed_by(CHANNELS), 0.0)
        for layer in self.space.layers:
            if layer.gives in values and layer.params:
                values[layer.gives] += self.space.groups[layer.gives].units * layer.macs / layer.params
        total = sum(values.values())
        return {group: value / total for group, value in values.items()} if total else values

    def terms(self, groups: Collection[str], layers: Collection[str]) -> list[Term]:
        """The cost, over the original's, as terms of what is chosen of these ``groups`` and these ``layers``' forms.

        A layer that reads several groups costs, by its share of each, what it would if it read that one alone: exact
        where its cost is proportional to its work.
        """
        found = []
        if any(self.rest.values()):
            for group, weight in self._weights().items():
                if group in groups:
                    rest = [weight * (self._rest(keep) - self._rest(1.0)) for keep in self._keeps(group)]
                    found.append(Term(((GROUP, group),), np.array(rest)))
        for layer in self.space.layers:
            reads = {group: share for group, share in layer.reads.items() if group in groups}
            around = [group for group in (layer.gives, layer.inside) if group in groups]
            for read, share in [*reads.items(), (None, 1 - sum(reads.values()))]:
                if abs(share) > _NONE:
                    cut = [*around, *([] if read is None else [read])]
                    found.append(self._term(layer, cut, share, layer.name in layers))
        whole = max(self.whole, _NONE)
        return [Term(term.items, term.cost / whole) for term in found if term.items]

    def _keeps(self, group: str) -> list[float]:
        """What may stay of a group, each as the share that takes as long."""
        one = self.space.groups[group]
        return [filled_up(one, keep, self.alignment) for keep in one.keeps]

    def _term(self, layer: LayerCost, cut: Sequence[str | None], share: float, formed: bool) -> Term:
        """What ``share`` of a layer costs that is cut by these groups, by what is chosen of them and of it."""
        groups = [group for group in dict.fromkeys(cut) if group is not None]
        keeps = {group: self._keeps(group) for group in groups}
        left = np.ones([len(keeps[group]) for group in groups])
        for group in cut:  # a layer that reads what it gives is cut on both sides at once
            if group is not None:
                left = left * np.reshape(keeps[group], [len(keeps[g]) if g == group else 1 for g in groups])
        cost = share * _at(self.curves.get(layer.name, {}), left, 0.0)
        items = tuple((GROUP, group) for group in groups)
        if not formed:
            return Term(items, cost)
        forms = np.array([rank_filled_up(layer, form, self.alignment) for form in FACTORED])
        product = _at(self.products[layer.name], forms, 1.0)
        return Term((*items, (FORM, layer.name)), cost[..., None] * product)


def filled_up(group: Group, keep: float, alignment: int) -> float:
    """The share of a group's channels that takes as long as ``keep`` does, where kernels fill channels up to a multiple
    of ``alignment``.

    >>> filled_up(Group(64), 40 / 64, 16)
    0.75
    """
    if alignment == 1 or group.step != CHANNELS:
        return keep
    blocks = math.ceil(max(1, round(keep * group.units)) / alignment)
    return blocks / math.ceil(group.units / alignment)


def rank_filled_up(layer: LayerCost, form: float, alignment: int) -> float:
    """The form that takes as long as ``form`` does, where kernels fill the rank of a product up."""
    if not form or not layer.rank or alignment == 1:
        return form
    rank = max(1, int((1 - form) * layer.rank + _ROUNDED))
    filled = math.ceil(rank / alignment) * alignment
    return max(0.0, 1 - filled / layer.rank)


def _at(curve: Curve, x: Any, otherwise: float) -> Any:
    """Interpolated, level beyond the curve's ends."""
    known = np.array(sorted(curve.items()) or [(0.0, otherwise)])
    return np.interp(x, known[:, 0], known[:, 1])


def counted(space: Space, minimize: Objective) -> Costs:
    """Costs from counts alone: MACs, parameters, or for latency a mixture of both."""
    macs = 0.0 if minimize == "size" else 1.0
    params = {"size": 1.0, "macs": 0.0, "latency": _MACS_PER_PARAM}[minimize]
    curves = {layer.name: {0.0: 0.0, 1.0: macs * layer.macs + params * layer.params} for layer in space.layers}
    return Costs(space, curves, _as_counted(space), {})


def _as_counted(space: Space) -> dict[str, Curve]:
    return {layer.name: {ratio: 1 - ratio for ratio in FACTORED} for layer in space.factorable}


def tabulated(
    space: Space,
    widths: Mapping[float, Mapping[str, float]],
    products: Mapping[float, Mapping[str, float]] | None = None,
    alignment: int = 1,
) -> Costs | None:
    """Costs from tables of named parts, a layer's among them: of the network in which every group of channels keeps a
    share (``widths``, 1.0 among them), and of the one whose factorable layers lose a share of their MACs. Layers that
    lose as much of their work in another way are taken to cost as much.

    None where too little of the whole is told to be in the layers.
    """
    names = [layer.name for layer in space.layers]
    parts = {keep: _by_layer(table, names) for keep, table in widths.items()}
    if sum(parts[1.0].values()) < _LEAST_TOLD * sum(widths[1.0].values()):
        return None
    curves, channels = {}, space.removed_by(CHANNELS)
    stays = {keep: {name: filled_up(space.groups[name], keep, alignment) for name in channels} for keep in parts}
    for layer in space.layers:
        shares = {keep: layer.share(stays[keep]) for keep in sorted(parts, reverse=True)}
        points = {share: parts[keep][layer.name] for keep, share in shares.items()}
        costs = np.minimum.accumulate(list(points.values()))  # less never costs more: that is noise
        curves[layer.name] = {0.0: 0.0, **dict(zip(points, map(float, costs), strict=True))}
    rest = {keep: sum(widths[keep].values()) - sum(part.values()) for keep, part in parts.items()}
    found = _as_counted(space)
    for layer in space.factorable:
        made = {ratio: _by_layer(table, names)[layer.name] for ratio, table in (products or {}).items()}
        whole = parts[1.0][layer.name]
        if made and whole:
            filled = {rank_filled_up(layer, ratio, alignment): cost / whole for ratio, cost in sorted(made.items())}
            found[layer.name] = {**filled, 0.0: 1.0}
    return Costs(space, curves, found, rest, alignment)


def _by_layer(table: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """A table's parts by the layer that they are of, or are in."""
    found = dict.fromkeys(names, 0.0)
    for part, cost in table.items():
        owner = next((name for name in _above(part) if name in found), None)
        if owner is not None:
            found[owner] += cost
    return found


def _above(path: str) -> list[str]:
    """A module's path and those of the modules around it, the nearest first."""
    pieces = path.split(".")
    return [".".join(pieces[:i]) for i in range(len(pieces), 0, -1)]
