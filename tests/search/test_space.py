"""What can be chosen, and what is left of a layer's work."""

from __future__ import annotations

import itertools

import pytest

from laconic.search.space import FACTORED, KEEPS, PROBED, PROBED_FORMS, Allocation, LayerCost, Space


def test_the_notches_are_small_steps_down() -> None:
    assert KEEPS[0] == 1.0
    assert all(after < before for before, after in itertools.pairwise(KEEPS))
    assert all(after / before >= 0.5 for before, after in itertools.pairwise(KEEPS))


def test_what_is_probed_can_be_chosen() -> None:
    assert {1 - ratio for ratio in PROBED} <= set(KEEPS)
    assert set(PROBED_FORMS) <= set(FACTORED)
    assert list(FACTORED) == sorted(FACTORED)
    assert FACTORED[0] == 0.0


def test_a_layer_loses_the_share_of_each_group_that_it_reads() -> None:
    joined = LayerCost("join", "conv", macs=100.0, params=1.0, gives="c", reads={"a": 0.25, "b": 0.75})
    assert joined.share({}) == 1.0
    assert joined.share({"a": 0.5}) == pytest.approx(1 - 0.125)
    assert joined.share({"a": 0.5, "b": 0.5, "c": 0.25}) == pytest.approx(0.125)


def test_what_stays_of_an_allocation() -> None:
    assert Allocation({"a": 0, "b": KEEPS.index(0.25)}).keeps == {"a": 1.0, "b": 0.25}


def test_read_from_what_the_evaluator_describes() -> None:
    rows = [
        {"name": "a", "kind": "conv", "macs": 3, "params": 2, "gives": "a", "reads": {}, "factors": "LowRank"},
        {"name": "b", "kind": "linear", "macs": 1, "params": 1, "gives": None, "reads": {"a": 1.0}, "factors": None},
    ]
    described = {
        "space": {
            "groups": [["a", 8]],
            "layers": rows,
            "integer": True,
            "precisions": ["f32", "bf16"],
            "widths": [[8, {"bits": 8.0}]],
        },
        "trainable": False,
        "splits": {"train": 128, "search": 300, "holdout": 872},
    }
    found = Space.of(described)
    assert found.groups == {"a": 8}
    assert found.layers[0] == LayerCost("a", "conv", 3, 2, "a", {}, "LowRank")
    assert found.factorable == [found.layers[0]]
    assert (found.integer, found.precisions, found.trainable, found.n_train) == (True, ["f32", "bf16"], False, 128)
    assert found.structural
    assert not Space({}, found.layers[1:], True, (), True, 1).structural
