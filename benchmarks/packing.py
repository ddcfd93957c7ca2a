"""Deployed files packed without loss: gzip, xz, zstd, Huffman codes alone, and laconic's ``.lac``; and the seconds.

Every coder is given the same ONNX file, in which laconic has stored the weights short already. *Huffman* is what the
file would be if every weight that consists of codes were coded by the better of Huffman and Huffman with runs (Deep
Compression), and all else as in the ``.lac``; *NNCodec* likewise, if these codes together were a bitstream of its own.
Seconds are CPU seconds of one core, after the kernels were compiled; ``compile_seconds`` is what that takes with an
empty cache.

NNCodec needs an environment of its own, whose Python ``$NNCODEC_PYTHON`` names: ``python -m venv nncodec``, then
``nncodec/bin/pip install nncodec``. Without it the benchmark says that it was not run.
"""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow
from torch import nn

from benchmarks import cifar, records, squeezenet_dc
from laconic import data, models
from laconic.core import Array, Context, JsonObject, Recipe, Step, Target
from laconic.pack import container, huffman
from laconic.pack.digits import to_digits
from laconic.pack.hints import layouts
from laconic.pack.onnx_parts import Part, parts
from laconic.pack.tensors import Layout, matrices
from laconic.runtime import onnxruntime
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights

TARGET = Target("onnxruntime")
_NNCODEC = os.environ.get("NNCODEC_PYTHON")
_T = TypeVar("_T")


class File(NamedTuple):
    """A network and the weights that it is deployed with; ``published_bytes`` of a file of its authors."""

    network: str
    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    published_bytes: int | None = None


def _mobilenet(*steps: Step) -> nn.Module:
    weights = records.data("imagenet/mobilenet_v1_0.75_224.safetensors")
    loaded = models.load(f"zoo:mobilenet-v1-0.75-224@{weights}")
    pictures = str(records.data("imagenet/val1300_227.parquet"))
    task = data.load(pictures, preprocess=loaded.preprocess, trainable=False)
    return _applied(loaded.module, task, steps)


def _resnet(*steps: Step) -> nn.Module:
    return _applied(cifar.trained("resnet20-cifar10")[0], cifar.load(), steps)


def _applied(model: nn.Module, task: Any, steps: tuple[Step, ...]) -> nn.Module:
    changed: nn.Module = Recipe(steps).apply(model, task, Context(onnxruntime.traits(TARGET)))[0]
    return changed


_MOBILENET, _RESNET = "MobileNetV1 0.75", "ResNet-20"
FILES = [
    File(_MOBILENET, "float32", _mobilenet, (3, 224, 224)),
    File(_MOBILENET, "INT8", lambda: _mobilenet(Quantize()), (3, 224, 224)),
    File(_MOBILENET, "4-bit weights", lambda: _mobilenet(QuantizeWeights(4)), (3, 224, 224)),
    File(_RESNET, "INT8", lambda: _resnet(Quantize()), (3, 32, 32)),
    File(_RESNET, "4-bit weights, GPTQ", lambda: _resnet(QuantizeWeights(4), GPTQ()), (3, 32, 32)),
    File(_RESNET, "2-bit weights, trained", lambda: cifar.trained("resnet20-w2")[0], (3, 32, 32)),
    File(_RESNET, "ternary weights, trained", lambda: cifar.trained("resnet20-ternary")[0], (3, 32, 32)),
    File(_RESNET, "binary weights, trained", lambda: cifar.trained("resnet20-binary-weights")[0], (3, 32, 32)),
    File(
        "SqueezeNet 1.0", "Deep Compression", squeezenet_dc.load, (3, 227, 227), squeezenet_dc.PUBLISHED_BYTES
    ),
]  # fmt: skip


def main(folder: Path) -> dict[str, Any]:
    rows: list[JsonObject] = []
    skipped: dict[str, str] = {}
    if _NNCODEC is None:
        skipped["NNCodec"] = "$NNCODEC_PYTHON names no Python that has it"
    compile_seconds = _compile_seconds()
    with tempfile.TemporaryDirectory() as scratch:
        for file in FILES:
            try:
                model = file.make()
            except records.Skipped as reason:
                skipped[f"{file.network}, {file.name}"] = str(reason)
                print(f"{file.network}, {file.name}: skipped: {reason}", flush=True)
                continue
            path = Path(scratch) / "model.onnx"
            onnxruntime.deploy(model, {"input": np.zeros((2, *file.input_shape), np.float32)}, path, TARGET)
            rows.append({"network": file.network, "name": file.name, **measured(path.read_bytes())})
            rows[-1]["published_bytes"] = file.published_bytes
            print(rows[-1], flush=True)
    if not rows:
        raise records.Skipped("; ".join(skipped.values()))
    return records.write(folder, "packing", {"skipped": skipped, "compile_seconds": compile_seconds, "rows": rows})


def measured(content: bytes) -> JsonObject:
    """The sizes of an ONNX file by every coder, and the seconds of laconic's."""
    pack_seconds, packed = _timed(lambda: container.pack(content, ".onnx"))
    unpack_seconds, found = _timed(lambda: container.unpack(packed.content))
    assert found.content == content
    return {
        "file_bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
        "xz_bytes": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
        "zstd_bytes": _zstd(content),
        "huffman_bytes": len(packed.content) + _huffman_more(content, packed),
        "nncodec_bytes": _NNCODEC and _by_nncodec(content, packed, _NNCODEC),
        "packed_bytes": len(packed.content),
        "payload_bytes": packed.payload,
        "methods": _methods(packed),
        "pack_seconds": pack_seconds,
        "unpack_seconds": unpack_seconds,
    }


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    """The least CPU seconds of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        found = work()
        seconds.append(time.process_time() - start)
    return min(seconds), found


def _zstd(content: bytes) -> int:
    return len(pyarrow.Codec("zstd", compression_level=22).compress(content, asbytes=True))


def _huffman_more(content: bytes, packed: container.Packed) -> int:
    """How many bytes more the weights that consist of codes would take by Huffman codes."""
    known, coded = layouts(content), {row.name: row.packed for row in packed.rows}
    more = 0
    for part in parts(content):
        name = part.name.decode()
        sizes = []
        for layout in known.get(name, []):
            values = _integers(content, part, layout)
            if values is not None:
                sizes.append(_huffman_bytes(values + layout.digits.origin, layout.digits.origin, layout.digits.base))
        more += min(sizes) - coded[name] if sizes else 0
    return more


def _integers(content: bytes, part: Part, layout: Layout) -> Array | None:
    return to_digits(content[part.at : part.at + part.size], layout.digits)


def _by_nncodec(content: bytes, packed: container.Packed, python: str) -> int | None:
    """The size of the file with the weights that consist of codes in a bitstream of NNCodec; None if there are none."""
    known, coded = layouts(content), {row.name: row.packed for row in packed.rows}
    arrays: list[Array] = []
    ours = 0
    for part in parts(content):
        name = part.name.decode()
        for layout in sorted(known.get(name, []), key=lambda layout: layout.digits.base):
            values = _integers(content, part, layout)
            if values is None or sum(s.rows * s.columns for s in layout.segments) > len(values):
                continue
            ours += coded[name]
            for rows, columns, _ in matrices(part, layout.segments, len(values)):
                arrays.append(values[: rows * columns].reshape(rows, columns))
                values = values[rows * columns :]
            break  # the smallest base takes a weight apart the furthest
    if not arrays:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(Path(scratch) / "integers.npz", *(array for array in arrays if array.size))
        script = Path(__file__).with_name("nncodec_peer.py").resolve()
        said = subprocess.run([python, script, "integers.npz"], cwd=scratch, check=True, capture_output=True, text=True)
    return len(packed.content) - ours + int(said.stdout.split()[-1])


def _huffman_bytes(symbols: Array, zero: int, base: int) -> int:
    """By the better of both, the lengths of the codes in 4 bits each included."""
    runs, counts = huffman.run_counts(symbols, zero, base)
    plain = np.bincount(symbols, minlength=base)
    bits = 4 * base + int((plain * huffman.lengths_of(plain)).sum())
    with_runs = sum(4 * len(c) + int((c * huffman.lengths_of(c)).sum()) for c in (runs, counts))
    return -(-min(bits, with_runs) // 8)


def _methods(packed: container.Packed) -> dict[str, int]:
    """Bytes by the method that coded them."""
    found: dict[str, int] = {}
    for row in packed.rows:
        found[row.method] = found.get(row.method, 0) + row.packed
    return found


def _compile_seconds() -> float:
    """Of a fresh process with an empty cache, less one that finds everything compiled."""
    code = (
        "import numpy as np\n"
        "from onnx import helper, numpy_helper\n"
        "from laconic.pack.container import pack, unpack\n"
        "a = [numpy_helper.from_array(np.ones((8, 8), t), t.__name__) for t in (np.int8, np.float32)]\n"
        "m = helper.make_model(helper.make_graph([], 'g', [], [], a))\n"
        "unpack(pack(m.SerializeToString(), '.onnx').content)"
    )
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            start = time.monotonic()
            subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "NUMBA_CACHE_DIR": cache})
            seconds.append(time.monotonic() - start)
    return seconds[0] - seconds[1]


if __name__ == "__main__":
    main(records.FOLDER)
