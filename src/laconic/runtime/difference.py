"""Where a deployed ONNX file begins to differ from the eager model that it was made from."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from laconic import surgery
from laconic.core import Array, Arrays, Predictor


def relative_error(found: Array, wanted: Array) -> float:
    """||found - wanted|| / ||wanted||, infinite where ``found`` is not finite."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    scale = float(np.linalg.norm(wanted)) or 1.0
    return float(np.linalg.norm(found.astype(np.float64) - wanted)) / scale


def first_difference(
    model: nn.Module, path: Path, example: Arrays, tolerance: float, open_file: Callable[[Path], Predictor]
) -> str | None:
    """The first layer whose output differs by more than ``tolerance``, or None where no single layer does.

    ``open_file`` opens a copy of the file that gives the layers' outputs too, in the runtime that is to be judged.
    """
    proto = onnx.load(path)
    nodes: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if node.op_type in _LAYERS:
            nodes.setdefault(node.name.split("/")[0], []).append(node.output[0])
    apart = {node.name for node in proto.graph.node if node.op_type == "BatchNormalization"}
    wanted = _layer_outputs(model, example, apart)
    calls = Counter(name for name, _ in wanted)
    pairs: list[tuple[str, str, Array]] = []
    for (name, call), value in wanted.items():
        per_call, rest = divmod(len(nodes.get(name, [])), calls[name])
        if per_call and not rest:
            pairs.append((name, nodes[name][(call + 1) * per_call - 1], value))
    for output in dict.fromkeys(output for _, output, _ in pairs):
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "layers.onnx"
        onnx.save(proto, copy)
        found = open_file(copy)(example)
    for name, output, value in pairs:
        error = relative_error(found[output], value)
        if error > tolerance:
            return f"{name} (relative error {error:.2g})"
    return None


_LAYERS = frozenset({"Conv", "Gemm", "MatMul", "MatMulNBits", "Add"})  # the Add is a bias: it carries its layer's name


@torch.no_grad()
def _layer_outputs(model: nn.Module, example: Arrays, apart: Collection[str]) -> dict[tuple[str, int], Array]:
    """What each call of a convolution or linear layer gives, in the order in which they run, with the batch norm behind
    it unless that is ``apart`` in the file."""
    outputs: dict[tuple[str, int], Array] = {}
    counts: Counter[str] = Counter()
    made: dict[int, tuple[tuple[str, int], Any]] = {}  # by the tensor's id, which is its own only while it is kept

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if "/conv" in key or "/linear" in key:
            call = (module, counts[module])
            counts[module] += 1
        elif "/batch_norm" in key and id(args[0]) in made and module not in apart:
            call = made[id(args[0])][0]
        else:
            made.pop(id(result), None)  # changed in place
            return result
        made[id(result)] = call, result
        outputs[call] = result.numpy().copy()  # what changes it in place comes later
        return result

    with surgery.watched(model, handler):
        surgery.call(model, {name: torch.as_tensor(x) for name, x in example.items()})
    return outputs
