"""What can be chosen, and what is left of a layer's work."""

from __future__ import annotations

import itertools

import pytest

from laconic.search.space import BLOCKS, CHANNELS, FACTORED, HEADS, KEEPS, PROBED, PROBED_FORMS, Group, LayerCost, Space


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


def test_a_layer_in_a_block_that_is_gone_has_no_work() -> None:
    layer = LayerCost("a", "conv", macs=100.0, params=1.0, gives="c", reads={}, inside="block")
    assert layer.share({"c": 0.5}) == 0.5
    assert layer.share({"c": 0.5, "block": 0.0}) == 0.0


def test_what_may_stay_of_a_group() -> None:
    assert Group(32).keeps == KEEPS
    assert Group(16, notch=4).keeps == (1.0, 3 / 4, 1 / 2, 1 / 4)
    assert Group(36, notch=4).keeps[:3] == (1.0, 32 / 36, 28 / 36)
    assert Group(4, HEADS).keeps == (1.0, 3 / 4, 1 / 2, 1 / 4)
    assert Group(1, BLOCKS).keeps == (1.0, 0.0)


def test_a_group_is_probed_at_what_may_stay_of_it() -> None:
    assert Group(32).probed(few=False) == [1 - ratio for ratio in PROBED]
    assert Group(3, HEADS).probed(few=False) == [2 / 3, 1 / 3]
    assert Group(2, HEADS).probed(few=False) == [1 / 2]
    assert Group(32).probed(few=True) == [3 / 4]
    assert Group(1, BLOCKS).probed(few=True) == [0.0]


def test_read_from_what_the_evaluator_describes() -> None:
    inside = {"inside": "block a"}
    rows = [
        {"name": "a", "kind": "conv", "macs": 3, "params": 2, "gives": "a", "reads": {}, "factors": "LowRank"} | inside,
        {"name": "b", "kind": "linear", "macs": 1, "params": 1, "gives": None, "reads": {"a": 1.0}, "factors": None}
        | inside,
    ]
    described = {
        "space": {
            "groups": [["a", {"units": 8, "step": CHANNELS}], ["block a", {"units": 1, "step": BLOCKS, "name": "a"}]],
            "layers": rows,
            "integer": True,
            "precisions": ["f32", "bf16"],
            "widths": [[8, {"bits": 8.0}]],
        },
        "trainable": False,
        "splits": {"train": 128, "search": 300, "holdout": 872},
    }
    found = Space.of(described)
    assert found.groups == {"a": Group(8), "block a": Group(1, BLOCKS, "a")}
    assert found.removed_by(BLOCKS) == {"block a": "a"}
    assert found.layers[0] == LayerCost("a", "conv", 3, 2, "a", {}, "LowRank", "block a")
    assert found.factorable == [found.layers[0]]
    assert (found.integer, found.precisions, found.trainable, found.n_train) == (True, ["f32", "bf16"], False, 128)
    assert found.structural
    assert not Space({}, found.layers[1:], True, (), True, 1).structural
