"""Short weights in the ONNX file: the step's codes to the bit, the runtimes' kernels, the bytes, the same outputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.fake_quantize import GroupQuantize, weight_quantizer
from laconic.models import load
from laconic.runtime import onnx_file, onnxruntime, openvino
from laconic.runtime.difference import first_difference, relative_error
from laconic.runtime.export import OPSET
from laconic.steps.quantize.weights import QuantizeWeights
from tests.networks import context, inputs_of, task_for, tensors

RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}
LEVEL = 2e-2  # what rounding activations to 8 bits in every layer may cost


class Layers(nn.Module):
    """Products of two and of three axes, with and without bias, one of them twice; inputs that are no whole groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(192, 96)
        self.twice = nn.Linear(96, 96, bias=False)
        self.ragged = nn.Linear(96, 72)
        self.head = nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.flatten(1)))  # n 96
        x = F.relu(x.reshape(-1, 2, 48).repeat(1, 1, 2))  # n 2 96
        x = self.twice(F.gelu(self.twice(x)))
        return self.head(F.relu(self.ragged(x)).mean(1))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.bn = nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.depthwise(F.relu(self.bn(self.conv(x))))).mean((2, 3)))


def rounded(model: nn.Module, **settings: Any) -> nn.Module:
    return Recipe((QuantizeWeights(**settings),)).apply(model, task_for("mlp", 4), context())[0]


def written(model: nn.Module, path: Path) -> tuple[onnx.GraphProto, list[dict[str, Any]]]:
    facts = onnx_file.deploy(model, inputs_of("mlp", 3), path)
    onnx.checker.check_model(onnx.load(path))
    return onnx.load(path).graph, facts["short_weights"]


def layers(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Layers().eval()


def unpacked(stored: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes (n, blocks, bytes) -> (n, k), by the byte and the bit."""
    found = [[(int(byte) >> shift) % 2**bits for byte in row.ravel() for shift in range(0, 8, bits)] for row in stored]
    return np.array(found)


def outputs(model: nn.Module, n: int = 5) -> np.ndarray:
    with torch.no_grad():
        return model(tensors(inputs_of("mlp", n))["x"]).numpy()


@dataclass(frozen=True)
class Made:
    """A file and the model that it was made from."""

    model: nn.Module
    path: Path
    facts: list[dict[str, Any]]
    bits: int
    group: int

    @property
    def width(self) -> int:
        return {2: 2, 3: 4, 4: 4, 8: 8}[self.bits]


CASES = {"2 bits": (2, 32), "4 bits": (4, 32), "8 bits per output": (8, 0), "3 bits, trained": (3, 32)}


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Training leaves weights beyond the last level, and here scales that float16 does not hold."""
    bits, group = CASES[request.param]
    model = rounded(layers(), bits=bits, group=group)
    if "trained" in request.param:
        for layer in surgery.weighted_layers(model).values():
            with torch.no_grad():
                layer.parametrizations["weight"].original.mul_(1.7)  # type: ignore[index, union-attr, operator]
                quantizer_of(layer).scale.mul_(1.0001)
    path = tmp_path_factory.mktemp("made") / "f.onnx"
    return Made(model, path, written(model, path)[1], bits, group)


def quantizer_of(layer: nn.Module) -> GroupQuantize:
    quantizer = weight_quantizer(layer)
    assert isinstance(quantizer, GroupQuantize)
    return quantizer


def test_the_codes_in_the_file_are_the_steps(made: Made) -> None:
    kernel = "MatMulNBits, accuracy level 4"
    described = {"kind": "linear", "bits": made.bits, "group": made.group, "layers": 4}
    assert made.facts == [{**described, "computed": kernel}]
    graph = onnx.load(made.path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert [node.name.split("/")[0] for node in products] == ["first", "twice", "twice", "ragged", "head"]
    makers = {output: node for node in graph.node for output in node.output}
    for node in products:
        layer = made.model.get_submodule(node.name.split("/")[0])
        codes = quantizer_of(layer).codes(layer.parametrizations["weight"].original).detach().numpy()  # type: ignore[index, union-attr, operator]
        found = unpacked(values[node.input[1]], made.width)
        assert np.array_equal(found[:, : codes.shape[1]] - 2 ** (made.width - 1), codes)
        source = node.input[2]
        while source in makers:
            source = makers[source].input[0]
        assert values[source].dtype == (np.float32 if made.bits == 3 else np.float16)
        assert np.array_equal(values[source].astype(np.float32), quantizer_of(layer).scale.numpy())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_runtimes_compute_what_the_model_does(runtime: str, made: Made) -> None:
    target = Target(runtime)
    found = RUNTIMES[runtime].open_file(made.path, target)(inputs_of("mlp", 5))["output"]
    assert relative_error(found, outputs(made.model)) < LEVEL
    operators = RUNTIMES[runtime].optimized_operators(made.path, target)
    if runtime == "onnxruntime":
        assert operators["MatMulNBits"] == 5
        assert not {"Cast", "Expand", "Gemm", "MatMul", "FusedGemm", "Add", "DequantizeLinear"} & operators.keys()
    elif made.width == 4:
        assert operators["FullyConnected:u4"] >= 3


def test_at_accuracy_level_0_nothing_is_left_but_the_weights(made: Made, tmp_path: Path) -> None:
    proto = onnx.load(made.path)
    for attribute in (a for node in proto.graph.node for a in node.attribute if a.name == "accuracy_level"):
        attribute.i = 0
    onnx.save(proto, tmp_path / "f.onnx")
    found = onnxruntime.open_file(tmp_path / "f.onnx", Target("onnxruntime"))(inputs_of("mlp", 5))["output"]
    assert relative_error(found, outputs(made.model)) < 1e-5


def test_the_layer_where_a_difference_begins_is_named(made: Made) -> None:
    inputs = inputs_of("mlp", 5)

    def open_file(path: Path) -> Any:
        return onnxruntime.open_file(path, Target("onnxruntime"))

    assert first_difference(made.model, made.path, inputs, LEVEL, open_file) is None
    other = copy.deepcopy(made.model)
    with torch.no_grad():
        other.get_submodule("ragged").parametrizations["weight"].original.mul_(0.5)  # type: ignore[index, union-attr, operator]
    found = first_difference(other, made.path, inputs, LEVEL, open_file)
    assert found is not None
    assert found.startswith("ragged ")


def test_the_bytes(made: Made) -> None:
    """Of 192 x 96, 96 x 96, 96 x 72, 72 x 4 weights; 72 inputs are three groups of 32, the last filled up."""
    codes = (192 * 96 + 96 * 96 + 96 * 72 + 96 * 4) * made.width // 8
    groups = 6 * 96 + 3 * 96 + 3 * 72 + 3 * 4 if made.group else 96 + 96 + 72 + 4
    floats = 4 * (96 + 72 + 4) + groups * (4 if made.bits == 3 else 2)
    assert 0 < made.path.stat().st_size - codes - floats < 2500


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    model, path = rounded(Convolutions().eval()), tmp_path_factory.mktemp("made") / "f.onnx"
    return Made(model, path, written(model, path)[1], 4, 32)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_convolutions_are_stored_short_and_computed_in_float(runtime: str, convolutions: Made) -> None:
    rows = {(row["kind"], row["layers"], row["computed"]) for row in convolutions.facts}
    assert rows == {("other", 2, "float32"), ("linear", 1, "MatMulNBits, accuracy level 4")}
    stored = {t.name: t for t in onnx.load(convolutions.path).graph.initializer}
    assert stored["conv.weight"].data_type == onnx.TensorProto.INT4
    layer = convolutions.model.get_submodule("conv")
    codes = quantizer_of(layer).codes(layer.parametrizations["weight"].original).detach().numpy()  # type: ignore[index, union-attr, operator]
    assert np.array_equal(numpy_helper.to_array(stored["conv.weight"]).astype(np.float32), codes)
    found = RUNTIMES[runtime].open_file(convolutions.path, Target(runtime))(inputs_of("mlp", 5))["output"]
    assert relative_error(found, outputs(convolutions.model)) < LEVEL
    if runtime == "onnxruntime":  # the weights are made once, not at every call
        operators = onnxruntime.optimized_operators(convolutions.path, Target(runtime))
        assert not {"Cast", "Mul", "DequantizeLinear"} & operators.keys()


@pytest.mark.parametrize("bits", [5, 8])
def test_codes_that_do_not_fit_4_bits_are_not_cut_off(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = rounded(Convolutions().eval(), bits=bits)
    graph, _ = written(model, tmp_path / "f.onnx")
    assert onnx.TensorProto.INT4 not in {tensor.data_type for tensor in graph.initializer}
    found = onnxruntime.open_file(tmp_path / "f.onnx", Target("onnxruntime"))(inputs_of("mlp", 5))["output"]
    assert relative_error(found, outputs(model)) < LEVEL


@pytest.mark.parametrize("opset", [13, 20])
def test_a_file_from_elsewhere(opset: int, tmp_path: Path) -> None:
    """MatMul, Gemm with its weight either way round, and a convolution, in an opset without 4-bit types."""
    rng = np.random.default_rng(0)
    values = {
        "conv.w": rng.standard_normal((8, 3, 3, 3)),
        "a": rng.standard_normal((8 * 36, 64)) / 16,
        "b": rng.standard_normal((64, 64)) / 8,
        "b.bias": rng.standard_normal(64),
        "c": rng.standard_normal((4, 64)) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.w"], ["h0"]),
        helper.make_node("Flatten", ["h0"], ["h1"]),
        helper.make_node("MatMul", ["h1", "a"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("Gemm", ["h3", "b", "b.bias"], ["h4"]),
        helper.make_node("Relu", ["h4"], ["h5"]),
        helper.make_node("Gemm", ["h5", "c"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *shape])
        for name, shape in (("x", (3, 8, 8)), ("y", (4,)))
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), tmp_path / "m.onnx"
    )
    model = rounded(load(str(tmp_path / "m.onnx")).module)
    graph_made, facts = written(model, tmp_path / "f.onnx")
    assert [node.op_type for node in graph_made.node if node.op_type in ("Conv", "MatMulNBits", "MatMul", "Gemm")] == [
        *("Conv", "MatMulNBits", "MatMulNBits", "MatMulNBits")
    ]
    assert {row["kind"] for row in facts} == {"linear", "other"}
    kinds = {tensor.name: tensor.data_type for tensor in graph_made.initializer}
    assert kinds["conv.w"] == (onnx.TensorProto.INT8 if opset < 20 else onnx.TensorProto.INT4)
    found = onnxruntime.open_file(tmp_path / "f.onnx", Target("onnxruntime"))(inputs_of("mlp", 5))["y"]
    assert relative_error(found, outputs(model)) < LEVEL


def test_other_files_are_as_they_were(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    facts = onnx_file.deploy(model, inputs_of("mlp", 3), tmp_path / "f.onnx")
    assert "short_weights" not in facts
    assert {entry.domain: entry.version for entry in onnx.load(tmp_path / "f.onnx").opset_import} == {"": OPSET}
