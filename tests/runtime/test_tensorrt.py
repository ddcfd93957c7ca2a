"""TensorRT's file: its rules, each broken; the step's codes to the bit; the same outputs; the calls that open it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import DeployError, MissingExtraError, RecipeError
from laconic.fake_quantize import attached, weight_quantizer
from laconic.runtime import onnxruntime, tensorrt
from laconic.runtime.difference import relative_error
from laconic.runtime.tensorrt_file import problems
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights
from tests.networks import context, inputs_of, network, task_for, tensors

TARGET = Target("tensorrt", "cuda")
HERE = Target("onnxruntime")
TRAITS = tensorrt.traits(TARGET)


def quantized(name: str, *steps: Any) -> nn.Module:
    recipe = Recipe(steps or (Quantize(),))
    model: nn.Module = recipe.apply(network(name), task_for(name, 16), context(traits=TRAITS))[0]
    return model


def outputs(model: nn.Module, name: str) -> list[np.ndarray]:
    with torch.no_grad():
        return [y.numpy() for y in surgery.call(model.eval(), tensors(inputs_of(name, 5))).values()]


def worst(found: dict[str, np.ndarray], wanted: list[np.ndarray]) -> float:
    return max(relative_error(y, other) for y, other in zip(found.values(), wanted, strict=True))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, path = quantized("residual"), tmp_path_factory.mktemp("residual") / "f.onnx"
    tensorrt.deploy(model, inputs_of("residual", 3), path, TARGET)
    return model, path


# ------------------------------------------------------------------------------------------------ the step and the file


def test_activations_are_symmetric_and_only_inputs_carry_quantizers(residual: tuple[nn.Module, Path]) -> None:
    quantizers = attached(residual[0])
    assert quantizers is not None
    by_value = quantizers.by_value()
    assert all((q.qmin, q.qmax, int(q.zero_point)) == (-128, 127, 0) for q in by_value.values())
    assert "head/linear#0" not in by_value, "outputs stay float"
    assert not [value for value in by_value if ".conv2/" in value], "an addition is fused to the layer"
    assert "blocks.1.down.0/conv2d#0" in by_value, "the residual branch is rounded"
    assert not [value for value in by_value if "/add" in value], "the relu behind it is"


def test_the_codes_in_the_file_are_the_steps(residual: tuple[nn.Module, Path]) -> None:
    model, path = residual
    graph = onnx.load(path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    layers = surgery.weighted_layers(model)
    found = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            dequantize, layer = makers[node.input[1]], layers[node.name.split("/")[0]]
            quantizer = weight_quantizer(layer)
            assert quantizer is not None
            codes = quantizer.codes(layer.parametrizations["weight"].original).detach().numpy()  # type: ignore[index, union-attr, operator]
            assert values[dequantize.input[0]].dtype == np.int8
            assert np.array_equal(values[dequantize.input[0]], codes)
            assert np.array_equal(values[dequantize.input[1]], quantizer.scale.numpy())
            assert node.input[2] in values, "a bias is a float constant"
            assert values[node.input[2]].dtype == np.float32
            found += 1
    assert found == len(layers)
    quantizers = attached(model)
    assert quantizers is not None
    scales = {float(values[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"}
    assert scales == {float(q.scale) for q in quantizers.by_value().values()}


@pytest.mark.parametrize("name", ["plain", "twice", "tokens"])
def test_the_file_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    model, path = quantized(name), tmp_path / "f.onnx"
    facts = tensorrt.deploy(model, inputs_of(name, 3), path, TARGET)
    assert problems(ir.load(path)) == []
    onnx.checker.check_model(onnx.load(path))
    assert facts["operators"]["QuantizeLinear"] >= 3
    assert worst(tensorrt.simulate(path, TARGET)(inputs_of(name, 5)), outputs(model, name)) < 1e-5


def test_weights_of_few_bits_are_float_in_the_file(tmp_path: Path) -> None:
    model, path = quantized("tokens", QuantizeWeights()), tmp_path / "f.onnx"
    facts = tensorrt.deploy(model, inputs_of("tokens", 3), path, TARGET)
    assert {(row["stored_bits"], row["computed"]) for row in facts["short_weights"]} == {(32, "float32")}
    assert "MatMulNBits" not in facts["operators"]
    assert worst(tensorrt.simulate(path, TARGET)(inputs_of("tokens", 5)), outputs(model, "tokens")) < 1e-5


def test_activations_of_fewer_bits_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"activation_bits of Quantize on a target of symmetric integers: got 6, wanted 8"
    ):
        quantized("plain", Quantize(activation_bits=6))


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse", "entropy"])
def test_every_choice_of_ranges_gives_a_symmetric_grid(ranges: Any) -> None:
    model = quantized("plain", Quantize(ranges=ranges))
    wanted = outputs(network("plain"), "plain")
    assert worst({"y": outputs(model, "plain")[0]}, wanted) < 0.1


# ---------------------------------------------------------------------------------------------------------- translation


def test_a_file_made_for_another_runtime_is_translated(tmp_path: Path) -> None:
    model = Recipe((Quantize(),)).apply(network("residual"), task_for("residual", 16), context())[0]
    onnxruntime.deploy(model, inputs_of("residual", 3), tmp_path / "f.onnx", HERE)
    assert any("uint8" in line for line in problems(ir.load(tmp_path / "f.onnx")))
    assert any("no constant" in line for line in problems(ir.load(tmp_path / "f.onnx"))), "an integer bias"
    tensorrt.translate(tmp_path / "f.onnx", tmp_path / "t.onnx")
    assert problems(ir.load(tmp_path / "t.onnx")) == []
    found = tensorrt.simulate(tmp_path / "t.onnx", TARGET)(inputs_of("residual", 5))
    assert 1e-5 < worst(found, outputs(model, "residual")) < 0.05, "the grid is coarser"


def test_what_has_no_such_form_is_refused(tmp_path: Path) -> None:
    model = Recipe((Quantize(activation_bits=6),)).apply(network("mlp"), task_for("mlp", 16), context())[0]
    onnxruntime.deploy(model, inputs_of("mlp", 3), tmp_path / "f.onnx", HERE)
    with pytest.raises(DeployError, match=r"TensorRT does not read this file: .*activations of fewer than 8 bits"):
        tensorrt.translate(tmp_path / "f.onnx", tmp_path / "t.onnx")
    assert not (tmp_path / "t.onnx").exists()


# ---------------------------------------------------------------------------------------------- every rule, broken once


def _first(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def _replaced(model: onnx.ModelProto, node: onnx.NodeProto, place: int, array: np.ndarray) -> None:
    """Give ``node`` another constant, of its own."""
    model.graph.initializer.append(numpy_helper.from_array(array, "other"))
    node.input[place] = "other"


def _dangling(model: onnx.ModelProto) -> None:
    quantize = _first(model, "QuantizeLinear")
    made = onnx.ValueInfoProto(name=quantize.output[0])
    model.graph.output.append(made)


def _per_channel(model: onnx.ModelProto) -> None:
    node = _first(model, "QuantizeLinear")
    _replaced(model, node, 1, np.full(3, 0.1, np.float32))


def _wrong_axis(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.attribute)
    node.attribute[0].i = 1


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "com.microsoft"


RULES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "zero point": (lambda m: _replaced(m, _first(m, "QuantizeLinear"), 2, np.array(3, np.int8)), "a zero point other"),
    "unsigned": (lambda m: _replaced(m, _first(m, "QuantizeLinear"), 2, np.array(0, np.uint8)), "of type uint8"),
    "scale": (
        lambda m: _replaced(m, _first(m, "QuantizeLinear"), 1, np.array(0, np.float32)),
        "not a positive float32",
    ),
    "pair": (lambda m: _replaced(m, _first(m, "QuantizeLinear"), 1, np.array(2, np.float32)), "has other scales than"),
    "dangling": (_dangling, "is not followed by DequantizeLinear alone"),
    "per channel": (_per_channel, "gives an activation a scale per channel"),
    "axis": (_wrong_axis, "axis 1 of a weight whose output channels are axis 0"),
    "opset": (_opset, "opset 11, not 13 to 24"),
    "foreign": (_foreign, "com.microsoft.Gemm, which is not of the ONNX standard"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_found(rule: str, residual: tuple[nn.Module, Path]) -> None:
    model = onnx.load(residual[1])
    assert problems(ir.from_proto(model)) == []
    breaks, said = RULES[rule]
    breaks(model)
    assert any(said in line for line in problems(ir.from_proto(model)))


# -------------------------------------------------------------------------------------------------------------- opening


def test_without_tensorrt(residual: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"^tensorrt is not installed; pip install 'laconic\[tensorrt\]'$"):
        tensorrt.open_file(residual[1], TARGET)


class _Stand:
    """The calls of TensorRT's Python API that open and run a file, on memory of the CPU, computed by ONNX Runtime."""

    Logger = type("Logger", (), {"INTERNAL_ERROR": 0, "__init__": lambda self, level: None})
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=3)
    BuilderFlag = SimpleNamespace(TF32="TF32")

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.num_inputs = self.num_outputs = self.num_errors = 0

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        return self

    create_builder_config = create_optimization_profile = create_execution_context = lambda self: self

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << 3
        return self

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return self

    def parse_from_file(self, path: str) -> bool:
        if not Path(path).read_bytes():
            self.num_errors = 1
            return False
        self.session = ort.InferenceSession(path)
        self.given, self.made = self.session.get_inputs(), self.session.get_outputs()
        self.num_inputs, self.num_outputs = len(self.given), len(self.made)
        return True

    def get_error(self, i: int) -> Any:
        return SimpleNamespace(desc=lambda: "an operator\nthat it lacks")

    def get_input(self, i: int) -> Any:
        return SimpleNamespace(name=self.given[i].name, shape=(-1, *self.given[i].shape[1:]))

    def get_output(self, i: int) -> Any:
        return SimpleNamespace(name=self.made[i].name)

    def clear_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        assert least == usual == most

    def add_optimization_profile(self, profile: Any) -> None: ...

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        return b"plan"

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self.shapes.values()))[0]
        return self.shapes.get(name) or (batch, *next(x.shape for x in self.made if x.name == name)[1:])

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def nptype(self, kind: str) -> Any:
        return np.float32

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def _memory(self, name: str) -> np.ndarray:
        shape = self.get_tensor_shape(name)
        held = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
        return np.frombuffer(held, np.float32).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        inputs = {x.name: self._memory(x.name) for x in self.given}
        for x, y in zip(self.made, self.session.run(None, inputs), strict=True):
            self._memory(x.name)[:] = y
        return True


def test_the_calls_that_build_and_run_an_engine(tmp_path: Path) -> None:
    path, inputs = tmp_path / "f.onnx", inputs_of("pair", 2)
    tensorrt.deploy(network("pair"), inputs_of("pair", 3), path, TARGET)
    stand = _Stand()
    engine = tensorrt._Engine(stand, path, 2, device="cpu")
    assert (engine.inputs, engine.outputs, engine.batch) == (["image", "extra"], ["output_0", "output_1"], 2)
    assert stand.flags == ["TF32"], "float32 is float32"
    wanted = list(tensorrt.simulate(path, Target("tensorrt", "cuda", batch=2))(inputs).values())
    found = engine.run(inputs)
    engine.run(inputs_of("pair", 2, seed=9))
    assert all(relative_error(y, other) < 1e-6 for y, other in zip(found, wanted, strict=True)), "kept after a call"


def test_a_file_that_the_parser_refuses(tmp_path: Path) -> None:
    (tmp_path / "f.onnx").write_bytes(b"")
    with pytest.raises(DeployError, match=r"^TensorRT cannot open the file: an operator that it lacks$"):
        tensorrt._Engine(_Stand(), tmp_path / "f.onnx", 1, device="cpu")
