"""``FILE.parquet``: a column ``image`` of encoded pictures and, with labels, a column ``label``.

A picture is its bytes, or a struct with the field ``bytes`` as Hugging Face's data sets write it. Class names are taken
from the schema's metadata: ``classes``, joined by commas, or Hugging Face's ``ClassLabel``. Other columns are not used,
``split`` among them: what its words mean differs from file to file, so the rule of :mod:`laconic.data.splits` applies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from laconic.data.labels import encode
from laconic.data.pictures import Encoded, open_pictures, required
from laconic.data.source import Request, Source
from laconic.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from laconic.core import Array


def matches(spec: str) -> bool:
    return Path(spec).suffix == ".parquet"


def open_source(spec: str, request: Request) -> Source:
    required(request)
    table = _read(spec)
    if not table.num_rows:
        raise DataError("no samples", got=f"{spec} has no rows")
    contents = _bytes(table["image"], spec)
    names = [f"row {row}" for row in range(len(contents))]
    labels, classes = None, _classes(table.schema.metadata or {})
    if "label" in table.column_names:
        encoded, classes = encode({"all": _labels(table["label"], spec)}, classes)
        labels = encoded["all"]
    parts = np.full(len(contents), "all")
    return open_pictures("parquet", Encoded(names, contents, parts, labels, classes), request)


def _read(spec: str) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as fault:
        raise MissingExtraError("pyarrow", "parquet") from fault
    try:
        columns = parquet.read_schema(spec).names
        if "image" not in columns:
            raise DataError(f"{spec} has no column 'image'", got=", ".join(columns))
        return parquet.read_table(spec, columns=[name for name in ("image", "label") if name in columns])
    except (pyarrow.ArrowException, OSError) as fault:
        raise DataError(f"{spec} cannot be read", got=fault, wanted="a parquet file") from fault


def _bytes(column: Any, spec: str) -> list[bytes]:
    values = column.to_pylist()
    kinds = {type(value) for value in values if value is not None}
    if kinds == {dict}:
        values = [None if value is None else value.get("bytes") for value in values]
        kinds = {type(value) for value in values if value is not None}
    if kinds - {bytes}:
        raise DataError(
            f"column 'image' of {spec}", got=column.type, wanted="encoded pictures: bytes, or a struct with bytes"
        )
    return [value or b"" for value in values]


def _labels(column: Any, spec: str) -> Array:
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"a missing label in {spec}", got=f"null in row {row}", fix="label or remove that row")
    values = np.asarray(column.to_pylist(), dtype=None)
    if values.dtype.kind == "S":  # binary: a mask or another picture, not a class
        raise DataError(f"column 'label' of {spec}", got=column.type, wanted="class numbers or strings")
    return values


def _classes(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    if b"classes" in metadata:
        return tuple(metadata[b"classes"].decode().split(","))
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(features.get("label", {}).get("names", ()))
