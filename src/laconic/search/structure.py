"""How much of the structure goes until the floor is missed: channels, heads, blocks, and layers written as products.

Probes tell what each costs in accuracy, tables what it saves; an allocation at a cost is solved exactly, recovered by
least squares, trained where that is allowed, and measured. The cost falls until the floor is missed, is bisected, and
then cut on from the last that held, each cut where it loses least (:mod:`.netadapt`). Whether training comes before
integers or behind them is decided by measurement, where the first order misses the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from laconic.core import Recipe, Step, Trial
from laconic.goal import Goal
from laconic.search.allocate import Allocator, Damage
from laconic.search.choose import Judge
from laconic.search.costs import Costs, counted, tabulated
from laconic.search.netadapt import netadapt, spaced
from laconic.search.space import BLOCKS, CHANNELS, FACTORED, HEADS, PROBED_FORMS, Allocation, Space
from laconic.search.tools import Tail, Tools

TIMED_KEEPS = (3 / 4, 1 / 2, 1 / 4)
"""The shares of all channels at which layers are timed."""
_RECOVERY = "least_squares"
_LEAST_COST = 0.01
_LEAST_WORTH = 0.01  # of the whole cost: what cannot save so much is left as it is
_BISECTIONS = 4
_CLOSE = 1.06
_SAVING = 0.02  # of the cost that is left: what a further trial saves
_LR_BEHIND = 1e-4


@dataclass
class Structure:
    """One search's structure. ``attempt(*steps)`` measures a recipe; ``epochs(effort, macs)`` is how long to train a
    network that has so much of its MACs left; ``tail`` is what the layers are timed with."""

    space: Space
    goal: Goal
    judge: Judge
    tools: Tools
    attempt: Callable[..., Trial]
    epochs: Callable[[float, float], float]
    tail: Tail
    behind: bool = field(default=False, init=False)  # training, behind integers

    # ---------------------------------------------------------------------------------------------------------- recipes

    def steps(self, allocation: Allocation) -> Tail:
        """An allocation as steps: heads and channels first, then the products of what is left. Blocks go last, since
        groups are named after layers that may be in one."""
        made: list[Step] = []
        for technique in (HEADS, CHANNELS):
            named = self.space.removed_by(technique)
            ratios = {name: round(1 - allocation.keeps[k], 5) for k, name in named.items() if k in allocation.keeps}
            if ratios:
                made.append(self.tools.steps[technique](layers=ratios, criterion=self._criterion, recovery=_RECOVERY))
        forms = {name: round(form, 5) for name, form in allocation.forms.items()}
        for technique in sorted({layer.factors for layer in self.space.factorable if layer.factors}):
            mine = {
                one.name: forms[one.name]
                for one in self.space.factorable
                if one.factors == technique and one.name in forms
            }
            if mine:
                made.append(self.tools.steps[technique](layers=mine))
        blocks = tuple(name for key, name in self.space.removed_by(BLOCKS).items() if key in allocation.keeps)
        if blocks:
            made.append(self.tools.steps[BLOCKS](blocks=blocks, recovery=_RECOVERY))
        return tuple(made)

    @property
    def _criterion(self) -> str:
        """Training mends what magnitude chose; without it the surgeon's choice, which takes longer, leaves more."""
        return "l2" if self.space.trainable else "obs"

    def _recipe(self, allocation: Allocation, tail: Tail, effort: float) -> Tail:
        first = self.steps(allocation)
        if not self.space.trainable:
            return (*first, *tail)
        epochs = self.epochs(effort, counted(self.space, "macs").of(allocation))
        if self.behind and tail:
            return (*first, *tail, self.tools.steps["FineTune"](epochs=epochs, lr=_LR_BEHIND))
        return (*first, self.tools.steps["FineTune"](epochs=epochs), *tail)

    # --------------------------------------------------------------------------------------------- what it is judged by

    @cached_property
    def costs(self) -> Costs:
        """Where latency counts, tables of milliseconds, of networks whose layers all keep the same share; else, and
        where the runtime tells too little, counts."""
        whole = self.tools.layer_times(Recipe(self.tail)) if self.goal.minimize == "latency" else {}
        if not whole:
            return counted(self.space, self.goal.minimize)
        prune = self.tools.steps[CHANNELS]
        widths = {1.0: whole} | {
            keep: times
            for keep in TIMED_KEEPS
            if self.space.removed_by(CHANNELS) and (times := self._times(prune(ratio=1 - keep, recovery=_RECOVERY)))
        }
        names = [layer.name for layer in self.space.factorable]
        products = {
            form: times
            for form in PROBED_FORMS
            if names and (times := self._times(*self.steps(Allocation(forms=dict.fromkeys(names, form)))))
        }
        table = tabulated(self.space, widths, products, self.tools.alignment(Recipe(self.tail)))
        return table or counted(self.space, self.goal.minimize)

    def _times(self, *steps: Step) -> Mapping[str, float]:
        trial = self.attempt(*steps, *self.tail)
        return {} if trial.error else self.tools.layer_times(trial.recipe)

    @cached_property
    def damage(self) -> Damage:
        """Each group alone, recovered by least squares, and each layer alone as a product; those that are worth it."""
        few = not self.space.trainable
        groups = {
            name: {1 - keep: self._lost(Allocation({name: keep})) for keep in group.probed(few)}
            for name, group in self.space.groups.items()
            if self._worth(Allocation({name: group.keeps[-1]}))
        }
        layers = {
            layer.name: {
                form: self._lost(Allocation(forms={layer.name: form})) for form in PROBED_FORMS[: 1 if few else None]
            }
            for layer in self.space.factorable
            if self._worth(Allocation(forms={layer.name: FACTORED[-1]}))
        }
        return Damage(groups, layers)

    @cached_property
    def _allocator(self) -> Allocator:
        return Allocator(self.costs, self.damage)

    def _worth(self, allocation: Allocation) -> bool:
        return self.costs.of(allocation) <= 1 - _LEAST_WORTH

    def _lost(self, allocation: Allocation) -> float:
        """What fails costs everything."""
        damage = self.probe(allocation)
        return 1.0 if damage is None else damage

    def probe(self, allocation: Allocation) -> float | None:
        """The damage of a whole allocation, recovered; None where it fails."""
        return self.tools.probe(Recipe(self.steps(allocation)))

    # ------------------------------------------------------------------------------------------------------- descending

    def descend(self, tails: Sequence[Tail], held: float, effort: float) -> float:
        """Lower the cost from ``held`` while the floor holds, then bisect (in the logarithm) between the last cost at
        which it held and the first at which it did not, and cut on from there; returns the lowest at which it held."""
        stride = 0.5 if self.space.trainable else 0.8
        missed, level = 0.0, held * (stride if effort == 1 else stride**0.5)
        leading, last = tails[:1], Allocation()
        while level >= _LEAST_COST and not missed:
            allocation = self._allocator.within(level)
            found = self._holding(allocation, tails, effort)
            if leading[0] not in found:
                found = self._in_the_other_order(allocation, leading, effort) + found
            if allocation is not None and found:
                held, last, level, leading = level, allocation, level * stride, found[:1]
            else:
                missed = level
        for _ in range(_BISECTIONS):
            if not missed or held / missed < _CLOSE:
                break
            level = (held * missed) ** 0.5
            allocation = self._allocator.within(level)
            if allocation is not None and self._holding(allocation, leading, effort):
                held, last = level, allocation
            else:
                missed = level
        for allocation in self.cuts(last, _SAVING):
            if not self._holding(allocation, leading, effort):
                break
            held = self.costs.of(allocation)
        return held

    def cuts(self, start: Allocation, saving: float) -> Iterator[Allocation]:
        """From ``start`` on, each where it loses least; those that save so much more of the cost."""
        return spaced(netadapt(start, self.costs, self.damage, self.probe), self.costs, start, saving)

    def _holding(self, allocation: Allocation | None, tails: Sequence[Tail], effort: float) -> list[Tail]:
        """The tails with which the network stands above the floor, the best first."""
        if allocation is None:
            return []
        tried = [(self.attempt(*self._recipe(allocation, tail, effort)), tail) for tail in tails]
        best = self.judge.best([trial for trial, _ in tried if self.judge.passes(trial)])
        holding = [(trial, tail) for trial, tail in tried if self.judge.holds(trial)]
        return [tail for _, tail in sorted(holding, key=lambda pair: pair[0] is not best)]

    def _in_the_other_order(self, allocation: Allocation | None, tails: Sequence[Tail], effort: float) -> list[Tail]:
        """The same with training on the other side of the tail, which stays there where it holds."""
        if not self.space.trainable or not any(tails):
            return []
        self.behind = not self.behind
        found = self._holding(allocation, tails, effort)
        self.behind ^= not found
        return found
