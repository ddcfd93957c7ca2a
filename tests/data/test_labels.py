"""Labels: whole numbers stay, strings are numbered in sorted order, everything else is refused."""

from __future__ import annotations

import numpy as np
import pytest

from laconic.data.labels import encode
from laconic.errors import DataError


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_whole_numbers_stay(kind: type) -> None:
    found, names = encode({"all": np.array([3, 0, 1], kind)})
    assert found["all"].tolist() == [3, 0, 1]
    assert found["all"].dtype == np.int64
    assert names == ()


def test_truth_values_are_two_classes() -> None:
    assert encode({"all": np.array([True, False])})[0]["all"].tolist() == [1, 0]


def test_strings_are_numbered_over_all_parts() -> None:
    found, names = encode({"train": np.array(["b", "c"]), "val": np.array([b"a", b"c"])})
    assert names == ("a", "b", "c")
    assert (found["train"].tolist(), found["val"].tolist()) == ([1, 2], [0, 2])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.5], r"no class in row 1: got 1.5, wanted whole numbers"),
        ([0, -1], r"no class in row 1: got -1"),
        ([0.0, np.nan], r"no class in row 1: got nan"),
        ([0.0, np.inf], r"no class in row 1: got inf"),
        ([[1, 0], [0, 1]], r"several columns: got shape \(2, 2\); for one-hot: y.argmax\(1\)"),
        ([[1], [0]], r"wrong shape in all: got \(2, 1\).*y\[:, 0\]"),
        ([1j, 2j], "unknown type: got complex128"),
    ],
)
def test_refused(labels: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode({"all": np.array(labels)})


def test_strings_beside_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="strings in one part and numbers in another"):
        encode({"train": np.array(["a"]), "val": np.array([1])})


def test_a_label_beyond_the_given_names_is_refused() -> None:
    with pytest.raises(DataError, match=r"without a class name in val, row 1: got 2, wanted 0..1"):
        encode({"train": np.array([1]), "val": np.array([0, 2])}, ("a", "b"))
