"""Where a file differs from its model: the layer that was tampered with is named, and no other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from laconic.core import Recipe, Target
from laconic.runtime import onnxruntime, openvino
from laconic.runtime.difference import first_difference, relative_error
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for

TARGET = Target("onnxruntime")

Deployed = Callable[[str, bool], tuple[nn.Module, Path]]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    made: dict[tuple[str, bool], tuple[nn.Module, Path]] = {}

    def get(name: str, quantized: bool) -> tuple[nn.Module, Path]:
        if (name, quantized) not in made:
            model: nn.Module = network(name)
            if quantized:
                model, _ = Recipe((Quantize(),)).apply(model, task_for(name), context())
            path = tmp_path_factory.mktemp(name) / "model.onnx"
            onnxruntime.deploy(model, inputs_of(name, 3), path, TARGET)
            made[name, quantized] = model, path
        return made[name, quantized]

    return get


def tampered(path: Path, folder: Path, name: str, factor: float = 3.0) -> Path:
    """A copy in which the weight of the node called ``name`` is multiplied, whatever it is stored as."""
    proto = onnx.load(path)
    made = {output: node for node in proto.graph.node for output in node.output}
    (node,) = [n for n in proto.graph.node if n.name == name and n.op_type in ("Conv", "Gemm", "MatMul")]
    value = node.input[1]
    while value in made:  # codes behind their dequantization, transposed or not
        value = made[value].input[1 if made[value].op_type == "DequantizeLinear" else 0]
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == value]
    array = numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(array.astype(np.float32), weight.name))
    onnx.save(proto, folder / "tampered.onnx")
    return folder / "tampered.onnx"


def found(model: nn.Module, path: Path, name: str, tolerance: float = 1e-2) -> str | None:
    return first_difference(model, path, inputs_of(name, 5), tolerance, partial(onnxruntime.open_file, target=TARGET))


@pytest.mark.parametrize(
    ("name", "quantized", "layer", "named"),
    [
        ("plain", False, "conv1", "conv1"),
        ("plain", False, "fc1", "fc1"),
        ("plain", False, "fc2", "fc2"),
        ("plain", True, "conv1", "conv1"),
        ("plain", True, "fc2", "fc2"),
        ("residual", True, "blocks.2.conv1", "blocks.2.conv1"),
        ("tokens", True, "mlp.1/1", "mlp.1"),
        ("twice", False, "again", "again"),
    ],
)
def test_the_layer_that_was_tampered_with(
    name: str, quantized: bool, layer: str, named: str, deployed: Deployed, tmp_path: Path
) -> None:
    model, path = deployed(name, quantized)
    assert found(model, path, name) is None
    text = found(model, tampered(path, tmp_path, layer), name)
    assert text is not None
    assert text.startswith(f"{named} (relative error ")
    assert 0.3 < float(text.split()[-1].rstrip(")")) < 3


def test_the_second_call_of_a_layer(deployed: Deployed, tmp_path: Path) -> None:
    model, path = deployed("twice", False)
    proto = onnx.load(path)
    _, second = [node for node in proto.graph.node if node.op_type == "Conv" and node.name.startswith("again")]
    proto.graph.initializer.append(numpy_helper.from_array(np.full(8, 5, np.float32), "other"))
    second.input[2] = "other"  # the weight is shared by both calls
    onnx.save(proto, tmp_path / "tampered.onnx")
    text = found(model, tmp_path / "tampered.onnx", "twice")
    assert text is not None
    assert text.startswith("again ")


def test_another_runtime_is_asked(deployed: Deployed, tmp_path: Path) -> None:
    model, path = deployed("plain", False)
    bad = tampered(path, tmp_path, "conv2")
    open_file = partial(openvino.open_file, target=Target("openvino"))
    assert first_difference(model, path, inputs_of("plain", 5), 1e-2, open_file) is None
    text = first_difference(model, bad, inputs_of("plain", 5), 1e-2, open_file)
    assert text is not None
    assert text.startswith("conv2 ")


def test_relative_errors() -> None:
    ones = np.ones((2, 2), np.float32)
    assert relative_error(ones, ones) == 0
    assert relative_error(ones * 1.5, ones) == pytest.approx(0.5)
    assert relative_error(ones, ones * 0) == pytest.approx(2.0), "||1|| where nothing was wanted"
    assert relative_error(ones[:1], ones) == np.inf
    assert relative_error(np.array([[np.nan, 1], [1, 1]]), ones) == np.inf
    assert relative_error(np.array([[np.inf, 1], [1, 1]]), ones) == np.inf
