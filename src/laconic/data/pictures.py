"""Encoded pictures: checked when they are opened, decoded when they are read, kept as bytes in between.

Up to 256 MiB of encoded pictures are decoded once when the data set is opened, in threads (Pillow releases the
interpreter while it decodes); of more, only the headers are read then, and a picture that proves unusable later stops
the work with its name. Up to 1 GiB of decoded pictures is kept as uint8, after resize and crop, first come first kept;
the arithmetic of the pre-processing is done on every read, so kept and decoded pictures are equal to the bit.

A picture that cannot be used (corrupt, 16-bit, smaller than the crop) is left out, counted and named.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from laconic.core import Batch, JsonObject, Preprocess
from laconic.data.image import check, normalise, pixels, size_after
from laconic.data.source import INPUT, Part, Request, Rows, Source, as_rows, content_hash
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array

T = TypeVar("T")

WHOLE_BYTES = 256 * 2**20
KEPT_BYTES = 2**30
_EDGE_BYTES = 16 * 2**10
_CHUNK = 32
_NAMED = 20


@dataclass(frozen=True)
class Encoded:
    """Pictures as they are stored: what to call each, where its bytes are, its part and, with labels, its class."""

    names: list[str]
    contents: Sequence[Path | bytes]
    parts: Array
    labels: Array | None
    classes: tuple[str, ...] = ()


class Pictures:
    """A split of pictures of one size, decoded on read; ``fetch(row)`` opens one."""

    def __init__(
        self,
        names: Sequence[str],
        fetch: Callable[[int], Image.Image],
        size: tuple[int, int],
        preprocess: Preprocess,
        targets: Array | None,
    ) -> None:
        self._names = names
        self._fetch = fetch
        self._preprocess = preprocess
        self._targets = targets
        self._shape = (*size, 1 if preprocess.channels == "L" else 3)
        room = min(len(names), KEPT_BYTES // int(np.prod(self._shape)))
        self._kept: Array = np.empty((room, *self._shape), np.uint8)  # takes memory only as it is filled
        self._slots: Array = np.full(len(names), -1)
        self._used = 0

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: Sequence[int]) -> Batch:
        rows = as_rows(indices)
        values: Array = np.empty((len(rows), *self._shape), np.uint8)
        kept = self._slots[rows] >= 0
        values[kept] = self._kept[self._slots[rows[kept]]]
        missing = np.flatnonzero(~kept).tolist()
        for at, found in zip(missing, in_threads(lambda at: self.decode(int(rows[at])), missing), strict=True):
            if isinstance(found, str):
                name = self._names[int(rows[at])]
                raise DataError("a picture that cannot be used", got=f"{name}: {found}", fix="remove or replace it")
            values[at] = found
            self.keep(int(rows[at]), found)
        targets = None if self._targets is None else self._targets[rows]
        return Batch({INPUT: normalise(values, self._preprocess)}, targets)

    def name(self, row: int) -> str:
        """What the picture is called."""
        return self._names[row]

    def decode(self, row: int) -> Array | str:
        """The picture's pixels after resize and crop, or why it cannot be used."""
        try:
            with self._fetch(row) as image:
                found = pixels(image, self._preprocess)
        except Exception as fault:
            return _reason(fault)
        return found if found.shape == self._shape else f"decodes to {found.shape}, unlike what its header says"

    def keep(self, row: int, picture: Array) -> None:
        """Keep decoded pixels for later reads, as long as there is room."""
        if self._used < len(self._kept) and self._slots[row] < 0:
            self._kept[self._used] = picture
            self._slots[row] = self._used
            self._used += 1


def required(request: Request) -> Preprocess:
    """The pre-processing, without which pictures mean nothing."""
    if request.preprocess is None:
        raise DataError(
            "pictures without pre-processing, and the model states none",
            fix="state it with --preprocess FILE: channels, resize, crop, divide, mean, std, layout as YAML",
        )
    check(request.preprocess)
    return request.preprocess


def open_pictures(kind: str, encoded: Encoded, request: Request) -> Source:
    """Check all pictures, leave out the unusable ones, and give the others as a source."""
    preprocess = required(request)
    n = len(encoded.names)
    whole = sum(map(_size, encoded.contents)) <= WHOLE_BYTES
    looks = list(in_threads(lambda row: _look(encoded.contents[row], preprocess, whole), range(n)))
    good = {row: look for row, look in enumerate(looks) if not isinstance(look, str)}
    unusable = {row: look for row, look in enumerate(looks) if isinstance(look, str)}
    _limit(unusable, encoded.names, request.max_corrupt)
    size = _one_size({encoded.names[row]: size for row, (size, _) in good.items()})
    pictures = Pictures(encoded.names, lambda row: _open(encoded.contents[row]), size, preprocess, encoded.labels)
    if whole:
        for row, found in zip(good, in_threads(pictures.decode, list(good)), strict=True):
            if isinstance(found, str):
                unusable[row] = found
            else:
                pictures.keep(row, found)
        _limit(unusable, encoded.names, request.max_corrupt)
    parts = {}
    for name in dict.fromkeys(encoded.parts.tolist()):
        rows = np.array([row for row in good if row not in unusable and encoded.parts[row] == name], np.int64)
        labels = None if encoded.labels is None else encoded.labels[rows]
        keys = [good[row][1] for row in rows.tolist()]
        parts[name] = Part(Rows(pictures, rows), labels, keys, content_hash(keys, labels, kind))
    notes = _notes(unusable, encoded.names, whole)
    return Source(kind, parts, encoded.labels is not None, encoded.classes, preprocess, notes=notes)


def in_threads(work: Callable[[int], T], rows: Sequence[int]) -> Iterator[T]:
    """``work`` of each row, in order; the first failure stops all of it."""
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for found in pool.map(lambda chunk: [work(row) for row in chunk], chunks):
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)


def _look(content: Path | bytes, preprocess: Preprocess, whole: bool) -> tuple[tuple[int, int], bytes] | str:
    """The size that a picture will have and a key of its content, or why it cannot be used."""
    try:
        with _open(content) as image:
            return size_after(image, preprocess), _key(content, whole)
    except Exception as fault:  # decoders of broken files raise anything, from SyntaxError to struct.error
        return _reason(fault)


def _open(content: Path | bytes) -> Image.Image:
    if not isinstance(content, Path) and not content:
        raise DataError("no bytes")
    return Image.open(content if isinstance(content, Path) else io.BytesIO(content))


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _key(content: Path | bytes, whole: bool) -> bytes:
    """Equal for equal content; files of a large data set are told apart by size, first and last bytes alone."""
    if not isinstance(content, Path):
        data = content
    elif whole:
        data = content.read_bytes()
    else:
        size = content.stat().st_size
        with content.open("rb") as file:
            first = file.read(_EDGE_BYTES)
            file.seek(max(0, size - _EDGE_BYTES))
            data = b"%d:" % size + first + file.read()
    return hashlib.blake2b(data, digest_size=16).digest()


def _reason(fault: Exception) -> str:
    if isinstance(fault, UnidentifiedImageError):  # its text holds an address in memory
        return "not a picture of a known kind"
    return str(fault) or type(fault).__name__


def _one_size(sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    name, size = next(iter(sizes.items()))
    for other, found in sizes.items():
        if found != size:
            got = f"{size[0]}x{size[1]} ({name}) and {found[0]}x{found[1]} ({other})"
            raise DataError("pictures of different sizes", got=got, fix="add resize and crop to the pre-processing")
    return size


def _limit(unusable: dict[int, str], names: Sequence[str], max_corrupt: float) -> None:
    if len(unusable) > max_corrupt * len(names):
        shown = "; ".join(f"{names[row]} ({unusable[row]})" for row in sorted(unusable)[:3])
        raise DataError(
            "too many pictures that cannot be used",
            got=f"{len(unusable)} of {len(names)}: {shown}",
            wanted=f"at most {max_corrupt:.3g} of them",
            fix="remove or replace them, or raise max_corrupt",
        )


def _notes(unusable: dict[int, str], names: Sequence[str], whole: bool) -> JsonObject:
    named = [f"{names[row]}: {unusable[row]}" for row in sorted(unusable)[:_NAMED]]
    return {
        "corrupt": {"count": len(unusable), "names": named},
        "checked": "every picture was decoded" if whole else "headers only: more than 256 MiB of pictures",
        "content_hash": "all bytes" if whole else "sizes, first and last 16 KiB of each file",
    }
