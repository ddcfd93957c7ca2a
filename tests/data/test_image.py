"""Pre-processing: the arithmetic by hand, resize and crop against torchvision, the YAML form and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from laconic.core import Preprocess
from laconic.data.image import apply, check, normalise, pixels, read_yaml, size_after, to_yaml
from laconic.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_arithmetic_by_hand() -> None:
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    found = apply(image, Preprocess(divide=10, mean=(1, 2, 3), std=(0.5, 2, 4)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 0, 0], np.float32([0, 0, 0]))
    np.testing.assert_array_equal(
        apply(image, Preprocess(divide=10, std=(0.5, 2, 4)))[:, 0, 0], np.float32([2, 1, 0.75])
    )


def test_mean_and_std_follow_the_stated_channel_order() -> None:
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    found = apply(image, Preprocess(channels="BGR", divide=1, mean=(30, 20, 10), std=(1, 2, 3)))
    np.testing.assert_array_equal(found[:, 0, 0], np.zeros(3))


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (3, 4, 6)), ("NHWC", (4, 6, 3)), ("flat", (72,))])
def test_layouts_hold_the_same_values(
    make_picture: Callable[..., Image.Image], layout: str, shape: tuple[int, ...]
) -> None:
    image = make_picture(0, (6, 4))
    first = apply(image, Preprocess(mean=MEAN, std=STD))
    found = apply(image, Preprocess(mean=MEAN, std=STD, layout=layout))  # type: ignore[arg-type]
    assert found.shape == shape
    expected = first.transpose(1, 2, 0) if layout == "NHWC" else first.reshape(shape)
    np.testing.assert_array_equal(found, expected)


def test_many_pictures_equal_one_to_the_bit(make_picture: Callable[..., Image.Image]) -> None:
    preprocess = Preprocess(resize=20, crop=(16, 12), mean=MEAN, std=STD)
    images = [make_picture(seed, (30, 24)) for seed in range(5)]
    together = normalise(np.stack([pixels(image, preprocess) for image in images]), preprocess)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(apply(image, preprocess), row)


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (33, 33), (31, 90)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(40, (32, 32)), (24, (21, 24)), ((40, 33), (17, 30)), (33, None)])
def test_equals_torchvision(
    make_picture: Callable[..., Image.Image],
    size: tuple[int, int],
    interpolation: str,
    resize: int | tuple[int, int],
    crop: tuple[int, int] | None,
) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    steps = [transforms.Resize(resize, transforms.InterpolationMode(interpolation))]
    steps += [transforms.CenterCrop(crop)] if crop else []
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    image = make_picture(1, size)
    found = apply(image, Preprocess(resize=resize, interpolation=interpolation, crop=crop, mean=MEAN, std=STD))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, transforms.Compose(steps)(image).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", ["RGB", "L"])
def test_other_modes_are_converted(make_picture: Callable[..., Image.Image], mode: str, channels: str) -> None:
    image = make_picture(2).convert("RGBA").convert(mode) if mode == "LA" else make_picture(2).convert(mode)
    found = pixels(image, Preprocess(channels=channels))  # type: ignore[arg-type]
    assert found.shape == (16, 16, 3 if channels == "RGB" else 1)
    np.testing.assert_array_equal(found.squeeze(), np.asarray(image.convert(channels)))


def test_alpha_is_dropped_not_blended() -> None:
    assert apply(Image.new("RGBA", (1, 1), (200, 100, 50, 0)), Preprocess(divide=1)).ravel().tolist() == [200, 100, 50]


def test_palette_with_transparency_needs_no_warning(make_picture: Callable[..., Image.Image]) -> None:
    image = make_picture(3).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert pixels(image, Preprocess()).shape == (16, 16, 3)


def test_exif_orientation_is_applied(make_picture: Callable[..., Image.Image]) -> None:
    image = make_picture(4, (6, 4))
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(pixels(image, Preprocess()), expected)
    assert size_after(image, Preprocess()) == (6, 4)
    for kind in ("PNG", "JPEG"):
        image.save(out := io.BytesIO(), kind, exif=image.getexif())
        with Image.open(out) as opened:
            assert size_after(opened, Preprocess()) == (6, 4)
            assert pixels(opened, Preprocess()).shape == (6, 4, 3)


def test_the_size_is_known_without_decoding(make_encoded: Callable[..., bytes]) -> None:
    for kind in ("PNG", "JPEG"):
        with Image.open(io.BytesIO(make_encoded(0, (64, 48), kind)[:1500])) as image:
            assert size_after(image, Preprocess()) == (48, 64)


def test_sixteen_bits_are_refused() -> None:
    with pytest.raises(DataError, match=r"more than 8 bits.*mode I;16.*convert"):
        pixels(Image.new("I;16", (4, 4)), Preprocess(channels="L"))


def test_a_picture_smaller_than_the_crop_is_refused(make_picture: Callable[..., Image.Image]) -> None:
    with pytest.raises(DataError, match=r"smaller than the crop: got 16x16, wanted 17x16"):
        pixels(make_picture(0), Preprocess(crop=(17, 16)))


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    resize=st.none() | st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_the_size_is_known_from_the_header(width: int, height: int, resize: int | tuple[int, int] | None) -> None:
    image = Image.new("RGB", (width, height))
    preprocess = Preprocess(resize=resize)
    assert pixels(image, preprocess).shape[:2] == size_after(image, preprocess)


# ---------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess("L", 32, "bicubic", (28, 28), 1, (0.1307,), (0.3081,), "flat"),
        Preprocess("BGR", (227, 220), "nearest", None, 127.5, MEAN, STD, "NHWC"),
    ],
)
def test_yaml_round_trip(tmp_path: Path, preprocess: Preprocess) -> None:
    (tmp_path / "p.yaml").write_text(to_yaml(preprocess))
    assert read_yaml(tmp_path / "p.yaml") == preprocess


def test_yaml_shorthands(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("crop: 224\nmean: 0.5\nstd: 2\nresize: [256, 250]\n")
    assert read_yaml(tmp_path / "p.yaml") == Preprocess(resize=(256, 250), crop=(224, 224), mean=(0.5,), std=(2,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 3", "unknown key in .*: got 'size', wanted one of channels, resize"),
        ("channels: RGBA", "channels of .*: got 'RGBA', wanted RGB or BGR or L"),
        ("channels: [RGB]", "channels of .*wanted RGB or BGR or L"),
        ("interpolation: area", "interpolation of .*: got 'area', wanted nearest or"),
        ("layout: CHW", "layout of .*: got 'CHW', wanted NCHW or"),
        ("resize: 0", "resize of .*: got 0, wanted the shorter side"),
        ("resize: [1, 2, 3]", "resize of "),
        ("resize: true", "resize of .*: got True"),
        ("crop: [224]", r"crop of .*wanted \[height, width\]"),
        ("crop: -1", "crop of .*: got -1"),
        ("divide: 0", "divide of .*: got 0, wanted a number above 0"),
        ("mean: [1, 2]", "mean of .*: got 2 numbers, wanted 1 number or 3, one per channel of RGB"),
        ("channels: L\nmean: [1, 2, 3]", "mean of .*: got 3 numbers, wanted 1 number$"),
        ("mean: [1, x, 3]", "mean of .*wanted numbers"),
        ("std: [1, -1, 1]", r"std of .*: got \[1, -1, 1\], wanted numbers above 0"),
        ("std: 0", "std of "),
        ("std: .nan", "std of .*wanted numbers"),
        ("- a", "not a mapping: got list"),
        ("a: [", "cannot be read in .*wanted YAML"),
        ("", "not a mapping: got NoneType"),
    ],
)
def test_yaml_refuses(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_yaml(tmp_path / "p.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such pre-processing file"):
        read_yaml(tmp_path / "p.yaml")


def test_check_takes_python_values_too() -> None:
    check(Preprocess(mean=(1, 2, 3)))
    with pytest.raises(DataError, match="mean of the pre-processing"):
        check(Preprocess(mean=(1, 2)))
