"""What a search works with: everything that it knows of the world comes through here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from laconic.core import Recipe, Step, Trial

Tail = tuple[Step, ...]
"""The end of a recipe: what is done to the network once its structure stands."""


class BudgetSpentError(Exception):
    """The budget has ended; what was found until then stands."""


@dataclass(frozen=True)
class Tools:
    """What the policy works with. ``steps`` maps names to step classes; ``evaluate(recipe)`` gives a trial (from the
    ledger if it is there); ``probe(recipe)`` gives a damage, or None where the recipe fails; ``exchange(recipes, key)``
    the damage of the network of ``recipes[key]`` with a single layer taken from that of another, by layer and key,
    those that fail missing; ``layer_times(recipe)`` gives the milliseconds in each layer; ``alignment(recipe)`` the
    multiple to which the target's kernels fill channels up, in the arithmetic of these steps; ``seconds_per_sample()``
    is the price of training."""

    steps: Mapping[str, Callable[..., Step]]
    evaluate: Callable[[Recipe], Trial]
    probe: Callable[[Recipe], float | None]
    exchange: Callable[[Mapping[int, Recipe], int], Mapping[str, Mapping[int, float]]]
    layer_times: Callable[[Recipe], Mapping[str, float]]
    alignment: Callable[[Recipe], int]
    seconds_per_sample: Callable[[], float]
