"""One choice for each of several items, of the least damage within a cost: a multiple-choice knapsack, solved exactly.

What a choice costs may depend on the choices of others: a layer between two groups of channels costs by what is left of
both. Such a cost is a :class:`Term` over several items. Its variable for every combination of their choices is as good
as chosen where the items' own are: summed over all other items it is the item's (the linear form of a product of 0/1
variables, Adams and Sherali 1986, as in exact labellings of Markov random fields), and needs no integers of its own.

Damages are taken to add up, which is a model: what is found is a proposal, and a trial measures it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from laconic.core import Array

Choices = Mapping[Any, Mapping[int, float]]
"""By item and choice a number: a damage or a cost."""

_FINEST = 1e-9  # of the largest damage: what is smaller counts as this
_GAP = 1e-3


@dataclass(frozen=True)
class Term:
    """A part of the cost that depends on the choices of ``items``: ``cost`` has an axis for each, along it the item's
    choices in the order in which the damages name them."""

    items: tuple[Hashable, ...]
    cost: Array


def least_damage(
    damage: Choices,
    cost: Choices,
    limit: float,
    once: Mapping[int, float] | None = None,
    terms: Sequence[Term] = (),
) -> dict[Any, int] | None:
    """The choice of each item whose damages add up to the least, while the costs add up to ``limit`` at most; None
    where even the cheapest choices cost more.

    ``damage`` names each item's choices; ``cost`` what they cost by themselves (none where an item is missing);
    ``once`` what a choice costs where any item has it; ``terms`` what several items cost together. Solved by SciPy's
    HiGHS to optimality; with ``terms``, to within a thousandth of the least.

    >>> damage = {"a": {8: 0.0, 4: 1.0}, "b": {8: 0.0, 4: 3.0}}
    >>> least_damage(damage, {"a": {8: 8, 4: 4}, "b": {8: 8, 4: 4}}, limit=12)
    {'a': 4, 'b': 8}
    >>> both = Term(("a", "b"), np.array([[4.0, 2.0], [2.0, 1.0]]))  # a product: half of either is half of the whole
    >>> least_damage(damage, {}, limit=2, terms=[both])
    {'a': 4, 'b': 8}
    """
    choices = [(item, choice) for item, of_item in damage.items() for choice in of_item]
    if not choices:
        return {}
    program = _Program()
    damages = _scaled(np.array([damage[item][choice] for item, choice in choices]))
    taken = [
        program.variable(hurt, cost.get(item, {}).get(choice, 0.0), whole=True)
        for hurt, (item, choice) in zip(damages, choices, strict=True)
    ]
    of_item: dict[Any, list[int]] = {}
    for column, (item, _) in zip(taken, choices, strict=True):
        of_item.setdefault(item, []).append(column)
    for columns in of_item.values():
        program.require([(column, 1.0) for column in columns], 1, 1)
    for choice, price in (once or {}).items():
        occurs = program.variable(0.0, price, whole=True)
        for column, (_, other) in zip(taken, choices, strict=True):
            if other == choice:
                program.require([(column, 1.0), (occurs, -1.0)], -np.inf, 0)
    for term in terms:
        _combine(program, term, of_item)
    found = program.solved(limit, gap=_GAP if terms else 0.0)
    if found is None:
        return None
    return {item: choice for column, (item, choice) in zip(taken, choices, strict=True) if found[column] > 1 / 2}


def _combine(program: _Program, term: Term, of_item: Mapping[Any, Sequence[int]]) -> None:
    """A variable for each combination of the term's items' choices; those that hold a choice add up to it.

    Combinations with a choice that makes the whole term cost nothing, as a block's that is gone, need none of their
    own: what they would hold of the other items' choices is a variable for each."""
    nothing = [np.all(np.moveaxis(term.cost, axis, 0).reshape(n, -1) == 0, 1) for axis, n in enumerate(term.cost.shape)]
    free = [axis for axis, of_axis in enumerate(nothing) if of_axis.any()]
    alone = free[0] if len(free) == 1 else None
    told = [np.flatnonzero(~nothing[axis]) if axis == alone else np.arange(n) for axis, n in enumerate(term.cost.shape)]
    costs = term.cost[np.ix_(*told)]
    columns = np.array([program.variable(0.0, float(price)) for price in costs.flat]).reshape(costs.shape)
    for axis, item in enumerate(term.items):
        for place, i in enumerate(told[axis]):
            held = [(int(column), 1.0) for column in columns.take(place, axis).flat]
            if alone not in (None, axis):
                held.append((program.variable(0.0, 0.0), 1.0))
            program.require([*held, (of_item[item][i], -1.0)], 0, 0)


class _Program:
    """A mixed integer program of variables in 0..1, built row by row."""

    def __init__(self) -> None:
        self.damages: list[float] = []
        self.costs: list[float] = []
        self.whole: list[int] = []
        self.entries: list[tuple[int, int, float]] = []
        self.bounds: list[tuple[float, float]] = []

    def variable(self, damage: float, cost: float, whole: bool = False) -> int:
        self.damages.append(damage)
        self.costs.append(cost)
        self.whole.append(int(whole))
        return len(self.damages) - 1

    def require(self, row: Sequence[tuple[int, float]], low: float, high: float) -> None:
        self.entries += [(len(self.bounds), column, value) for column, value in row]
        self.bounds.append((low, high))

    def solved(self, limit: float, gap: float) -> Array | None:
        """The variables of the least damage whose costs are within the limit."""
        rows, columns, values = zip(*self.entries, strict=True)
        matrix = sparse.csr_array((values, (rows, columns)), shape=(len(self.bounds), len(self.damages)))
        low, high = zip(*self.bounds, strict=True)
        scale = max(map(abs, (*self.costs, limit)), default=1.0) or 1.0
        costs = sparse.csr_array([[cost / scale for cost in self.costs]])
        found = milp(
            np.array(self.damages),
            integrality=np.array(self.whole),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(matrix, low, high), LinearConstraint(costs, -np.inf, limit / scale)],
            options={"mip_rel_gap": gap},
        )
        return found.x if found.x is None else np.asarray(found.x)


def _scaled(damages: Any) -> Any:
    """In units of the smallest that counts: HiGHS takes sums within 1e-6 of each other for equal."""
    positive = damages[damages > 0]
    return damages / max(positive.min(), positive.max() * _FINEST) if len(positive) else damages
