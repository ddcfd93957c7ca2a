"""Pictures as a model's input: :class:`laconic.core.Preprocess` carried out, and its YAML form.

The order is: EXIF orientation applied, alpha dropped, conversion to ``channels``; resize; crop of the centre;
``(pixel / divide - mean) / std`` in float32; layout. Resize and crop are torchvision's on PIL pictures: a single number
is the length of the shorter side and the longer one is cut to whole pixels, bilinear and bicubic are antialiased, the
corner of the crop is rounded half to even. One deviation: a picture smaller than the crop is refused, not padded.

The YAML form, every key optional::

    channels: RGB           # RGB, BGR or L (grey)
    resize: 256             # the shorter side; or [height, width]; left out: no resize
    interpolation: bilinear # nearest, bilinear or bicubic
    crop: [224, 224]        # height, width, from the centre; or one number for a square; left out: no crop
    divide: 255             # pixels are 0..255 before this
    mean: [0.485, 0.456, 0.406]  # one number, or one per channel in the order of `channels`
    std: [0.229, 0.224, 0.225]
    layout: NCHW            # NCHW, NHWC, or flat (NCHW's values in one row)
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image, ImageOps

from laconic.core import Preprocess
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array

_ORIENTATION = 0x0112  # the EXIF tag
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WORDS = {"channels": ("RGB", "BGR", "L"), "interpolation": tuple(_RESAMPLING), "layout": ("NCHW", "NHWC", "flat")}
_KEYS = tuple(field.name for field in fields(Preprocess))

# ------------------------------------------------------------------------------------------------------ to an array


def apply(image: Image.Image, preprocess: Preprocess) -> Array:
    """One picture as the model takes it, float32, without the batch axis."""
    found: Array = normalise(pixels(image, preprocess)[None], preprocess)[0]
    return found


def pixels(image: Image.Image, preprocess: Preprocess) -> Array:
    """Everything that moves or converts pixels: uint8, (height, width, channels)."""
    image = _converted(image, preprocess)
    height, width = _resized(image.width, image.height, preprocess)
    if (width, height) != image.size:
        image = image.resize((width, height), _RESAMPLING[preprocess.interpolation])
    if preprocess.crop is not None:
        height, width = _cropped(height, width, preprocess.crop)
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        image = image.crop((left, top, left + width, top + height))
    array = np.asarray(image)
    if preprocess.channels == "L":
        return array[..., None]
    return array[..., ::-1] if preprocess.channels == "BGR" else array


def normalise(values: Array, preprocess: Preprocess) -> Array:
    """The arithmetic and the layout: uint8 (n, height, width, channels) to float32 in ``layout``."""
    n, height, width, depth = values.shape
    first = preprocess.layout != "NHWC"
    out = np.empty((n, depth, height, width) if first else values.shape, np.float32)
    for channel, table in enumerate(_tables(preprocess, depth)):
        if first:
            out[:, channel] = table[values[..., channel]]
        else:
            out[..., channel] = table[values[..., channel]]
    return out.reshape(n, -1) if preprocess.layout == "flat" else out


def size_after(image: Image.Image, preprocess: Preprocess) -> tuple[int, int]:
    """Height and width that :func:`pixels` would give, from the picture's header alone."""
    # of a PNG without EXIF in its header Pillow would decode all pixels, to look for EXIF behind them
    known = image.format != "PNG" or "exif" in image.info
    sideways = known and image.getexif().get(_ORIENTATION, 1) >= 5
    width, height = reversed(image.size) if sideways else image.size
    size = _resized(width, height, preprocess)
    return size if preprocess.crop is None else _cropped(*size, preprocess.crop)


def _tables(preprocess: Preprocess, depth: int) -> Array:
    """The value of each of the 256 pixels in each channel: the same float32 arithmetic for every reader."""
    pixel = np.arange(256, dtype=np.float32) / np.float32(preprocess.divide)
    mean = np.broadcast_to(np.asarray(preprocess.mean, np.float32), depth)
    std = np.broadcast_to(np.asarray(preprocess.std, np.float32), depth)
    return np.asarray((pixel - mean[:, None]) / std[:, None])


def _converted(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise DataError(
            "a picture of more than 8 bits per channel", got=f"mode {image.mode}", fix="convert it to 8 bit"
        )
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion
    return image.convert("L" if preprocess.channels == "L" else "RGB")


def _resized(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    if preprocess.resize is None:
        return height, width
    if not isinstance(preprocess.resize, int):
        return preprocess.resize
    long = int(preprocess.resize * max(width, height) / min(width, height))
    return (long, preprocess.resize) if width <= height else (preprocess.resize, long)


def _cropped(height: int, width: int, crop: tuple[int, int]) -> tuple[int, int]:
    if crop[0] > height or crop[1] > width:
        raise DataError(
            "a picture smaller than the crop", got=f"{height}x{width}", wanted=f"{crop[0]}x{crop[1]}", fix="add resize"
        )
    return crop


# ---------------------------------------------------------------------------------------------------- to and from YAML


def read_yaml(path: str | Path) -> Preprocess:
    """The pre-processing in a YAML file; whatever it does not understand is refused."""
    try:
        rows = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such pre-processing file", got=repr(str(path))) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise DataError(f"pre-processing that cannot be read in {path}", got=fault, wanted="YAML") from fault
    if not isinstance(rows, dict):
        raise DataError(f"pre-processing in {path} is not a mapping", got=type(rows).__name__, wanted=", ".join(_KEYS))
    for key in rows:
        if key not in _KEYS:
            raise DataError(f"unknown key in {path}", got=repr(key), wanted=f"one of {', '.join(_KEYS)}")
    preprocess = Preprocess(**{key: _plain(key, value) for key, value in rows.items()})
    check(preprocess)
    return preprocess


def to_yaml(preprocess: Preprocess) -> str:
    """The text that :func:`read_yaml` reads back to an equal value."""
    rows = {key: list(value) if isinstance(value, tuple) else value for key, value in preprocess.to_json().items()}
    present = {key: value for key, value in rows.items() if value is not None}
    return yaml.safe_dump(present, sort_keys=False, default_flow_style=None)


def check(preprocess: Preprocess) -> None:
    """Refuse settings that mean nothing."""
    for key, words in _WORDS.items():
        if getattr(preprocess, key) not in words:
            raise DataError(
                f"{key} of the pre-processing", got=repr(getattr(preprocess, key)), wanted=" or ".join(words)
            )
    resize, crop = preprocess.resize, preprocess.crop
    if resize is not None and not (_is_length(resize) or _is_size(resize)):
        raise DataError("resize of the pre-processing", got=resize, wanted="the shorter side, or [height, width]")
    if crop is not None and not _is_size(crop):
        raise DataError("crop of the pre-processing", got=crop, wanted="[height, width]")
    if not _is_number(preprocess.divide) or preprocess.divide <= 0:
        raise DataError("divide of the pre-processing", got=preprocess.divide, wanted="a number above 0")
    depth = 1 if preprocess.channels == "L" else 3
    for key in ("mean", "std"):
        values = getattr(preprocess, key)
        if not isinstance(values, tuple) or not all(_is_number(value) for value in values):
            raise DataError(f"{key} of the pre-processing", got=values, wanted="numbers")
        if len(values) not in (1, depth):
            wanted = f"1 number or {depth}, one per channel of {preprocess.channels}" if depth > 1 else "1 number"
            raise DataError(f"{key} of the pre-processing", got=f"{len(values)} numbers", wanted=wanted)
    if min(preprocess.std) <= 0:
        raise DataError("std of the pre-processing", got=list(preprocess.std), wanted="numbers above 0")


def _plain(key: str, value: Any) -> Any:
    """YAML's lists as the tuples of Preprocess, and its shorthands: one crop for a square, one mean for all."""
    if isinstance(value, list):
        return tuple(value)
    if key == "crop" and _is_length(value):
        return (value, value)
    return (value,) if key in ("mean", "std") else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_size(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_length(side) for side in value)
