"""Cut after cut, each where it loses least for the same saving: NetAdapt (Yang et al. 2018, arXiv 1804.03230).

Every cut must save a share of the cost that is left. For each group of channels or heads, each block and each layer
that can become a product, the least cut that saves so much is a proposal; the proposal that loses least is taken (the
paper's algorithm 1). The cost is whatever :class:`.costs.Costs` hold: milliseconds from tables, MACs, modelled energy.
With energy it is near the order of Yang, Chen and Sze (2017, arXiv 1611.05128), which cuts first where most energy is.

Deviations: a proposal is judged by what it loses for what it saves, since one group may save several times what was
asked and one layer just enough (taken by the loss alone, a ResNet-20 was cut in the wrong places). The paper probes
every proposal, by a short training; here the damages of each alone, known already, name the few that are probed, with
the cuts made before. Cuts are finer than what is worth a trial (:func:`spaced`): a layer is a few hundredths of a
network, and one that must save much at once is cut deep. No cut is trained.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from laconic.search.allocate import Damage
from laconic.search.costs import Costs
from laconic.search.space import FACTORED, Allocation

_CUT = 0.005  # of the cost that is left: what a cut saves at the least
_PROBED = 3


def netadapt(
    start: Allocation,
    costs: Costs,
    damage: Damage,
    probe: Callable[[Allocation], float | None],
    saving: float = _CUT,
) -> Iterator[Allocation]:
    """Allocations, each cheaper than the one before by ``saving`` of its cost at the least, until nothing more can be
    cut. ``probe`` gives the damage of a whole allocation, or None where it cannot be had."""
    current = start
    lost = (probe(start) or 0.0) if start.keeps or start.forms else 0.0
    while True:
        cost, before = costs.of(current), damage.of(current)
        found = [_least(cuts, costs, cost * (1 - saving)) for cuts in _cuts(current, costs, damage)]
        saved = [(cut, cost - costs.of(cut)) for cut in found if cut is not None]
        likely = sorted(saved, key=lambda pair: (damage.of(pair[0]) - before) / pair[1])[:_PROBED]
        probed = [(after, cut, saves) for cut, saves in likely if (after := probe(cut)) is not None]
        if not probed:
            return
        lost, current, _ = min(probed, key=lambda one: (one[0] - lost) / one[2])
        yield current


def spaced(path: Iterator[Allocation], costs: Costs, start: Allocation, saving: float) -> Iterator[Allocation]:
    """Those of ``path`` that are cheaper by ``saving`` of its cost than the one before, the first than ``start``."""
    last = costs.of(start)
    for allocation in path:
        if costs.of(allocation) <= last * (1 - saving):
            last = costs.of(allocation)
            yield allocation


def _least(cuts: Sequence[Allocation], costs: Costs, cost: float) -> Allocation | None:
    """The first of ever deeper cuts, of which none costs more than the one before, that costs so little."""
    place = bisect_left(cuts, True, key=lambda cut: costs.of(cut) <= cost)
    return cuts[place] if place < len(cuts) else None


def _cuts(current: Allocation, costs: Costs, damage: Damage) -> Iterator[list[Allocation]]:
    """Of each group and layer, ever deeper cuts."""
    for group in damage.groups:
        less = [keep for keep in costs.space.groups[group].keeps if keep < current.keeps.get(group, 1.0)]
        yield [replace(current, keeps={**current.keeps, group: keep}) for keep in less]
    for layer in damage.layers:
        more = [form for form in FACTORED if form > current.forms.get(layer, 0.0)]
        yield [replace(current, forms={**current.forms, layer: form}) for form in more]
