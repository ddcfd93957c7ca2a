"""Is the winner minimal? Every single-notch neighbour that is smaller, and what ``search`` said of it.

A neighbour is *below the floor* (the lower bound of its drop is above it), *not better* (no improvement on the winner
beyond a tie), *undecided* (between the two: it may be better, and may stand above the floor), or was *not tried*. No
claim goes beyond that list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from laconic.core import Recipe, Trial, settings
from laconic.search.choose import Judge


def minimality(
    winner: Trial, near: Iterable[Recipe], trials: Mapping[str, Trial], judge: Judge
) -> dict[str, list[str]]:
    """The neighbours ``near``, described, under what was found of them; ``trials`` by recipe key."""
    found: dict[str, list[str]] = {"below the floor": [], "not better": [], "undecided": [], "not tried": []}
    for recipe in near:
        found[_verdict(winner, trials.get(recipe.key), judge)].append(difference(winner.recipe, recipe))
    return found


def difference(before: Recipe, after: Recipe) -> str:
    """What one recipe has that the other has not, in words: ``conv3 0.75 -> 0.875``, ``without Quantize``."""
    old, new = before.to_json(), after.to_json()
    if len(old) != len(new):
        names = [[row["step"] for row in rows] for rows in (old, new)]
        longer, shorter = sorted(names, key=len, reverse=True)
        extra = next(step for i, step in enumerate(longer) if i >= len(shorter) or step != shorter[i])
        return f"{'without' if len(new) < len(old) else 'with'} {extra}"
    changes = []
    for was, now in zip(before.steps, after.steps, strict=True):
        old_settings = settings(was, every=True)
        for name, value in settings(now, every=True).items():
            usual = old_settings.get({"PruneChannels": "ratio", "Quantize": "bits"}.get(type(was).__name__, ""), 0.0)
            changes += _changed(name, old_settings[name], value, usual)
    return ", ".join(changes)


def _changed(name: str, was: Any, now: Any, usual: float) -> list[str]:
    """``usual``: what a layer has that is not named."""
    if was == now:
        return []
    if isinstance(now, dict):
        gone = [f"{key} as the others" for key in was if key not in now]
        return gone + [change for key in now for change in _changed(key, was.get(key, usual), now[key], usual)]
    if isinstance(now, list):
        return [f"{name} without {item}" for item in was if item not in now]
    return [f"{name} {was} -> {now}"]


def _verdict(winner: Trial, trial: Trial | None, judge: Judge) -> str:
    if trial is None:
        return "not tried"
    if trial.error is not None:
        return "undecided"
    if "drop" not in trial.measurements or trial.measurements["drop"].low > judge.max_drop:
        return "below the floor"  # without a drop: its scoring ended early because the drop was clear
    if "speedup" not in trial.measurements or (trial.rejected and judge.goal.minimize == "latency"):
        return "undecided"  # not timed, or while somebody else was working
    return "undecided" if judge.improves(trial, winner) else "not better"
