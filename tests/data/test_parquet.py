"""Parquet files: both forms of pictures, labels, class names, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core import Preprocess
from laconic.data import load
from laconic.errors import DataError, MissingExtraError

Make = Callable[..., Path]
Encode = Callable[..., bytes]


def columns(encode: Encode, n: int = 30, **more: Any) -> dict[str, Any]:
    return {"image": [encode(row) for row in range(n)], "label": [row % 3 for row in range(n)], **more}


def test_bytes_and_structs_give_the_same(make_parquet: Make, make_encoded: Encode) -> None:
    table = columns(make_encoded)
    plain = load(str(make_parquet(table)), preprocess=Preprocess())
    table["image"] = [{"bytes": data, "path": None} for data in table["image"]]
    struct = load(str(make_parquet(table)), preprocess=Preprocess())
    assert plain.fingerprint == struct.fingerprint
    one, other = plain.search.read(range(5)), struct.search.read(range(5))
    np.testing.assert_array_equal(one.inputs["input"], other.inputs["input"])
    np.testing.assert_array_equal(one.targets, other.targets)


def test_class_names(make_parquet: Make, make_encoded: Encode) -> None:
    table = columns(make_encoded)
    assert load(str(make_parquet(table)), preprocess=Preprocess()).labels == ()
    assert load(str(make_parquet(table, {"classes": "a,b,c"})), preprocess=Preprocess()).labels == ("a", "b", "c")
    face = {"info": {"features": {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}}}
    task = load(str(make_parquet(table, {"huggingface": json.dumps(face)})), preprocess=Preprocess())
    assert task.labels == ("x", "y", "z")
    with pytest.raises(DataError, match=r"a label without a class name in row 2: got 2, wanted 0..1"):
        load(str(make_parquet(table, {"classes": "a,b"})), preprocess=Preprocess())


def test_strings_are_classes(make_parquet: Make, make_encoded: Encode) -> None:
    table = {**columns(make_encoded), "label": ["dog", "cat", "eel"] * 10}
    assert load(str(make_parquet(table)), preprocess=Preprocess()).labels == ("cat", "dog", "eel")


def test_a_split_column_is_not_used(make_parquet: Make, make_encoded: Encode) -> None:
    table = columns(make_encoded)
    one = load(str(make_parquet(table)), preprocess=Preprocess())
    other = load(str(make_parquet({**table, "split": ["eval"] * 30})), preprocess=Preprocess())
    assert one.fingerprint == other.fingerprint


def test_without_labels(make_parquet: Make, make_encoded: Encode) -> None:
    task = load(str(make_parquet({"image": columns(make_encoded)["image"]})), preprocess=Preprocess())
    assert task.metric.name == "agreement"


def test_corrupt_and_missing_pictures_are_named_by_row(make_parquet: Make, make_encoded: Encode) -> None:
    table = columns(make_encoded, 40)
    table["image"][7], table["image"][9] = None, b"junk"
    path = str(make_parquet(table))
    task = load(path, preprocess=Preprocess(), max_corrupt=0.1)
    assert task.provenance["corrupt"]["names"] == ["row 7: no bytes", "row 9: not a picture of a known kind"]
    with pytest.raises(DataError, match="got 2 of 40: row 7"):
        load(path, preprocess=Preprocess())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "has no column 'image': got label"),
        ({"image": [1.0] * 30}, "column 'image' of .*: got double, wanted encoded pictures"),
        ({"image": [{"path": "a.png"}] * 30}, "too many pictures that cannot be used: got 30 of 30: row 0 .no bytes."),
        ({"label": [0] * 29 + [None]}, "missing label in .*: got null in row 29"),
        ({"label": [b"\x89PNG"] * 30}, "column 'label' of .*: got binary, wanted class numbers or strings"),
        ({"label": [0.5] * 30}, "a label that is no class in row 0: got 0.5"),
        ({"label": [[0]] * 30}, r"labels of a wrong shape in all: got \(30, 1\)"),
    ],
)
def test_refused(make_parquet: Make, make_encoded: Encode, change: dict[str, Any], message: str) -> None:
    table = {name: value for name, value in {**columns(make_encoded), **change}.items() if value is not None}
    with pytest.raises(DataError, match=message):
        load(str(make_parquet(table)), preprocess=Preprocess())


def test_no_rows(make_parquet: Make) -> None:
    import pyarrow

    table = {"image": pyarrow.array([], pyarrow.binary()), "label": pyarrow.array([], pyarrow.int64())}
    with pytest.raises(DataError, match=r"no samples: got .* has no rows"):
        load(str(make_parquet(table)), preprocess=Preprocess())


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_text("text")
    with pytest.raises(DataError, match=r"cannot be read: .*wanted a parquet file"):
        load(str(tmp_path / "data.parquet"), preprocess=Preprocess())


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.parquet").write_text("text")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laconic\[parquet\]'"):
        load(str(tmp_path / "data.parquet"), preprocess=Preprocess())


def test_imagenet_not_trainable(public: Callable[[str], str]) -> None:
    preprocess = Preprocess(resize=224, divide=127.5, mean=(1.0,), crop=(224, 224))
    path = public("imagenet/val1300_227.parquet")
    task = load(path, preprocess=preprocess, trainable=False, input_shape=(3, 224, 224))
    assert task.provenance["n"] == {"train": 128, "search": 300, "holdout": 872}
    batch = task.calibration_batch()
    assert batch.inputs["input"].shape == (128, 3, 224, 224)
    assert -1 <= batch.inputs["input"].min() < batch.inputs["input"].max() <= 1
    assert batch.targets is not None
    assert len(set(batch.targets.tolist())) > 90


def test_cifar10_has_its_names_and_even_splits(public: Callable[[str], str]) -> None:
    task = load(public("cifar10/test.parquet"), preprocess=Preprocess(), input_shape=(3, 32, 32))
    assert task.provenance["n"] == {"train": 5000, "search": 1666, "holdout": 3334}
    assert task.labels[:2] == ("airplane", "automobile")
    assert task.metric.chance == pytest.approx(0.1, abs=0.002)
