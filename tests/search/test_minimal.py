"""Neighbours of the winner: what is claimed of each, and in which words."""

from __future__ import annotations

import pytest

from laconic.core import Recipe
from laconic.search.minimal import difference, minimality
from laconic.steps import STEPS
from tests.search.world import judge, made

Quantize, Prune, Tune = (STEPS[name] for name in ("Quantize", "PruneChannels", "FineTune"))
WINNER = made(Prune(layers={"a": 0.5}), Quantize(), speedup=2.0, size=0.25)
NEAR = Recipe((Prune(layers={"a": 0.5625}), Quantize()))


def verdict(**found: object) -> str:
    trials = {NEAR.key: made(*NEAR.steps, **found)} if found else {}  # type: ignore[arg-type]
    said = minimality(WINNER, [NEAR], trials, judge())
    (words,) = [name for name, neighbours in said.items() if neighbours]
    assert said[words] == ["a 0.5 -> 0.5625"]
    return words


def test_below_the_floor_needs_the_lower_bound() -> None:
    assert verdict(drop=0.03, low=0.021, speedup=2.5) == "below the floor"
    assert verdict(drop=0.03, low=0.019, speedup=2.5) == "undecided"


def test_given_up_early_is_below_the_floor() -> None:
    assert verdict(drop=None, speedup=None, rejected="its drop was clear") == "below the floor"


def test_no_better_than_a_tie_is_not_better() -> None:
    assert verdict(drop=0.0, speedup=2.03, size=0.25) == "not better"
    assert verdict(drop=0.0, speedup=2.1, size=0.25) == "undecided"
    assert verdict(drop=0.0, speedup=2.0, size=0.24) == "undecided"


def test_a_failure_proves_nothing() -> None:
    assert verdict(error="it does not load") == "undecided"


def test_noise_proves_nothing_about_speed() -> None:
    assert verdict(drop=0.0, speedup=2.0, size=0.25, rejected="its timing stayed noisy") == "undecided"


def test_what_was_not_tried_is_said() -> None:
    assert verdict() == "not tried"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([Quantize()], [Quantize(ranges="minmax")], "ranges mse -> minmax"),
        ([Quantize(exclude=("a", "b"))], [Quantize(exclude=("b",))], "exclude without a"),
        ([Prune(layers={"a": 0.5})], [Prune(layers={"a": 0.5, "b": 0.125})], "b 0.0 -> 0.125"),
        ([Quantize(bits=4, layers={"a": 8, "b": 8})], [Quantize(bits=4, layers={"b": 8})], "a as the others"),
        ([Prune(layers={"a": 0.5}), Quantize()], [Prune(layers={"a": 0.5})], "without Quantize"),
        ([Prune(layers={"a": 0.5})], [Prune(layers={"a": 0.5}), Quantize()], "with Quantize"),
        ([Prune(), Tune(), Quantize()], [Prune(), Quantize()], "without FineTune"),
    ],
)
def test_differences_in_words(before: list, after: list, words: str) -> None:
    assert difference(Recipe(tuple(before)), Recipe(tuple(after))) == words
