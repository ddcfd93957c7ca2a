"""The rules of splitting: sizes, shares of classes, equal content kept together, order, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.data.arrays import Stacked
from laconic.data.source import Part
from laconic.data.splits import divide, plan, sizes
from laconic.errors import DataError


def part(labels: object, keys: list[bytes] | None = None) -> Part:
    array = np.asarray(labels, np.int64)
    return Part(Stacked({"input": array}, array), array, keys, "")


def sorted_classes(classes: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(classes), each)


@pytest.mark.parametrize(
    ("n", "trainable", "expected"),
    [
        (1300, False, [128, 300, 872]),
        (1797, True, [898, 299, 600]),
        (50000, False, [128, 5000, 44872]),
        (600, False, [60, 200, 340]),
        (100000, True, [50000, 16666, 33334]),
        (6, True, [3, 1, 2]),
        (10, False, [1, 3, 6]),
    ],
)
def test_sizes(n: int, trainable: bool, expected: list[int]) -> None:
    assert sizes(n, trainable) == expected


@pytest.mark.parametrize(("n", "trainable", "least"), [(5, True, 6), (9, False, 10)])
def test_too_few(n: int, trainable: bool, least: int) -> None:
    with pytest.raises(DataError, match=f"too few samples for three splits: got {n}, wanted at least {least}"):
        sizes(n, trainable)


@given(
    labels=st.lists(st.integers(0, 4), min_size=30, max_size=120),
    trainable=st.booleans(),
    seed=st.integers(0, 5),
)
def test_a_set_is_cut_into_all_of_itself_with_each_class_shared_out(
    labels: list[int], trainable: bool, seed: int
) -> None:
    found = plan({"all": part(labels)}, trainable, seed)
    rows = [rows for _, rows in found.chosen.values()]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(labels)))
    assert [len(x) for x in rows] == sizes(len(labels), trainable)
    array = np.array(labels)
    for chosen in rows:
        for label in set(labels):
            share = (array == label).mean() * len(chosen)
            assert abs((array[chosen] == label).sum() - share) <= 2


def test_the_beginning_of_train_is_balanced_and_the_others_are_not_sorted() -> None:
    labels = sorted_classes(10, 200)
    found = plan({"all": part(labels)}, True, 0).chosen
    counts = np.bincount(labels[found["train"][1][:100]], minlength=10)
    assert counts.min() >= 9
    assert counts.max() <= 11
    for name in ("search", "holdout"):
        order = labels[found[name][1]]
        assert len(set(order[:40].tolist())) >= 8
        assert (np.diff(order) != 0).mean() > 0.7


def test_a_prefix_of_search_is_random_not_even() -> None:
    labels = sorted_classes(2, 3000)
    prefixes = [labels[plan({"all": part(labels)}, True, seed).chosen["search"][1][:100]].sum() for seed in range(30)]
    assert 2.5 < np.std(prefixes) < 8  # 5 for 100 fair coins; at most 1 in the even order


@pytest.mark.parametrize("trainable", [True, False])
def test_equal_content_lands_in_one_split(trainable: bool) -> None:
    keys = [b"%d" % (row // 3) for row in range(300)]
    found = plan({"all": part(sorted_classes(3, 100), keys)}, trainable, 0).chosen
    seen = [{keys[row] for row in rows.tolist()} for _, rows in found.values()]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for (_, rows), wanted in zip(found.values(), sizes(300, trainable), strict=True):
        assert abs(len(rows) - wanted) <= 3


def test_all_samples_equal_leave_nothing_to_split() -> None:
    with pytest.raises(DataError, match="too few different samples: none left for"):
        plan({"all": part([0] * 60, [b"same"] * 60)}, True, 0)


def test_seeds_differ_and_repeat() -> None:
    parts = {"all": part(sorted_classes(4, 50))}
    first, again, other = (plan(parts, True, seed).chosen["holdout"][1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_numbers_never_change() -> None:
    """A ledger of last year must find the same samples: these are written down."""
    found = plan({"all": part(sorted_classes(2, 6))}, True, 7).chosen
    assert {name: rows.tolist() for name, (_, rows) in found.items()} == {
        "train": [2, 7, 5, 10, 0, 11],
        "search": [8, 1],
        "holdout": [6, 4, 9, 3],
    }


@pytest.mark.parametrize("trainable", [True, False])
def test_an_official_evaluation_part_is_halved(trainable: bool) -> None:
    found = plan({"train": part(sorted_classes(2, 200)), "val": part(sorted_classes(2, 50))}, trainable, 0)
    assert {name: (source, len(rows)) for name, (source, rows) in found.chosen.items()} == {
        "train": ("train", 400 if trainable else 128),
        "search": ("val", 50),
        "holdout": ("val", 50),
    }
    both = np.concatenate([found.chosen["search"][1], found.chosen["holdout"][1]])
    assert sorted(both.tolist()) == list(range(100))
    assert ("unused, since the model was trained on it" in found.notes["rule"]) == (not trainable)


def test_samples_of_train_that_are_in_evaluation_leave_train() -> None:
    train = part([0, 1] * 10, [b"t%d" % row for row in range(19)] + [b"v3"])
    val = part([0, 1] * 5, [b"v%d" % row for row in range(10)])
    found = plan({"train": train, "val": val}, True, 0)
    assert sorted(found.chosen["train"][1].tolist()) == list(range(19))
    assert found.notes["left_out_of_train"] == 1


def test_given_splits_stay_and_may_not_overlap() -> None:
    names = ("train", "search", "holdout")
    apart = {name: part([0, 1] * 5, [name.encode() + b"%d" % row for row in range(10)]) for name in names}
    found = plan(apart, True, 0).chosen
    assert all(source == name and sorted(rows.tolist()) == list(range(10)) for name, (source, rows) in found.items())
    apart["holdout"] = part([0, 1], [b"train3", b"train4"])
    with pytest.raises(DataError, match="not disjoint: 2 of the samples looked at are in both train and holdout"):
        plan(apart, True, 0)


def test_without_labels_or_keys_the_order_is_random() -> None:
    plain = Part(Stacked({"input": np.zeros(50)}, None), None, None, "")
    (rows,) = divide(plain, [50], np.random.RandomState(0))
    assert sorted(rows.tolist()) == list(range(50))
    assert rows.tolist() != list(range(50))
