"""The rough cost of an allocation, against sums done by hand."""

from __future__ import annotations

import itertools

import pytest

from laconic.search.space import KEEPS, LayerCost, Space


def space(*layers: LayerCost, groups: dict[str, int] | None = None) -> Space:
    return Space(groups or {"a": 8, "b": 16}, layers, True, ("f32",), True, 100)


CHAIN = (
    LayerCost("a", "conv", macs=100.0, params=10.0, gives="a", reads={}),
    LayerCost("b", "conv", macs=400.0, params=40.0, gives="b", reads={"a": 1.0}),
    LayerCost("c", "linear", macs=20.0, params=20.0, gives=None, reads={"b": 1.0}),
)
HALF = KEEPS.index(1 / 2)
QUARTER = KEEPS.index(1 / 4)


def test_untouched_costs_one() -> None:
    assert space(*CHAIN).cost({}, "latency") == 1.0
    assert space(*CHAIN).cost({"a": 0, "b": 0}, "size") == 1.0


def test_macs_by_hand() -> None:
    # a at a half: layer a gives half of 100, layer b reads half: 200 of 400; c is as it was
    assert space(*CHAIN).cost({"a": HALF}, "macs") == pytest.approx((50 + 200 + 20) / 520)
    # both: b gives a quarter of what it reads of a half, c reads a quarter
    assert space(*CHAIN).cost({"a": HALF, "b": QUARTER}, "macs") == pytest.approx((50 + 50 + 5) / 520)


def test_size_counts_weights_alone() -> None:
    assert space(*CHAIN).cost({"a": HALF}, "size") == pytest.approx((5 + 20 + 20) / 70)


def test_latency_counts_both() -> None:
    before = (100 + 8 * 10) + (400 + 8 * 40) + (20 + 8 * 20)
    assert space(*CHAIN).cost({"b": HALF}, "latency") == pytest.approx(
        ((100 + 8 * 10) + 0.5 * (400 + 8 * 40) + 0.5 * (20 + 8 * 20)) / before
    )


def test_a_layer_that_reads_two_groups_loses_the_share_of_each() -> None:
    joined = LayerCost("join", "conv", macs=100.0, params=1.0, gives=None, reads={"a": 0.25, "b": 0.75})
    assert space(joined).cost({"a": HALF}, "macs") == pytest.approx(1 - 0.125)
    assert space(joined).cost({"a": HALF, "b": HALF}, "macs") == pytest.approx(0.5)


def test_a_network_without_costs_is_not_divided_by_nothing() -> None:
    assert space().cost({"a": HALF}, "latency") == 1.0


def test_the_notches_are_small_steps_down() -> None:
    assert KEEPS[0] == 1.0
    assert all(after < before for before, after in itertools.pairwise(KEEPS))
    assert all(after / before >= 0.5 for before, after in itertools.pairwise(KEEPS))


def test_read_from_what_the_evaluator_describes() -> None:
    row = {"name": "a", "kind": "conv", "macs": 3, "params": 2, "gives": "a", "reads": {}}
    described = {
        "space": {
            "groups": [["a", 8]],
            "layers": [row],
            "integer": True,
            "precisions": ["f32", "bf16"],
            "widths": [[8, {"bits": 8.0}]],
        },
        "trainable": False,
        "splits": {"train": 128, "search": 300, "holdout": 872},
    }
    found = Space.of(described)
    assert found.groups == {"a": 8}
    assert found.layers == [LayerCost("a", "conv", 3, 2, "a", {})]
    assert (found.integer, found.precisions, found.trainable, found.n_train) == (True, ["f32", "bf16"], False, 128)
