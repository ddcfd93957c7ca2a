"""The roof of this machine: measured once, with as many threads as the target has, and kept in the user's cache folder.

The peak is that of a product of two 512 x 512 matrices on ONNX Runtime, in float32 and in integers (u8 x s8 -> s32).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from laconic import machine
from laconic.core import Array, JsonObject, Target, digest
from laconic.measure import roofline
from laconic.runtime import runtime_of
from laconic.story.reporter import Reporter

_SIZE = 512
_OPSET, _IR_VERSION = 17, 9


def measured(threads: int, reporter: Reporter) -> JsonObject:
    """Bandwidth and peak of this machine, as JSON: from the cache folder, or measured now and kept there."""
    path = _folder() / f"roofline-{digest([machine.fingerprint(), threads, _SIZE, onnx.__version__])}.json"
    with contextlib.suppress(OSError, ValueError):  # absent, or not written by us: measured again
        known = roofline.Roofline(**json.loads(path.read_text(encoding="utf-8")))
        return known.to_json()
    reporter.progress("measuring the memory's bandwidth, once", 0.0)
    bandwidth = roofline.bandwidth(threads)
    peak = {}
    for precision in ("f32", "int8"):
        reporter.progress(f"measuring the processor's peak in {precision}, once", 0.0)
        peak[precision] = _peak(precision, threads)
    found = roofline.Roofline(bandwidth, peak, threads).to_json()
    with contextlib.suppress(OSError):  # a folder that cannot be written costs a measurement each time, nothing more
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(path)
    return found


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "laconic"


def _peak(precision: str, threads: int) -> float:
    target = Target("onnxruntime", threads=threads)
    random = np.random.default_rng(0)
    if precision == "int8":
        x, w = (random.integers(0, 127, (_SIZE, _SIZE), np.uint8) for _ in range(2))
        w = w.astype(np.int8)
    else:
        x, w = (random.normal(size=(_SIZE, _SIZE)).astype(np.float32) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        onnx.save(_product(x, w), path)
        predictor = runtime_of(target).open_file(path, target)
        return roofline.peak(predictor, {"x": x}, 2 * _SIZE**3)


def _product(x: Array, w: Array) -> ModelProto:
    """x W with a constant W, as a graph of one node."""
    integer = x.dtype == np.uint8
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    value = [helper.make_tensor_value_info(n, k, x.shape) for n, k in zip("xy", kinds, strict=True)]
    node = helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", value[:1], value[1:], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
