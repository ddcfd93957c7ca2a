"""A folder of MNIST's idx files: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and ``t10k-*``.

Each may be plain, ``.gz`` or ``.xz``; Fashion-MNIST, KMNIST and others have the same form: a big-endian magic number
(0x00000803 pictures, 0x00000801 labels), the lengths, then bytes. train is the official train, t10k the evaluation
part. The pictures are grey; the pre-processing is applied to them as to any picture.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from laconic.core import Batch, Preprocess, Split
from laconic.data.arrays import row_keys
from laconic.data.image import normalise, size_after
from laconic.data.labels import encode
from laconic.data.pictures import Pictures, required
from laconic.data.source import INPUT, Part, Request, Source, as_rows, content_hash
from laconic.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laconic.core import Array

_PARTS = {"train": "train", "val": "t10k"}
_OPENERS: dict[str, Callable[[Path], Any]] = {"": lambda p: p.open("rb"), ".gz": gzip.open, ".xz": lzma.open}


def matches(spec: str) -> bool:
    return any(Path(spec).glob("*-images-idx3-ubyte*"))


def open_source(spec: str, request: Request) -> Source:
    preprocess = required(request)
    pictures = {part: _read(spec, f"{word}-images-idx3-ubyte", 3) for part, word in _PARTS.items()}
    raw = {part: _read(spec, f"{word}-labels-idx1-ubyte", 1) for part, word in _PARTS.items()}
    labels, _ = encode(raw)
    parts = {}
    for part, values in pictures.items():
        if len(values) != len(labels[part]):
            got = f"{len(values)} pictures and {len(labels[part])} labels"
            raise DataError(f"pictures and labels of different lengths in {spec}, {part}", got=got)
        keys = list(row_keys({INPUT: values}))
        content = content_hash(keys, labels[part], str(values.shape[1:]))
        parts[part] = Part(_split(values, labels[part], preprocess), labels[part], keys, content)
    return Source("idx", parts, True, applied=preprocess, notes={"content_hash": "all bytes"})


class _Plain:
    """Pictures that are neither resized nor cropped: only the arithmetic is left."""

    def __init__(self, values: Array, targets: Array, preprocess: Preprocess) -> None:
        self._values = values
        self._targets = targets
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._values)

    def read(self, indices: Sequence[int]) -> Batch:
        rows = as_rows(indices)
        depth = 1 if self._preprocess.channels == "L" else 3
        values = np.repeat(self._values[rows][..., None], depth, axis=-1)
        return Batch({INPUT: normalise(values, self._preprocess)}, self._targets[rows])


def _split(values: Array, targets: Array, preprocess: Preprocess) -> Split:
    if preprocess.resize is None and preprocess.crop is None:
        return _Plain(values, targets, preprocess)
    size = size_after(Image.fromarray(values[0]), preprocess)
    names = [f"picture {row}" for row in range(len(values))]
    return Pictures(names, lambda row: Image.fromarray(values[row]), size, preprocess, targets)


def _read(folder: str, stem: str, dimensions: int) -> Array:
    path = next((path for suffix in _OPENERS if (path := Path(folder, stem + suffix)).is_file()), None)
    if path is None:
        raise DataError(f"{folder} lacks a file", wanted=f"{stem}, {stem}.gz or {stem}.xz")
    try:
        with _OPENERS[path.suffix](path) as file:
            data = file.read()
    except (OSError, EOFError, lzma.LZMAError) as fault:
        raise DataError(f"{path} cannot be read", got=fault) from fault
    start = 4 + 4 * dimensions
    magic, *shape = struct.unpack(f">{1 + dimensions}i", data[:start].ljust(start, b"\0"))
    if magic != 0x800 + dimensions:
        raise DataError(f"{path} is not an idx file", got=f"magic {magic:#x}", wanted=f"{0x800 + dimensions:#x}")
    if len(data) - start != int(np.prod(shape)) or not len(data) > start:
        raise DataError(f"{path} is cut short or empty", got=f"{len(data) - start} bytes", wanted=f"{shape} of them")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
