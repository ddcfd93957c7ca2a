"""What ONNX Runtime makes of a file when it opens it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

DECODING = {"Cast", "Div", "Gather", "Mod", "Mul"}
"""The operators by which files give their weights back."""


def opened_weights(path: Path) -> list[np.ndarray]:
    """The constants that ONNX Runtime holds when it has computed all of them, before it fuses operators."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path.with_suffix(".opened.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    assert not DECODING & {node.op_type for node in graph.node}
    return [numpy_helper.to_array(tensor) for tensor in graph.initializer]
