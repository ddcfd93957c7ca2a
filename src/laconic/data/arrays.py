"""Arrays that are ready for the model: checked once, then read by index.

``x`` is one array or a mapping of names to arrays, axis 0 the sample in each; the input of a mapping of one is renamed
to ``input``. float64, numpy's default, becomes float32, the type of models; other types stay as they are. NaN and
infinity are refused, and so is everything that is not numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from laconic.core import Batch, JsonObject
from laconic.data.labels import encode
from laconic.data.source import INPUT, Part, Request, Source, as_rows, content_hash
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array


class Stacked:
    """A split of arrays in memory."""

    def __init__(self, inputs: dict[str, Array], targets: Array | None) -> None:
        self._inputs = inputs
        self._targets = targets

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    def read(self, indices: Sequence[int]) -> Batch:
        rows = as_rows(indices)
        targets = None if self._targets is None else self._targets[rows]
        return Batch({name: value[rows] for name, value in self._inputs.items()}, targets)


def array_source(
    kind: str,
    given: Mapping[str, tuple[Any, Any]],
    request: Request,
    classes: tuple[str, ...] = (),
    notes: JsonObject | None = None,
) -> Source:
    """A source from ``{part: (x, y)}``; ``y`` is None in all parts or in none."""
    inputs = {name: inputs_of(x, name) for name, (x, _) in given.items()}
    raw = {name: as_array(y, f"y of {name}") for name, (_, y) in given.items() if y is not None}
    if raw and len(raw) != len(given):
        lacking = ", ".join(name for name in given if name not in raw)
        raise DataError("labels in some parts only", got=f"none in {lacking}", fix="give y everywhere or nowhere")
    if not raw and not request.classify:
        raise DataError("a score of your own needs targets", got="no y")
    for name, found in raw.items():
        n = len(next(iter(inputs[name].values())))
        if found.ndim == 0 or len(found) != n:
            got = f"{n} samples and {len(found) if found.ndim else 'one'} labels"
            raise DataError(f"x and y of different lengths in {name}", got=got, wanted="one label per sample")
    _same_form(inputs)
    targets, classes = encode(raw, classes) if request.classify else (raw, ())
    parts = {}
    for name, values in inputs.items():
        keys = list(row_keys(values))
        y: Array | None = targets.get(name)
        form = repr({key: (value.shape[1:], str(value.dtype)) for key, value in values.items()})
        labels = y if request.classify else None
        parts[name] = Part(Stacked(values, y), labels, keys, content_hash(keys, y, form))
    return Source(kind, parts, bool(raw), classes, notes=notes or {})


def as_array(value: Any, what: str) -> Array:
    """A numpy array or torch tensor as numpy; lists and objects are refused."""
    if hasattr(value, "detach"):  # a torch tensor, on whatever device
        value = value.detach().cpu()
    if not hasattr(value, "__array__"):
        raise DataError(f"{what} is not an array", got=type(value).__name__, wanted="a numpy array or a torch tensor")
    array = np.asarray(value)
    if array.dtype.kind == "O":
        raise DataError(
            f"{what} holds Python objects", got="dtype object", wanted="numbers", fix="make all samples of one shape"
        )
    return array


def inputs_of(x: Any, name: str) -> dict[str, Array]:
    """Named arrays from what the caller calls ``x``, checked."""
    if not isinstance(x, Mapping):
        x = {INPUT: x}
    found = {str(key): as_array(value, f"x of {name}") for key, value in x.items()}
    if not found:
        raise DataError(f"no inputs in {name}", got="an empty mapping")
    if len(found) == 1:
        found = {INPUT: next(iter(found.values()))}
    found = {key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in found.items()}
    for array in found.values():
        if array.ndim == 0 or not array.size:
            raise DataError(f"no samples in {name}", got=f"x of shape {array.shape}")
        if array.dtype.kind not in "buif":
            raise DataError(f"x of {name} is not numbers", got=f"dtype {array.dtype}", wanted="float32 or integers")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))[0])
            raise DataError(f"NaN or infinity in x of {name}", got=f"first in row {row}", fix="clean the data")
    lengths = {key: len(array) for key, array in found.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"inputs of different lengths in {name}", got=lengths, wanted="one row per sample in each")
    return found


def _same_form(inputs: Mapping[str, dict[str, Array]]) -> None:
    """Every part must hold the same inputs of the same shape."""
    forms = {name: {key: value.shape[1:] for key, value in values.items()} for name, values in inputs.items()}
    first, *others = forms
    for other in others:
        if forms[other] != forms[first]:
            got = f"{forms[first]} in {first} and {forms[other]} in {other}"
            raise DataError("parts whose inputs differ", got=got, wanted="the same names and shapes")


def row_keys(values: Mapping[str, Array]) -> Iterator[bytes]:
    """A hash of each sample's bytes."""
    flat = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in values.values()]
    for rows in zip(*flat, strict=True):
        found = hashlib.blake2b(digest_size=16)
        for row in rows:
            found.update(row)
        yield found.digest()
