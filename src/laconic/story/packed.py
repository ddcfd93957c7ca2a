"""A ``.lac`` file on its own: written from a package, and opened again without it."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from laconic.core import JsonObject
from laconic.errors import FolderError, ModelError
from laconic.pack import container
from laconic.pack.package import PACKED, Package

TARGET = "lac"
"""What ``export --target`` calls it."""


def exported(package: Package, out: Path) -> JsonObject:
    """Write the package's file, packed, to ``out``; it was decoded again, and gave the certified file."""
    if out.is_dir():
        raise FolderError("--out is a folder", got=str(out), wanted="the file to write")
    if out.suffix != PACKED:
        raise FolderError("--out has another ending", got=out.name, wanted=f"a name that ends on {PACKED}")
    source = package.model_path
    found = container.pack_file(source)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f"part-{out.name}")
        part.write_bytes(found.content)
        part.replace(out)
    except OSError as error:
        raise FolderError(f"{out} cannot be written: {error}", fix="give another --out") from error
    return {
        "file": str(out),
        "bytes": len(found.content),
        "payload_bytes": found.payload,
        "structure_bytes": len(found.content) - found.payload,
        "target": TARGET,
        "certified_on": str(package.target),
        "unpacked": {
            "suffix": source.suffix,
            "bytes": source.stat().st_size,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        },
    }


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Package]:
    """A packed model as a package that knows what the file itself says: its inputs, no labels, no pre-processing."""
    found = container.unpack_file(path)
    if found.suffix != ".onnx":
        raise ModelError(
            "only packed ONNX files say what they take", got=f"a {found.suffix} file in {path}", fix="use its package"
        )
    with tempfile.TemporaryDirectory(prefix="laconic-") as scratch:
        model = Path(scratch) / f"model{found.suffix}"
        model.write_bytes(found.content)
        inputs = _inputs(onnx.load(model).graph, path)
        sizes = {"bytes": len(found.content), "packed_bytes": path.stat().st_size, "payload_bytes": found.payload}
        yield Package(
            Path(scratch),
            {
                "file": {"name": model.name, **sizes},
                "target": "onnxruntime",
                "labels": [],
                "preprocess": None,
                "inputs": inputs,
                "input_shape": next(iter(inputs.values()))["shape"],
                "trainable": False,
                "seed": 0,
            },
        )


def _inputs(graph: onnx.GraphProto, path: Path) -> JsonObject:
    """Shape without the batch, and type, of each input."""
    constants = {tensor.name for tensor in graph.initializer}
    found = {}
    for value in graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim][1:]
        if not shape or 0 in shape:
            raise ModelError(f"{path} does not say how large its input {value.name} is", fix="use its package")
        found[value.name] = {"shape": shape, "dtype": str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))}
    if not found:
        raise ModelError(f"{path} holds a model without inputs")
    return found
