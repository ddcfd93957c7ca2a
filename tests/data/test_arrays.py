"""Arrays, .npz files and FILE.py:FACTORY: every form that is taken, and every form that is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from laconic.data import from_arrays, from_splits, load
from laconic.errors import DataError

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3


def rows_of(task: Any) -> set[bytes]:
    splits = (task.train, task.search, task.holdout)
    return {row.tobytes() for split in splits for row in split.read(range(len(split))).inputs["input"]}


def test_digits() -> None:
    task = load("digits", preprocess=None, input_shape=(1, 8, 8))
    assert task.provenance["n"] == {"train": 898, "search": 299, "holdout": 600}
    batch = task.holdout.read(range(600))
    assert batch.inputs["input"].dtype == np.float32
    assert (batch.inputs["input"].min(), batch.inputs["input"].max()) == (0, 1)
    assert task.labels == tuple("0123456789")
    assert task.metric.chance == pytest.approx(0.1, abs=0.01)
    assert task.calibration_batch().inputs["input"].shape == (128, 1, 8, 8)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_numpy_and_torch(convert: Any) -> None:
    task = from_arrays(convert(X), convert(Y))
    assert rows_of(task) == {row.tobytes() for row in X}
    assert task.provenance["n"] == {"train": 30, "search": 10, "holdout": 20}


def test_doubles_become_floats_and_integers_stay() -> None:
    assert from_arrays(X.astype(np.float64), Y).search.read([0]).inputs["input"].dtype == np.float32
    assert from_arrays((X * 100).astype(np.int32), Y).search.read([0]).inputs["input"].dtype == np.int32


def test_several_inputs_stay_together() -> None:
    task = from_arrays({"left": X, "right": X[:, :2] * 2}, Y)
    inputs = task.holdout.read(range(20)).inputs
    np.testing.assert_array_equal(inputs["left"][:, :2] * 2, inputs["right"])


def test_a_mapping_of_one_is_the_input() -> None:
    assert list(from_arrays({"pixels": X}, Y).search.read([0]).inputs) == ["input"]


def test_strings_are_named() -> None:
    task = from_arrays(X, np.array(["a", "b", "c"])[Y])
    assert task.labels == ("a", "b", "c")


def test_the_callers_splits() -> None:
    task = from_splits({"train": (X[:30], Y[:30]), "search": (X[30:40], Y[30:40]), "holdout": (X[40:], Y[40:])})
    assert {row.tobytes() for row in task.holdout.read(range(20)).inputs["input"]} == {row.tobytes() for row in X[40:]}
    task = from_splits({"train": X[:40], "test": X[40:]}, trainable=False)
    assert task.provenance["n"] == {"train": 40, "search": 10, "holdout": 10}


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:-1], "x and y of different lengths in all: got 60 samples and 59 labels"),
        (X, np.array(3), "got 60 samples and one labels"),
        (np.where(np.arange(60)[:, None] == 7, np.nan, X), Y, "NaN or infinity in x of all: got first in row 7"),
        (np.where(np.arange(60)[:, None] == 9, np.inf, X), Y, "NaN or infinity in x of all: got first in row 9"),
        (X[:0], Y[:0], r"no samples in all: got x of shape \(0, 4\)"),
        (np.float32(3), None, r"no samples in all: got x of shape \(\)"),
        ({}, None, "no inputs in all"),
        (np.array([X[0], X[1, :2]], dtype=object), Y[:2], "holds Python objects: got dtype object"),
        (np.array(["a"] * 60), Y, "x of all is not numbers: got dtype <U1"),
        (X.tolist(), Y, "x of all is not an array: got list"),
        (X, Y.tolist(), "y of all is not an array: got list"),
        (None, None, "x of all is not an array: got NoneType"),
        ({"a": X, "b": X[:-1]}, Y, "inputs of different lengths in all"),
        (X, Y + 0.5, "a label that is no class in row 0: got 0.5.*score="),
        (X, np.eye(3)[Y], "for one-hot: y.argmax"),
        (X[:5], Y[:5], "too few samples for three splits: got 5"),
    ],
)
def test_bad_arrays(x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        from_arrays(x, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": (X, Y), "val": (X + 1, None)}, "labels in some parts only: got none in val"),
        ({"train": (X, Y), "val": (X[:, :2] + 1, Y)}, "parts whose inputs differ: got .*in train and .*in val"),
        ({"train": (X, Y), "more": (X, Y)}, "parts of splits are not understood: got train, more"),
        ({"train": (X, Y)}, "parts of splits are not understood: got train, wanted train and val"),
        ({"train": (X, Y, Y), "val": X}, r"a tuple in train that is not \(x, y\): got 3 values"),
        (
            {"train": (X[:30], Y[:30]), "search": (X[29:40], Y[29:40]), "holdout": (X[40:], Y[40:])},
            "not disjoint: 1 of the samples looked at are in both train and search",
        ),
        ({"train": (X, Y), "val": (X[:1] + 1, Y[:1])}, "too few different samples: none left for search"),
    ],
)
def test_bad_splits(splits: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_splits(splits)


def test_a_seed_out_of_range() -> None:
    with pytest.raises(DataError, match="a seed out of range: got -1"):
        from_arrays(X, Y, seed=-1)


# ---------------------------------------------------------------------------------------------------------------- .npz


def saved(tmp_path: Path, **arrays: Any) -> str:
    np.savez(tmp_path / "data.npz", **arrays)
    return str(tmp_path / "data.npz")


def test_npz_forms(tmp_path: Path) -> None:
    whole = load(saved(tmp_path, x=X, y=Y), preprocess=None)
    assert rows_of(whole) == {row.tobytes() for row in X}
    assert whole.fingerprint == from_arrays(X, Y).fingerprint
    official = load(saved(tmp_path, train_x=X[:40], train_y=Y[:40], test_x=X[40:], test_y=Y[40:]), preprocess=None)
    assert official.provenance["n"] == {"train": 40, "search": 10, "holdout": 10}
    several = load(saved(tmp_path, **{"x.left": X, "x.right": X * 2, "y": Y}), preprocess=None)
    assert set(several.search.read([0]).inputs) == {"left", "right"}
    assert load(saved(tmp_path, x=X), preprocess=None).metric.name == "agreement"


def test_npz_keys_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"an unknown key in .*: got 'scale', wanted x and y"):
        load(saved(tmp_path, x=X, y=Y, scale=2.0), preprocess=None)
    with pytest.raises(DataError, match=r"parts of .* are not understood: got all, train"):
        load(saved(tmp_path, x=X, train_x=X), preprocess=None)
    with pytest.raises(DataError, match="no inputs in all"):
        load(saved(tmp_path, y=Y), preprocess=None)
    with pytest.raises(DataError, match=r"parts of .* are not understood: got none"):
        load(saved(tmp_path), preprocess=None)


class Harmful:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    objects = saved(tmp_path, x=np.array([Harmful(), 1], dtype=object))
    (tmp_path / "renamed.npz").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "data.pt").write_bytes(pickle.dumps(Harmful()))
    for path in (objects, tmp_path / "renamed.npz", tmp_path / "data.pkl", tmp_path / "data.pt"):
        with pytest.raises(DataError, match=r"holds a pickle, .* not opened.*numpy.savez\("):
            load(str(path), preprocess=None)


def test_npz_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "short.npz").write_bytes(Path(saved(tmp_path, x=X)).read_bytes()[:300])
    with pytest.raises(DataError, match=r"short.npz cannot be read"):
        load(str(tmp_path / "short.npz"), preprocess=None)
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match=r"one.npz is not an .npz file: got one array"):
        load(str(tmp_path / "one.npz"), preprocess=None)


# ------------------------------------------------------------------------------------------------------ FILE.py:FACTORY

FACTORIES = """
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3
def pair(): return X, Y
def alone(): return X
def named(): return {"a": X, "b": X}
def official(): return {"train": (X[:40], Y[:40]), "val": (X[40:], Y[40:])}
def unlabelled(): return {"train": X[:20], "search": X[20:40], "holdout": X[40:]}
def loader(): return DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)))
def loaders():
    return tuple(DataLoader(TensorDataset(torch.from_numpy(x))) for x in (X[:20] * 2, X[20:40], X[40:]))
def mixed(): return {"train": (X, Y), "val": loader()}
def nothing(): return None
def four(): return (loader(),) * 4
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORIES)
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("name", "n", "labelled"),
    [
        ("pair", (30, 10, 20), True),
        ("alone", (30, 10, 20), False),
        ("named", (30, 10, 20), False),
        ("official", (40, 10, 10), True),
        ("unlabelled", (20, 20, 20), False),
        ("loader", (30, 10, 20), True),
    ],
)
def test_factories(script: str, name: str, n: tuple[int, ...], labelled: bool) -> None:
    task = load(f"{script}:{name}", preprocess=None)
    assert tuple(task.provenance["n"].values()) == n
    assert task.provenance["labelled"] == labelled
    assert (task.search.read([0]).targets is not None) == labelled


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixed", "mixes DataLoaders and arrays: got loaders in val"),
        ("nothing", "x of all is not an array: got NoneType"),
        ("loaders", "a batch of unknown form: got 1 values"),
        ("four", "too many DataLoaders in what .* returns: got 4"),
        ("absent", "no function 'absent' in .*: wanted one of pair, alone"),
    ],
)
def test_factories_that_are_refused(script: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(f"{script}:{name}", preprocess=None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "no such data: got 'nowhere', wanted digits, an image folder"),
        ("nowhere.npz", "no such data"),
        ("nowhere.parquet", "no such data"),
        ("nowhere.py:make", "no such file: got 'nowhere.py'"),
        ("", "no such data: got ''"),
        (__file__, "data of an unknown kind"),
    ],
)
def test_missing_or_unknown_data(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(spec, preprocess=None)
