"""Labels as class numbers.

Whole numbers from 0 are taken as they are (also as floats that are whole); strings become numbers in sorted order, over
all parts together, and their names are kept. Everything else is refused: nothing here guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array


def encode(labels: Mapping[str, Array], classes: tuple[str, ...] = ()) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The labels of each part as int64 class numbers, and the classes' names (() where there are none).

    >>> encode({"all": np.array(["dog", "cat", "dog"])})
    ({'all': array([1, 0, 1])}, ('cat', 'dog'))
    """
    words = {name: value.dtype.kind in "US" for name, value in labels.items()}
    if any(words.values()):
        if not all(words.values()):
            raise DataError("labels that are strings in one part and numbers in another", fix="use one of the two")
        texts = {name: _one_each(value, name).astype(np.str_) for name, value in labels.items()}
        found = np.unique(np.concatenate(list(texts.values())))
        return {name: np.searchsorted(found, value) for name, value in texts.items()}, tuple(map(str, found))
    numbers = {name: whole_numbers(value, name) for name, value in labels.items()}
    for name, value in numbers.items():
        if classes and len(value) and value.max() >= len(classes):
            row = int(value.argmax())
            raise DataError(
                f"a label without a class name in {_place(name, row)}", got=value[row], wanted=f"0..{len(classes) - 1}"
            )
    return numbers, classes


def whole_numbers(value: Array, name: str) -> Array:
    """Class numbers as int64, or the row that is none."""
    _one_each(value, name)
    if value.dtype.kind not in "buif":
        raise DataError("labels of an unknown type", got=value.dtype, wanted="whole numbers from 0, or strings")
    bad = np.flatnonzero((value < 0) | (value != np.floor(value)) | ~np.isfinite(value))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"a label that is no class in {_place(name, row)}",
            got=value[row],
            wanted="whole numbers from 0, or strings",
            fix="for targets that are not classes use laconic.data.from_arrays(..., score=...)",
        )
    return value.astype(np.int64)


def _one_each(value: Array, name: str) -> Array:
    if value.ndim == 2 and value.shape[1] > 1:
        raise DataError("labels with several columns", got=f"shape {value.shape}", fix="for one-hot: y.argmax(1)")
    if value.ndim != 1:
        raise DataError(f"labels of a wrong shape in {name}", got=value.shape, wanted="(n,)", fix="for (n, 1): y[:, 0]")
    return value


def _place(name: str, row: int) -> str:
    return f"row {row}" if name == "all" else f"{name}, row {row}"
