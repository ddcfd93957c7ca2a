"""Cut after cut, each where it loses least for the same saving: NetAdapt (Yang et al. 2018, arXiv 1804.03230).

Every round must save the same share of the cost. For each group of channels, and each layer that can become a product,
the least cut that saves so much is a proposal; the proposal that loses least is taken (the paper's algorithm 1). The
cost is whatever :class:`.costs.Costs` hold: milliseconds from tables, MACs, modelled energy. With energy it is the
order of Yang, Chen and Sze (2017, arXiv 1611.05128), which takes what costs most first, but for that the loss decides.

Deviations: the paper probes every proposal, by a short training; here the damages of each alone, known already, name
the few that are probed, with the cuts made before. No cut is trained between rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from laconic.search.allocate import Damage
from laconic.search.costs import Costs
from laconic.search.space import FACTORED, KEEPS, Allocation

_PROBED = 3


def netadapt(
    start: Allocation,
    costs: Costs,
    damage: Damage,
    probe: Callable[[Allocation], float | None],
    saving: float,
) -> Iterator[Allocation]:
    """Allocations, each cheaper than the one before by ``saving`` of the original's cost at the least, until nothing
    more can be cut. ``probe`` gives the damage of a whole allocation, or None where it cannot be had."""
    current = start
    while True:
        wanted, before = costs.of(current) - saving, damage.of(current)
        found = (next((cut for cut in cuts if costs.of(cut) <= wanted), None) for cuts in _cuts(current, damage))
        proposals = sorted((cut for cut in found if cut), key=lambda cut: damage.of(cut) - before)[:_PROBED]
        probed = [(lost, i) for i, cut in enumerate(proposals) if (lost := probe(cut)) is not None]
        if not probed:
            return
        current = proposals[min(probed)[1]]
        yield current


def _cuts(current: Allocation, damage: Damage) -> Iterator[Iterator[Allocation]]:
    """Of each group and layer, ever deeper cuts."""
    for group in damage.groups:
        deeper = range(current.notches.get(group, 0) + 1, len(KEEPS))
        yield (replace(current, notches={**current.notches, group: notch}) for notch in deeper)
    for layer in damage.layers:
        deeper = range(current.forms.get(layer, 0) + 1, len(FACTORED))
        yield (replace(current, forms={**current.forms, layer: form}) for form in deeper)
