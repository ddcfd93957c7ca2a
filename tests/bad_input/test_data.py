"""Data that cannot be used: each with one line that says what is wrong with it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.bad_input.conftest import Refused
from tests.stories import laconic, onnx_file, pictured, pictures, shop, sized, zoo


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "no samples in all: got x of shape (0, 1, 8, 8)"),
        ("few", "too few samples for three splits: got 4, wanted at least 6"),
        ("twelve_classes", "a label outside the model's classes: got 11, wanted 0..9, since the model has 10 outputs"),
        ("negative", "a label that is no class in row"),
        ("colours", "expected input[2, 3, 8, 8] to have 1 channels, but got 3 channels instead"),
        ("not_finite", "NaN or infinity in x of all: got first in row 3; clean the data"),
        ("whole_numbers", "got input (1, 8, 8) int64; check size, channels and type of the input"),
        ("absent", "no function 'absent' in"),
    ],
)
def test_python_data(refused: Refused, name: str, words: str) -> None:
    assert words in refused(data=shop(name))


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npz", "nowhere.parquet", "", "imagenet"])
def test_data_that_is_not_there(refused: Refused, name: str) -> None:
    assert f"no such data: got {name!r}, wanted digits, an image folder" in refused(data=name)


def test_files_without_samples(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.npz").touch()
    assert "empty.npz cannot be read" in refused(data=tmp_path / "empty.npz")
    (tmp_path / "folder").mkdir()
    assert "no pictures in" in refused(model=zoo(), data=tmp_path / "folder")
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 1, 8, 8), np.float32), y=np.zeros(0, np.int64))
    assert "no samples in all" in refused(data=tmp_path / "none.npz")


def test_pickles_are_refused_with_the_way_to_convert_them(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(pickle.dumps([1]))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for name in ("data.pkl", "objects.npz"):
        said = refused(data=tmp_path / name)
        assert "holds a pickle, which can run any code and is not opened" in said
        assert "numpy.savez(" in said


def test_wrong_image_size_or_channels(refused: Refused, tmp_path: Path) -> None:
    """A model that says what its input is, by name; one that does not is asked."""
    for name, shape in (("wide", "(1, 9, 9)"), ("colours", "(3, 8, 8)")):
        words = f"wrong image size or channels: got {shape}, wanted (1, 8, 8), the model's input"
        assert words in refused(model=onnx_file(), data=shop(name))
        assert words in refused(model=zoo(), data=shop(name))
    path = tmp_path / "p.yaml"
    path.write_text("channels: RGB\nresize: [8, 8]\n")
    assert "wrong image size or channels: got (3, 8, 8)" in refused("--preprocess", path, model=zoo(), data=pictures())
    path.write_text("channels: RGB\nresize: [8, 8]\n")
    assert "to have 1 channels, but got 3" in refused("--preprocess", path, data=pictures())


def test_pictures_without_preprocessing(refused: Refused) -> None:
    said = refused(data=pictures())
    assert "pictures without pre-processing, and the model states none" in said
    assert "--preprocess" in said


def test_a_corrupt_picture_is_named_counted_and_limited(refused: Refused) -> None:
    said = refused("--max-corrupt", "0%", model=zoo(), data=pictures())
    assert "got 1 of 600: 3/0003.png (not a picture of a known kind), wanted at most 0 of them" in said
    found = pictured()  # one in a hundred is allowed unless said otherwise: that run said which it left out
    said = laconic("explain", found, "--json").json["data"]["corrupt"]
    assert said == {"count": 1, "names": ["3/0003.png: not a picture of a known kind"]}


def test_preprocessing_that_cannot_be_read(refused: Refused, tmp_path: Path) -> None:
    assert "no such pre-processing file: got 'nowhere.yaml'" in refused("--preprocess", "nowhere.yaml")
    path = tmp_path / "p.yaml"
    path.write_text("chanels: L\n")
    assert "got 'chanels', wanted one of channels, resize" in refused("--preprocess", path, data=pictures())
    path.write_text("std: 0\n")
    assert "std" in refused("--preprocess", path, data=pictures())


# ------------------------------------------------------------------------------------------- the same in other commands


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (shop("twelve_classes"), "a label outside the model's classes: got 11, wanted 0..9"),
        (shop("wide"), "wrong image size or channels: got (1, 9, 9), wanted (1, 8, 8)"),
        ("nowhere", "no such data: got 'nowhere'"),
    ],
    ids=["label", "size", "nowhere"],
)
def test_eval(data: str, words: str) -> None:
    said = laconic("eval", sized().out, "--data", data, "--json")
    assert (said.code, said.out) == (2, "")
    assert words in said.complaint
    said = laconic("eval", zoo(), "--data", data)
    assert said.code == 2
    assert words in said.complaint


def test_eval_of_models_that_do_not_fit() -> None:
    for name, words in (
        ("larger", "the model does not take these samples"),
        ("Twice", "a model whose output is not what the task needs"),
        ("Branching", "the model cannot be deployed on onnxruntime:cpu"),
        ("broken", "the weights are not finite"),
    ):
        said = laconic("eval", shop(name), "--data", "digits")
        assert said.code == 2
        assert words in said.complaint


def test_run(tmp_path: Path) -> None:
    np.save(tmp_path / "shape.npy", np.zeros((3, 2, 8, 8)))
    np.save(tmp_path / "nan.npy", np.full((1, 8, 8), np.nan))
    np.save(tmp_path / "words.npy", np.full((1, 8, 8), "a"))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.png").write_text("hello")
    good = tmp_path / "good.npy"
    np.save(good, np.zeros((1, 8, 8)))
    for package, path, words in (
        (sized().out, "shape.npy", "shape.npy does not fit the model: got (3, 2, 8, 8), wanted (1, 8, 8)"),
        (sized().out, "nan.npy", "nan.npy is not an array of finite numbers"),
        (sized().out, "words.npy", "words.npy is not an array of finite numbers"),
        (sized().out, "objects.npy", "objects.npy is no .npy file of numbers; write it with numpy.save; no pickles"),
        (sized().out, "text.npy", "text.npy is no .npy file of numbers"),
        (sized().out, "nowhere.npy", "no such input: got"),
        (sized().out, "text.png", "this package does not say how pictures are prepared"),
        (pictured(), "text.png", "text.png is not a picture that can be read"),
        (tmp_path, "good.npy", "not a package: got"),
    ):
        said = laconic("run", package, good, tmp_path / path, "--json")
        assert (said.code, said.out) == (2, "")
        assert words in said.complaint
    assert "--top is too small" in laconic("run", sized().out, good, "--top", "0").complaint
