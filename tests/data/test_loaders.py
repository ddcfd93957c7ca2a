"""torch DataLoaders: read by index; shuffling, augmentation and endless streams refused where they would do harm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import data

from laconic.data import from_loaders, from_splits
from laconic.errors import DataError

X = torch.arange(60 * 3, dtype=torch.float32).reshape(60, 3)
Y = torch.arange(60) % 3
ALL = data.TensorDataset(X, Y)


def part(first: int, last: int, **options: Any) -> data.DataLoader[Any]:
    return data.DataLoader(data.Subset(ALL, range(first, last)), batch_size=4, **options)


class Listed(data.Dataset[Any]):
    """A data set of given items; ``noise`` is added anew at each read."""

    def __init__(self, items: list[Any], noise: float = 0.0) -> None:
        self.items = items
        self.noise = noise

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        return item if not self.noise else (item[0] + self.noise * torch.rand(()), item[1])


def pairs(first: int, last: int) -> list[Any]:
    return [(X[row], int(Y[row])) for row in range(first, last)]


def first_column(split: Any) -> list[int]:
    return sorted(int(row[0]) // 3 for row in split.read(range(len(split))).inputs["input"])


def test_three_loaders_keep_their_samples() -> None:
    task = from_loaders(part(0, 30), part(30, 40), part(40, 60))
    assert first_column(task.train) == list(range(30))
    assert first_column(task.search) == list(range(30, 40))
    assert first_column(task.holdout) == list(range(40, 60))
    batch = task.holdout.read([3, 0])
    assert batch.targets is not None
    assert batch.targets.tolist() == [int(row[0]) // 3 % 3 for row in batch.inputs["input"]]
    assert task.metric.name == "top1"
    assert task.metric.chance == pytest.approx(1 / 3, abs=0.05)


def test_two_loaders_and_one() -> None:
    assert from_loaders(part(0, 40), part(40, 60)).provenance["n"] == {"train": 40, "search": 10, "holdout": 10}
    assert from_loaders(part(0, 60)).provenance["n"] == {"train": 30, "search": 10, "holdout": 20}
    named = from_splits({"train": part(0, 40), "test": part(40, 60)}, trainable=False)
    assert named.provenance["n"] == {"train": 40, "search": 10, "holdout": 10}


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (lambda row: {"pixels": X[row], "labels": int(Y[row])}, "input"),
        (lambda row: ({"pixels": X[row]}, int(Y[row])), "input"),
        (lambda row: ({"a": X[row], "b": X[row] * 2}, int(Y[row])), "a"),
    ],
)
def test_forms_of_items(item: Any, name: str) -> None:
    task = from_loaders(data.DataLoader(Listed([item(row) for row in range(60)])))
    batch = task.search.read([0, 1])
    assert name in batch.inputs
    assert batch.targets is not None
    assert batch.targets.tolist() == [int(row[0]) // 3 % 3 for row in batch.inputs[name]]


def test_items_without_labels() -> None:
    task = from_loaders(data.DataLoader(Listed(list(X))))
    assert task.search.read([0]).targets is None
    assert task.metric.name == "agreement"


def test_a_score_of_ones_own() -> None:
    items = [(X[row], X[row, 0] * 0.5) for row in range(60)]
    task = from_loaders(data.DataLoader(Listed(items)), score=lambda o, t: t / t.max(), trainable=False)
    batch = task.search.read([0])
    assert batch.targets is not None
    assert batch.targets[0] == batch.inputs["input"][0, 0] * 0.5


def test_train_may_shuffle_and_augment_and_it_is_noted() -> None:
    shuffled = from_loaders(part(0, 30, shuffle=True), part(30, 40), part(40, 60))
    assert first_column(shuffled.train) == list(range(30))
    assert shuffled.provenance["augmented_train"] is False

    def augmented() -> Any:
        return from_loaders(data.DataLoader(Listed(pairs(0, 30), noise=0.5)), part(30, 40), part(40, 60))

    assert augmented().provenance["augmented_train"] is True
    assert augmented().fingerprint == augmented().fingerprint


def test_the_indices_of_a_subset_sampler_are_the_train_set() -> None:
    sampler = data.SubsetRandomSampler(range(5, 25))
    task = from_loaders(data.DataLoader(ALL, sampler=sampler), part(30, 40), part(40, 60))
    assert first_column(task.train) == list(range(5, 25))


def test_weights_of_a_sampler_are_not_used() -> None:
    sampler = data.WeightedRandomSampler([1.0] * 30, 7)
    task = from_loaders(data.DataLoader(data.Subset(ALL, range(30)), sampler=sampler), part(30, 40), part(40, 60))
    assert first_column(task.train) == list(range(30))


class Backwards(data.Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(59, -1, -1))

    def __len__(self) -> int:
        return 60


class Endless(data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(pairs(0, 60))


def doubled(items: list[Any]) -> Any:
    return data.default_collate(items + items)


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        ([part(0, 30), part(30, 40, shuffle=True), part(40, 60)], "a shuffling sampler in search: got RandomSampler"),
        (
            [part(0, 40), part(40, 60, shuffle=True)],
            "a shuffling sampler in val: got RandomSampler, wanted shuffle=False",
        ),
        ([part(0, 60, shuffle=True)], "a shuffling sampler in all"),
        ([part(0, 40), data.DataLoader(ALL, sampler=Backwards())], "a shuffling sampler in val: got Backwards"),
        ([data.DataLoader(ALL, sampler=Backwards()), part(0, 9)], "samples of train cannot be known: got Backwards"),
        ([data.DataLoader(ALL, batch_size=None)], "samples of all cannot be known: got batch_size=None"),
        ([data.DataLoader(Endless())], "an IterableDataset in all cannot be read by index; give a data set with"),
        (
            [part(0, 30), data.DataLoader(Listed(pairs(30, 60), noise=0.5))],
            "random augmentation in val: the same sample read twice differs; take it out",
        ),
        ([part(0, 30), part(29, 40), part(40, 60)], "not disjoint: 1 of .* in both train and search"),
        (
            [data.DataLoader(Listed(pairs(0, 30))), data.DataLoader(Listed(pairs(20, 60)))],
            "not disjoint: 10 of .* in both train and val",
        ),
        ([part(0, 30), data.DataLoader(Listed(list(X[30:])))], "labels in some parts only"),
        ([part(0, 60, collate_fn=doubled)], r"collate_fn gives another number of samples: got \[120\], wanted 60"),
        ([data.DataLoader(Listed([(X[0], 0.5)] * 60))], "a label that is no class in a batch of all, row 0: got 0.5"),
        ([data.DataLoader(Listed([(X[0] * np.nan, 0)] * 60))], "NaN or infinity in x of a batch of all"),
        ([data.DataLoader(Listed([(X[0], X[0], 0)] * 60))], "a batch of unknown form: got 3 values"),
        (
            [data.DataLoader(Listed([{"x": X[0], "y": 0, "label": 0}] * 60))],
            "a batch with several targets: got y, label",
        ),
        ([data.DataLoader(Listed([None] * 60))], "data set of all cannot be read: got TypeError"),
        ([data.DataLoader(Listed([]))], "no samples in all"),
        ([X], "from_loaders takes torch DataLoaders: got Tensor"),
        ([], "from_loaders takes torch DataLoaders: got none"),
    ],
)
def test_refused(loaders: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        from_loaders(*loaders)
    assert "\n" not in str(caught.value)


def test_a_score_needs_targets() -> None:
    with pytest.raises(DataError, match="needs targets"):
        from_loaders(data.DataLoader(Listed(list(X))), score=lambda o, t: t, trainable=False)
