"""Is the winner minimal? Every single-notch neighbour that is smaller, and what ``search`` said of it.

A neighbour is *below the floor* (the lower bound of its drop is above it), *not better* (no improvement on the winner
beyond a tie), *undecided* (between the two: it may be better, and may stand above the floor), or was *not tried*. No
claim goes beyond that list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from laconic.core import Recipe, Trial
from laconic.search.choose import Judge


def minimality(
    winner: Trial, near: Iterable[Recipe], trials: Mapping[str, Trial], judge: Judge
) -> dict[str, list[str]]:
    """The neighbours ``near``, described, under what was found of them; ``trials`` by recipe key."""
    found: dict[str, list[str]] = {"below the floor": [], "not better": [], "undecided": [], "not tried": []}
    for recipe in near:
        found[_verdict(winner, trials.get(recipe.key), judge)].append(str(recipe))
    return found


def _verdict(winner: Trial, trial: Trial | None, judge: Judge) -> str:
    if trial is None:
        return "not tried"
    if trial.error is not None:
        return "undecided"
    if "drop" not in trial.measurements or trial.measurements["drop"].low > judge.max_drop:
        return "below the floor"  # without a drop: its scoring ended early because the drop was clear
    if "speedup" in trial.measurements and not judge.improves(trial, winner):
        return "not better"
    return "undecided"
