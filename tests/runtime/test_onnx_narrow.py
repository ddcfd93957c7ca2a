"""Weights of 2 to 6 bits are packed in the file and computed by the same integer kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.fake_quantize import weight_quantizer
from laconic.runtime import onnx_codes, onnxruntime, openvino
from laconic.runtime.difference import relative_error
from laconic.runtime.onnx_codes import WIDTHS
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.weights import QuantizeWeights
from tests.networks import context, inputs_of, network, task_for, tensors
from tests.opened import opened_weights

TARGET = Target("onnxruntime")
NAME = "residual"
LAYERS = [n for n, x in surgery.weighted_layers(network(NAME)).items() if x.weight.numel() >= 512]


def deployed(step: Quantize, path: Path) -> torch.nn.Module:
    model, _ = Recipe((step,)).apply(network(NAME), task_for(NAME), context())
    onnxruntime.deploy(model, inputs_of(NAME, 3), path, TARGET)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.nn.Module, Path]]:
    folder = tmp_path_factory.mktemp("narrow")
    made = {
        "8": Quantize(),
        "4": Quantize(bits=4),
        "mixed": Quantize(bits=6, layers=dict(zip(LAYERS, (2, 3, 5), strict=False))),
    }
    return {name: (deployed(step, folder / f"{name}.onnx"), folder / f"{name}.onnx") for name, step in made.items()}


def stored_codes(path: Path) -> list[np.ndarray]:
    """What the file's int8 weights are when it is opened: the inputs of DequantizeLinear, computed by ONNX itself."""
    proto = onnx.load(path)
    wanted = [node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear" and len(node.input) > 2]
    decoded = {value for node in proto.graph.node if node.op_type == "Reshape" for value in node.output} & set(wanted)
    for name in sorted(decoded):
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
    found = ReferenceEvaluator(proto).run(sorted(decoded), inputs_of(NAME, 1))
    return [np.asarray(codes) for codes in found]


def test_fewer_bytes_and_the_same_kernels(files: dict[str, tuple[torch.nn.Module, Path]]) -> None:
    kernels = [onnxruntime.optimized_operators(path, TARGET) for _, path in files.values()]
    assert kernels[0] == kernels[1] == kernels[2]
    model, path = files["4"]
    codes = [layer.weight.numel() for layer in surgery.weighted_layers(model).values()]
    large = [n for n in codes if n * (1 - WIDTHS[4].bits / 8) > WIDTHS[4].layer_bytes]
    saved = files["8"][1].stat().st_size - path.stat().st_size
    counted = sum(large) / 2 - WIDTHS[4].layer_bytes * len(large) - WIDTHS[4].once_bytes
    assert counted - 32 <= saved < sum(large) / 2  # equal shapes are stored once
    assert "Convolution:f32" not in openvino.optimized_operators(path, Target("openvino"))


def test_it_is_said_what_is_stored_and_what_computes(tmp_path: Path) -> None:
    model, _ = Recipe((Quantize(bits=3),)).apply(network(NAME), task_for(NAME), context())
    facts = onnxruntime.deploy(model, inputs_of(NAME, 3), tmp_path / "f.onnx", TARGET)
    assert {row["computed"] for row in facts["computed"]} == {"int8"}
    assert {row["stored_bits"]: row["layers"] for row in facts["computed"]}[3] >= len(LAYERS)


@pytest.mark.parametrize("name", ["4", "mixed"])
def test_the_codes_are_the_models_to_the_bit(files: dict[str, tuple[torch.nn.Module, Path]], name: str) -> None:
    model, path = files[name]
    stored = stored_codes(path)
    assert stored
    wanted = []
    for layer in surgery.weighted_layers(model).values():
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        original = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
        wanted.append(quantizer.codes(original).detach().numpy().astype(np.int8))
    for codes in stored:
        assert any(codes.shape == w.shape and np.array_equal(codes, w) for w in wanted)


def test_every_width_takes_the_bits_that_it_says() -> None:
    rng = np.random.default_rng(0)
    for bits, width in WIDTHS.items():
        reach = 2 ** (bits - 1) - 1
        codes = rng.integers(-reach, reach, (64, 512), endpoint=True).astype(np.int8)
        model, before = one_weight(codes), len(one_weight(codes).SerializeToString())
        graph = ir.from_proto(model)
        stored = onnx_codes.store(graph)
        proto = ir.to_proto(graph)
        found = len(proto.SerializeToString())
        assert list(stored.values()) == ([] if bits == 8 else [round(width.bits, 3)])
        counted = width.bits * codes.size / 8 + width.layer_bytes + width.once_bytes
        assert found - before + codes.size == pytest.approx(counted, abs=110)
        (value,) = ReferenceEvaluator(proto).run(None, {})
        assert np.array_equal(value, codes.astype(np.float32))


@pytest.mark.parametrize(("bits", "width"), [(2, 2.0), (3, 3.2)])
def test_weights_alone_take_their_bits_too(bits: int, width: float, tmp_path: Path) -> None:
    """Codes -2^(b-1) .. 2^(b-1) - 1 that are widened, not dequantized, as those of convolutions are: the weights are
    the step's, to the bit, when the file is opened."""
    model, _ = Recipe((QuantizeWeights(bits=bits, exclude=("head",)),)).apply(network(NAME), task_for(NAME), context())
    path = tmp_path / "f.onnx"
    facts = onnxruntime.deploy(model, inputs_of(NAME, 3), path, TARGET)
    assert list(facts["code_bits"].values()) == [width]
    assert {row["computed"] for row in facts["computed"]} == {"float32"}
    held = opened_weights(path)
    for name in LAYERS:
        weight = model.get_submodule(name).weight.detach().numpy()
        assert any(np.array_equal(weight, array) for array in held if array.shape == weight.shape)
    inputs = inputs_of(NAME, 9, seed=3)
    with torch.no_grad():
        wanted = surgery.call(model.eval(), tensors(inputs))["output"].numpy()
    for runtime in (onnxruntime, openvino):
        assert relative_error(runtime.open_file(path, TARGET)(inputs)["output"], wanted) < 1e-5


@pytest.mark.parametrize("opset", [12, 13])
def test_files_too_old_for_it_keep_their_int8(opset: int) -> None:
    graph = ir.from_proto(one_weight(np.ones((64, 512), np.int8), opset))
    assert bool(onnx_codes.store(graph)) == (opset == 13)


def one_weight(codes: np.ndarray, opset: int = 21) -> onnx.ModelProto:
    """A graph that dequantizes one weight."""
    made = [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(np.float32(1), "s")]
    node = onnx.helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, codes.shape)
    graph = onnx.helper.make_graph([node], "g", [], [output], made)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("runtime", [onnxruntime, openvino])
def test_the_file_computes_what_the_model_computes(
    files: dict[str, tuple[torch.nn.Module, Path]], runtime: object
) -> None:
    model, path = files["mixed"]
    inputs = inputs_of(NAME, 9, seed=3)
    with torch.no_grad():
        wanted = surgery.call(model.eval(), tensors(inputs))
    name = runtime.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    found = runtime.open_file(path, Target(name))(inputs)  # type: ignore[attr-defined]
    for key, value in wanted.items():
        assert relative_error(found[key], value.numpy()) < 1e-2
