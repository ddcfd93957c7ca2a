"""What layers are stored in and computed in: by hand, and against a kernel that is really there or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from laconic.core import Recipe, Target
from laconic.runtime import onnxruntime, openvino
from laconic.runtime.computed import stored_bits, summed
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights, least_squares
from tests.networks import context, inputs_of, network, task_for

RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}


def row(bits: int, kind: str, layers: int) -> dict[str, object]:
    return {"stored_bits": bits, "computed": kind, "layers": layers}


def test_rows_are_counted_and_what_is_not_seen_is_not_assumed() -> None:
    stored = {"a": 4, "b": 4, "c": 8, "d": 4}
    found = summed(stored, {"a": "float32", "b": "float32", "c": "int8", "elsewhere": "int8"})
    assert found == [row(4, "float32", 2), row(4, "unknown", 1), row(8, "int8", 1)]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_integers_and_floats(runtime: str, tmp_path: Path) -> None:
    target, path = Target(runtime), tmp_path / "f.onnx"
    for recipe, wanted in (((), [row(32, "float32", 4)]), ((Quantize(),), [row(8, "int8", 4)])):
        model, _ = Recipe(recipe).apply(network("plain"), task_for("plain", 16), context())
        facts = RUNTIMES[runtime].deploy(model, inputs_of("plain", 3), path, target)
        assert facts["computed"] == wanted


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_alone_where_there_is_a_kernel_and_where_there_is_none(runtime: str, tmp_path: Path) -> None:
    """A convolution has none; a linear layer of some size does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Flatten(), nn.Linear(32 * 36, 256)).eval()
    step = QuantizeWeights()
    step._quantize(model[0], least_squares(model[0].weight.detach().reshape(32, 1, 9), 4))
    step._quantize(model[2], least_squares(model[2].weight.detach().reshape(256, 36, 32), 4))
    example = {"x": np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)}
    facts = RUNTIMES[runtime].deploy(model, example, tmp_path / "f.onnx", Target(runtime))
    assert facts["computed"] == [row(4, "4-bit weights", 1), row(4, "float32", 1)]
    assert 4 in RUNTIMES[runtime].traits(Target(runtime)).weight_kernels
    if runtime == "openvino":  # the constant itself stays as short as it is stored
        nodes = openvino._compiled(tmp_path / "f.onnx", Target(runtime)).get_runtime_model().get_ordered_ops()
        shapes = {
            tuple(node.get_output_shape(0)): node.get_rt_info()["outputPrecisions"].astype(str)
            for node in nodes
            if node.get_rt_info()["layerType"].astype(str) == "Const"
        }
        assert shapes[(256, 32 * 36)] == "u4"


def test_a_codebook_is_as_short_as_its_codes() -> None:
    from onnx import helper, numpy_helper

    held = {"a.weight": np.zeros((8, 1), np.uint16), "table": np.zeros(4, np.float32), "b": np.zeros((2, 2), np.int8)}
    nodes = [
        helper.make_node("Gather", ["table", "a.weight"], ["w"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], name="a"),
        helper.make_node("MatMul", ["y", "b"], ["z"], name="b/1"),
        helper.make_node("MatMul", ["y", "z"], ["u"], name="none"),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", [], [onnx.ValueInfoProto(name="u")], constants)
    assert stored_bits(helper.make_model(graph), {"a.weight": 2.1}) == {"a": 3, "b": 8}
