"""A network that came from an ONNX file: quantized and written back into the file's own graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.fake_quantize import attached, weight_quantizer
from laconic.models import load
from laconic.runtime import onnx_file, onnxruntime, openvino
from laconic.runtime.difference import first_difference, relative_error
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for, tensors

TARGET = Target("onnxruntime")
NAMES = ["residual", "depthwise", "mlp", "twice"]

Imported = Callable[[str, bool], tuple[nn.Module, Path]]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """The network read from a file, quantized or not, and the file that is written of it again."""
    made: dict[tuple[str, bool], tuple[nn.Module, Path]] = {}

    def get(name: str, quantized: bool) -> tuple[nn.Module, Path]:
        if (name, quantized) not in made:
            folder = tmp_path_factory.mktemp(name)
            if (name, not quantized) in made:
                source = made[name, not quantized][1].parent / "source.onnx"
            else:
                source = folder / "source.onnx"
                onnx_file.deploy(network(name), inputs_of(name, 3), source)
            (folder / "source.onnx").write_bytes(source.read_bytes())
            model: Any = load(str(source)).module
            if quantized:
                model, _ = Recipe((Quantize(),)).apply(model, task_for(name), context())
            onnx_file.deploy(model, inputs_of(name, 3), folder / "model.onnx")
            made[name, quantized] = model, folder / "model.onnx"
        return made[name, quantized]

    return get


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantized", [False, True])
def test_the_file_computes_what_the_model_computes(name: str, quantized: bool, imported: Imported) -> None:
    model, path = imported(name, quantized)
    inputs = inputs_of(name, 5, seed=6)
    with torch.no_grad():
        wanted = surgery.call(model, tensors(inputs))
        original = surgery.call(network(name), tensors(inputs))
    for runtime in (onnxruntime, openvino):
        found = runtime.open_file(path, TARGET)(inputs)
        for key, y in zip(found, wanted.values(), strict=True):
            assert relative_error(found[key], y.numpy()) < (1e-2 if quantized else 1e-5)
    for y, first in zip(wanted.values(), original.values(), strict=True):
        assert relative_error(y.numpy(), first.numpy()) < (0.1 if quantized else 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_integers(name: str, imported: Imported) -> None:
    _, path = imported(name, True)
    found = onnxruntime.optimized_operators(path, TARGET)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & set(found), found
    assert found.get("QuantizeLinear", 0) <= 2
    assert found.get("DequantizeLinear", 0) <= 2


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_the_files_codes_are_the_steps_codes(name: str, imported: Imported) -> None:
    model, path = imported(name, True)
    graph = onnx.load(path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    layers = surgery.weighted_layers(model)
    nodes = {node.name: node for node in graph.node if node.op_type in ("Conv", "Gemm")}
    assert set(nodes) == set(layers)
    for layer, node in nodes.items():
        quantizer = weight_quantizer(layers[layer])
        assert quantizer is not None
        codes = values[made[node.input[1]].input[0]]
        wanted = quantizer.codes(layers[layer].parametrizations["weight"].original).detach().numpy()
        assert codes.dtype == np.int8
        assert np.array_equal(codes, wanted)


def test_products_with_the_weight_on_the_other_side(tmp_path: Path) -> None:
    """MatMul and Gemm keep (inputs, outputs): the channels are along axis 1, and differ a thousandfold here."""
    helper, rng = onnx.helper, np.random.default_rng(2)
    sizes = np.logspace(-1.5, 1.5, 8).astype(np.float32)
    constants = {
        "w1": rng.standard_normal((192, 8)).astype(np.float32) * sizes,
        "b1": sizes,
        "w2": rng.standard_normal((8, 4)).astype(np.float32) / sizes[:, None],
        "b2": np.ones(4, np.float32),
        "shape": np.array([-1, 192]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["product"]),
        helper.make_node("Add", ["product", "b1"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["relu"]),
        helper.make_node("Gemm", ["relu", "w2", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    module = load(str(tmp_path / "a.onnx")).module
    model, _ = Recipe((Quantize(),)).apply(module, task_for("plain"), context())
    onnx_file.deploy(model, inputs_of("plain", 3), tmp_path / "b.onnx")
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "b.onnx").graph.initializer}
    (first,) = [value for value in values.values() if value.shape == (192, 8)]
    assert first.dtype == np.int8
    assert np.abs(first).max(0).tolist() == [127] * 8, "every channel uses its whole range"
    inputs = inputs_of("plain", 6)
    found = next(iter(onnxruntime.open_file(tmp_path / "b.onnx", TARGET)(inputs).values()))
    with torch.no_grad():
        wanted = next(iter(surgery.call(model, tensors(inputs)).values())).numpy()
    assert relative_error(found, wanted) < 5e-3


def test_the_layer_that_differs_is_named(imported: Imported) -> None:
    open_file = partial(onnxruntime.open_file, target=TARGET)
    model, path = imported("residual", True)
    assert attached(model) is not None
    assert first_difference(model, path, inputs_of("residual", 4), 1e-2, open_file) is None
    layer = list(surgery.weighted_layers(model))[3]
    with torch.no_grad():
        surgery.weighted_layers(model)[layer].bias += 1.0
    text = first_difference(model, path, inputs_of("residual", 4), 1e-2, open_file)
    assert text is not None
    assert text.startswith(f"{layer} ")
