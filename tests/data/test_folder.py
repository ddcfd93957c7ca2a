"""Folders of pictures: layouts, classes, corrupt files, sizes, and what stays in memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laconic.core import Preprocess
from laconic.data import apply, load, pictures
from laconic.errors import DataError

PLAIN = Preprocess()
Make = Callable[..., Path]


def test_classes_are_numbered_by_sorted_name_and_pictures_are_pre_processed(make_folder: Make) -> None:
    root = make_folder("set", ("dog", "ape", "10", "2"))
    preprocess = Preprocess(resize=12, crop=(8, 10), mean=(0.1, 0.2, 0.3), std=(2,), layout="NHWC")
    task = load(str(root), preprocess=preprocess, input_shape=(8, 10, 3))
    assert task.labels == ("10", "2", "ape", "dog")
    assert (len(task.train), len(task.search), len(task.holdout)) == (24, 8, 16)
    expected = {
        apply(Image.open(path), preprocess).tobytes(): task.labels.index(path.parent.name)
        for path in root.rglob("*.png")
    }
    for split in (task.train, task.search, task.holdout):
        batch = split.read(range(len(split)))
        assert batch.targets is not None
        for row, label in zip(batch.inputs["input"], batch.targets, strict=True):
            assert expected.pop(row.tobytes()) == label
    assert not expected
    assert task.preprocess == preprocess


@pytest.mark.parametrize("word", ["val", "valid", "validation", "test"])
def test_an_official_split(make_folder: Make, word: str) -> None:
    make_folder("set/train", n=20)
    root = make_folder(f"set/{word}", n=10, start=50).parent
    task = load(str(root), preprocess=PLAIN)
    assert task.provenance["n"] == {"train": 40, "search": 10, "holdout": 10}
    assert task.labels == ("cat", "dog")


def test_train_val_and_test(make_folder: Make) -> None:
    make_folder("set/train", n=20)
    make_folder("set/test", n=6, start=70)
    root = make_folder("set/val", n=4, start=50).parent
    assert load(str(root), preprocess=PLAIN).provenance["n"] == {"train": 40, "search": 8, "holdout": 12}


def test_a_picture_of_train_that_is_in_val_leaves_train(make_folder: Make) -> None:
    train = make_folder("set/train", n=20)
    root = make_folder("set/val", n=4, start=50).parent
    shutil.copy(root / "val/cat/000.png", train / "dog/copy.png")
    task = load(str(root), preprocess=PLAIN)
    assert len(task.train) == 40
    assert task.provenance["left_out_of_train"] == 1


def test_pictures_without_class_folders_are_unlabelled(make_folder: Make) -> None:
    task = load(str(make_folder("set", [""], n=30)), preprocess=PLAIN)
    assert task.search.read([0]).targets is None
    assert (task.metric.name, task.labels, task.provenance["labelled"]) == ("agreement", (), False)


def test_other_files_hidden_files_and_depth(make_folder: Make) -> None:
    root = make_folder("set")
    (root / "cat/Thumbs.db").write_bytes(b"x")
    (root / "cat/._000.png").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "classes.txt").write_text("cat dog")
    (root / "cat/more").mkdir()
    shutil.move(root / "cat/000.png", root / "cat/more/000.PNG")
    task = load(str(root), preprocess=PLAIN)
    assert sum(task.provenance["n"].values()) == 24
    assert task.provenance["corrupt"] == {"count": 0, "names": []}


# ---------------------------------------------------------------------------------------------------- what is refused


def test_images_without_pre_processing(make_folder: Make) -> None:
    with pytest.raises(
        DataError, match="pictures without pre-processing, and the model states none; state it with --preprocess"
    ):
        load(str(make_folder("set")), preprocess=None)


def test_bad_pre_processing_from_python(make_folder: Make) -> None:
    with pytest.raises(DataError, match="mean of the pre-processing: got 2 numbers"):
        load(str(make_folder("set")), preprocess=Preprocess(mean=(1, 2)))


@pytest.mark.parametrize(("preprocess", "shape"), [(PLAIN, "(3, 16, 16)"), (Preprocess(channels="L"), "(1, 16, 16)")])
def test_wrong_size_or_channels(make_folder: Make, preprocess: Preprocess, shape: str) -> None:
    with pytest.raises(DataError, match="wrong image size or channels") as caught:
        load(str(make_folder("set")), preprocess=preprocess, input_shape=(3, 32, 32))
    assert f"got {shape}, wanted (3, 32, 32)" in str(caught.value)


def test_pictures_of_different_sizes(make_folder: Make, make_encoded: Callable[..., bytes]) -> None:
    root = make_folder("set")
    (root / "dog/005.png").write_bytes(make_encoded(0, (20, 16)))
    with pytest.raises(
        DataError, match=r"different sizes: got 16x16 \(cat/000.png\) and 16x20 \(dog/005.png\); add resize"
    ):
        load(str(root), preprocess=PLAIN)
    assert load(str(root), preprocess=Preprocess(resize=16, crop=(16, 16))).search.read([0]).inputs["input"].ndim == 4


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([], "no pictures in "),
        (["cat/", "dog/"], "no pictures in "),
        (["cat/a.png", "dog/"], "classes without pictures in .*: got dog"),
        (["a.png", "dog/a.png"], "pictures and class folders in .*: got a.png beside the folder dog"),
        (["train/cat/a.png"], "has only train, wanted|has only train: wanted train and val"),
        (["val/cat/a.png", "test/cat/a.png"], "has no train: got test, val; or name .*test itself"),
        (["train/cat/a.png", "more/cat/a.png"], "parts of .* are not understood: got more, train"),
        (["train/cat/a.png", "val/a.png"], "class folders in some parts of .* only"),
        (["train/cat/a.png", "val/eel/b.png"], "classes of .*/val that train lacks: got eel"),
    ],
)
def test_layouts_that_are_refused(
    tmp_path: Path, make_encoded: Callable[..., bytes], layout: list[str], message: str
) -> None:
    for number, name in enumerate(layout):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(make_encoded(number))
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "set"), preprocess=PLAIN)


# ------------------------------------------------------------------------------------------------------------- corrupt


@pytest.fixture
def damaged(make_folder: Make, make_encoded: Callable[..., bytes]) -> Path:
    """Of 60 pictures one is empty, one is cut short behind a good header, one is text."""
    root = make_folder("set", n=30)
    (root / "cat/003.png").write_bytes(b"")
    (root / "dog/004.png").write_bytes(make_encoded(1, (16, 16))[:400])
    (root / "dog/007.png").write_text("not a picture")
    return root


def test_corrupt_pictures_are_left_out_counted_and_named(damaged: Path) -> None:
    task = load(str(damaged), preprocess=PLAIN, max_corrupt=0.05)
    assert sum(task.provenance["n"].values()) == 57
    corrupt = task.provenance["corrupt"]
    assert corrupt["count"] == 3
    assert [name.split(":")[0] for name in corrupt["names"]] == ["cat/003.png", "dog/004.png", "dog/007.png"]
    again = load(str(damaged), preprocess=PLAIN, max_corrupt=0.05)
    assert again.fingerprint == task.fingerprint
    for split in (task.train, task.search, task.holdout):
        assert np.isfinite(split.read(range(len(split))).inputs["input"]).all()


def test_too_many_corrupt_pictures_are_refused_by_name(damaged: Path) -> None:
    with pytest.raises(
        DataError, match=r"got [23] of 60: cat/003.png .*dog/007.png .*wanted at most 0.01 of them"
    ) as caught:
        load(str(damaged), preprocess=PLAIN)
    assert "0x" not in str(caught.value)  # no address of an object in memory
    with pytest.raises(DataError, match=r"got 3 of 60: cat/003.png .*dog/004.png .*dog/007.png"):
        load(str(damaged), preprocess=PLAIN, max_corrupt=0.04)


def test_of_a_large_set_a_picture_cut_short_is_named_when_it_is_read(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "WHOLE_BYTES", 1000)
    task = load(str(damaged), preprocess=PLAIN, max_corrupt=0.05)
    assert task.provenance["corrupt"]["count"] == 2
    assert "headers only" in task.provenance["checked"]
    with pytest.raises(DataError, match=r"a picture that cannot be used: got dog/004.png: .*; remove or replace it"):
        [split.read(range(len(split))) for split in (task.train, task.search, task.holdout)]


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_the_limit_is_a_fraction(make_folder: Make, value: float) -> None:
    with pytest.raises(DataError, match="max_corrupt out of range"):
        load(str(make_folder("set")), preprocess=PLAIN, max_corrupt=value)


# -------------------------------------------------------------------------------------------------------------- memory


def test_kept_and_decoded_pictures_are_equal_to_the_bit(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(make_folder("set", n=40))
    preprocess = Preprocess(resize=14, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    kept = load(root, preprocess=preprocess)
    monkeypatch.setattr(pictures, "KEPT_BYTES", 10 * 14 * 14 * 3)  # room for ten
    tight = load(root, preprocess=preprocess)
    monkeypatch.setattr(pictures, "WHOLE_BYTES", 0)
    lazy = load(root, preprocess=preprocess)
    rows = [5, 0, 5, 9, 2, 11]
    for _ in range(2):
        expected = kept.search.read(rows).inputs["input"]
        np.testing.assert_array_equal(tight.search.read(rows).inputs["input"], expected)
        np.testing.assert_array_equal(lazy.search.read(rows).inputs["input"], expected)
    assert kept.fingerprint == tight.fingerprint
    assert kept.fingerprint != lazy.fingerprint
    assert "16 KiB" in lazy.provenance["content_hash"]


def test_pictures_are_decoded_once(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(str(make_folder("set")), preprocess=PLAIN)
    monkeypatch.setattr(pictures, "pixels", lambda *_: pytest.fail("decoded again"))
    assert task.holdout.read(range(len(task.holdout))).inputs["input"].shape == (8, 3, 16, 16)


def test_the_first_failure_stops_the_threads() -> None:
    done = []

    def work(row: int) -> int:
        if row == 5:
            raise ValueError("stop")
        done.append(row)
        time.sleep(0.001)
        return row

    with pytest.raises(ValueError, match="stop"):
        list(pictures.in_threads(work, range(20_000)))
    assert len(done) < 5_000
