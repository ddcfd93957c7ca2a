"""ONNX Runtime as the reference: run a graph as it is, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor


def open_session(graph: bytes, optimize: bool = True, folder: str = "") -> Any:
    """A session that says nothing but what it raises. ``folder``: where the files are that hold the graph's external
    data, if it has any."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """All outputs, as tensors; TypeError if one is a sequence or a string."""
    feed = {entry.name: x.detach().cpu().numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    return [_tensor(value) for value in session.run(None, feed)]


def _tensor(value: Any) -> Tensor:
    if isinstance(value, (list, dict)):
        raise TypeError("a node gives a sequence or a map, not a tensor")
    return torch.from_numpy(np.asarray(value))


def run_graph(model: ModelProto, inputs: Sequence[Tensor], optimize: bool = True) -> list[Tensor]:
    return run_session(open_session(model.SerializeToString(), optimize), inputs)
