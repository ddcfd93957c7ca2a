"""MNIST's idx files: equal to any picture, to the bit; bad files are refused."""

from __future__ import annotations

import gzip
import lzma
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laconic.core import Preprocess
from laconic.data import apply, load
from laconic.errors import DataError

GREY = Preprocess(channels="L")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 and 20 pictures of 6x5, one file plain, one .gz, two .xz."""
    random = np.random.default_rng(0)
    for word, n in (("train", 40), ("t10k", 20)):
        pictures = idx(random.integers(0, 256, (n, 6, 5), dtype=np.uint8))
        labels = idx(np.arange(n, dtype=np.uint8) % 4)
        (tmp_path / f"{word}-images-idx3-ubyte.xz").write_bytes(lzma.compress(pictures))
        if word == "train":
            (tmp_path / f"{word}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        else:
            (tmp_path / f"{word}-labels-idx1-ubyte").write_bytes(labels)
    return tmp_path


def test_splits_and_labels(folder: Path) -> None:
    task = load(str(folder), preprocess=GREY, input_shape=(1, 6, 5))
    assert task.provenance["n"] == {"train": 40, "search": 10, "holdout": 10}
    assert task.provenance["kind"] == "idx"
    targets = task.train.read(range(40)).targets
    assert targets is not None
    assert np.bincount(targets).tolist() == [10, 10, 10, 10]


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(channels="L", mean=(0.1307,), std=(0.3081,)),
        Preprocess(channels="RGB", mean=(0.1, 0.2, 0.3), layout="NHWC"),
        Preprocess(channels="BGR", divide=3),
        Preprocess(channels="L", layout="flat"),
        Preprocess(channels="L", resize=8, crop=(7, 8)),
    ],
)
def test_equal_to_apply_to_the_bit(folder: Path, preprocess: Preprocess) -> None:
    task = load(str(folder), preprocess=preprocess)
    raw = lzma.decompress((folder / "train-images-idx3-ubyte.xz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(40, 6, 5)
    expected = {apply(Image.fromarray(image), preprocess).tobytes() for image in images}
    for _ in range(2):  # decoded, then kept
        found = task.train.read(range(40)).inputs["input"]
        assert {np.ascontiguousarray(row).tobytes() for row in found} == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t10k-labels-idx1-ubyte", None, "lacks a file: wanted t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte.gz or"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros((20, 1), np.uint8)), "not an idx file: got magic 0x802, wanted 0x801"),
        ("t10k-labels-idx1-ubyte", b"", "not an idx file: got magic 0x0"),
        (
            "t10k-labels-idx1-ubyte",
            idx(np.zeros(20, np.uint8))[:-1],
            r"cut short or empty: got 19 bytes, wanted \[20\]",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(0, np.uint8)), "cut short or empty: got 0 bytes"),
        (
            "t10k-labels-idx1-ubyte",
            idx(np.zeros(19, np.uint8)),
            "different lengths in .*: got 20 pictures and 19 labels",
        ),
        ("t10k-images-idx3-ubyte.xz", b"junk", "cannot be read"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"0" * 99, mtime=0)[:-12], "cannot be read"),
    ],
)
def test_bad_files(folder: Path, name: str, data: bytes | None, message: str) -> None:
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load(str(folder), preprocess=GREY)


def test_pre_processing_is_needed(folder: Path) -> None:
    with pytest.raises(DataError, match="pictures without pre-processing"):
        load(str(folder), preprocess=None)


def test_mnist(public: Callable[[str], str]) -> None:
    path = public("mnist")
    start = time.process_time()
    task = load(path, preprocess=GREY, input_shape=(1, 28, 28))
    assert time.process_time() - start < 3
    assert task.provenance["n"] == {"train": 60000, "search": 5000, "holdout": 5000}
    batch = task.train.read(range(60000))
    assert batch.targets is not None
    assert batch.targets[:3].dtype == np.int64
    assert batch.inputs["input"].mean() == pytest.approx(0.1307, abs=1e-4)
    assert np.bincount(batch.targets)[:3].tolist() == [5923, 6742, 5958]
