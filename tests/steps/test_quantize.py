"""INT8 after training: what the step says is what the file holds, to the bit; and no layer spoils it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Recipe, Target, Traits
from laconic.errors import DataError, RecipeError, TrialError
from laconic.fake_quantize import attached, weight_quantizer
from laconic.models import load
from laconic.runtime import onnxruntime, openvino
from laconic.runtime.difference import relative_error
from laconic.steps import STEPS
from laconic.steps.factorize.svd import LowRank
from laconic.steps.quantize.post_training import Quantize
from tests.networks import INTEGER, NETWORKS, Rows, context, inputs_of, network, task_for, tensors

TARGET = Target("onnxruntime")


def quantize(
    model: nn.Module, name: str = "plain", settings: Quantize | None = None, given: Context | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    recipe = Recipe((settings or Quantize(),))
    changed, (facts,) = recipe.apply(model, task_for(name), given or context())
    return changed, facts


def outputs(model: nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {key: y.numpy() for key, y in surgery.call(model, tensors(inputs)).items()}


def error(model: nn.Module, other: nn.Module, name: str) -> float:
    """How far apart the first outputs of two models are on unseen samples."""
    inputs = inputs_of(name, 64, seed=77)
    found, wanted = outputs(model, inputs), outputs(other, inputs)
    return max(relative_error(found[key], y) for key, y in wanted.items())


class File:
    """An ONNX file taken apart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.graph = onnx.load(path).graph
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.made = {name: node for node in self.graph.node for name in node.output}

    def stored(self, value: str) -> tuple[np.ndarray, np.ndarray]:
        """The codes and the scale of a value that is dequantized from a constant."""
        node = self.source(value)
        assert node is not None
        return self.values[node.input[0]], self.values[node.input[1]]

    def source(self, value: str) -> onnx.NodeProto | None:
        """The node that dequantizes a constant into ``value``; a layer over tokens has it transposed."""
        node = self.made.get(value)
        if node is not None and node.op_type == "Transpose":
            node = self.made.get(node.input[0])
        return (
            node if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in self.values else None
        )

    def scale(self, value: str) -> np.ndarray:
        return self.values[self.made[value].input[1]]

    def layers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))


def deployed(model: nn.Module, inputs: dict[str, np.ndarray], folder: Path) -> File:
    path = folder / "model.onnx"
    onnxruntime.deploy(model, inputs, path, TARGET)
    return File(path)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, dict[str, Any], File]]:
    """The quantized network of a name, the step's facts, and its file; each is made once."""
    made: dict[str, tuple[nn.Module, dict[str, Any], File]] = {}

    def get(name: str) -> tuple[nn.Module, dict[str, Any], File]:
        if name not in made:
            model, facts = quantize(network(name), name)
            made[name] = model, facts, deployed(model, inputs_of(name, 3), tmp_path_factory.mktemp(name))
        return made[name]

    return get


# ------------------------------------------------------------------------------------------------- what the file holds


@pytest.mark.parametrize("name", NETWORKS)
def test_the_files_codes_are_the_steps_codes(name: str, everything: Callable[[str], Any]) -> None:
    model, facts, file = everything(name)
    layers = surgery.weighted_layers(model)
    nodes = [node for node in file.layers() if file.source(node.input[1])]
    assert {node.name.split("/")[0] for node in nodes} == {layer for layer, _ in facts["layers"]}
    for node in nodes:
        layer = layers[node.name.split("/")[0]]
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        codes, scale = file.stored(node.input[1])
        wanted = quantizer.codes(layer.parametrizations["weight"].original).detach()
        assert codes.dtype == np.int8
        assert np.array_equal(codes, wanted.numpy().reshape(codes.shape)), (
            "a final 1x1 convolution is stored as a matrix"
        )
        assert np.array_equal(scale, quantizer.scale.numpy())
        assert np.abs(codes.reshape(codes.shape[0], -1)).max() == 127


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "mlp", "twice"])
def test_biases_are_whole_numbers_of_the_products_scale(name: str, everything: Callable[[str], Any]) -> None:
    model, _, file = everything(name)
    layers, count = surgery.weighted_layers(model), 0
    for node in file.layers():
        bias = layers[node.name.split("/")[0]].bias
        assert bias is not None
        assert len(node.input) == 3, "bias correction gave every layer one"
        codes, scale = file.stored(node.input[2])
        product = file.scale(node.input[0]) * file.scale(node.input[1])
        assert codes.dtype == np.int32
        assert np.array_equal(scale, product.astype(np.float32))
        assert np.array_equal(codes, np.rint(bias.detach().numpy().astype(np.float64) / scale))
        count += 1
    assert count >= len(layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_files_activations_have_the_steps_scales(name: str, everything: Callable[[str], Any]) -> None:
    model, _, file = everything(name)
    quantizers = attached(model)
    assert quantizers is not None
    wanted = {(float(q.scale), int(q.zero_point)) for q in quantizers.quantizers}
    nodes = [node for node in file.graph.node if node.op_type == "QuantizeLinear"]
    found = {(float(file.values[n.input[1]]), int(file.values[n.input[2]])) for n in nodes}
    assert found == wanted
    assert all(file.values[node.input[2]].dtype == np.uint8 for node in nodes)


def test_nothing_is_stored_twice(everything: Callable[[str], Any]) -> None:
    for name in ("plain", "residual", "twice"):
        _, _, file = everything(name)
        stored = [(a.dtype.str, a.shape, a.tobytes()) for a in file.values.values()]
        assert len(stored) == len(set(stored))
        assert not file.graph.doc_string
        assert not any(node.metadata_props or node.doc_string for node in file.graph.node)
        weights = [a for a in file.values.values() if a.ndim > 1]
        assert all(a.dtype == np.int8 for a in weights if a.size > 8)


def test_behind_relu6_the_range_ends_at_six(everything: Callable[[str], Any]) -> None:
    model, _, _ = everything("depthwise")
    quantizers = attached(model)
    assert quantizers is not None
    behind = [q for value, q in quantizers.by_value().items() if "relu6" in value]
    assert len(behind) == 3
    for quantizer in behind:
        assert float(quantizer.scale) <= np.float32(6 / 255)
        assert int(quantizer.zero_point) == 0


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_ranges_never_leave_what_an_activation_lets_through(ranges: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(F.relu6(self.a(x * 1e3)))))

    model, _ = quantize(Net(), settings=Quantize(ranges=ranges))
    quantizers = attached(model)
    assert quantizers is not None
    six, positive = (quantizers.by_value()[value] for value in ("/relu6#0", "/relu#0"))
    assert float(six.scale) == np.float32(6 / 255)
    assert (int(six.zero_point), int(positive.zero_point)) == (0, 0)


def test_an_activation_that_is_always_at_its_bound_stays_within_it() -> None:
    model = network("depthwise")
    with torch.no_grad():
        model.get_submodule("conv_bn").bias.fill_(1e3)
    changed, _ = quantize(model, "depthwise")
    quantizers = attached(changed)
    assert quantizers is not None
    quantizer = quantizers.by_value()["/relu6#0"]
    assert float(quantizer.scale) == np.float32(6 / 255)
    assert int(quantizer.zero_point) == 0


# ------------------------------------------------------------------------------------------------------- the fast path

FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "GlobalAveragePool"}


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The zoo's smallest MobileNetV1, quantized for ONNX Runtime on four samples, and its file."""
    loaded = load("zoo:mobilenet-v1-0.25-128")
    assert loaded.input_shape is not None
    x = np.random.default_rng(0).standard_normal((4, *loaded.input_shape)).astype(np.float32)
    task = task_for("plain")
    object.__setattr__(task, "train", Rows({"x": x}, None))
    given = context(traits=onnxruntime.traits(TARGET))
    with torch.no_grad():  # statistics as training leaves them: else 28 random layers let nothing through
        for norm in (m for m in loaded.module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0
        loaded.module.train()(torch.as_tensor(x))
    model, _ = Recipe((Quantize(),)).apply(loaded.module.eval(), task, given)
    path = tmp_path_factory.mktemp("mobile") / "model.onnx"
    onnxruntime.deploy(model, {"x": x}, path, TARGET)
    return model, path


def integer_in_onnxruntime(path: Path, layers: int) -> None:
    found = onnxruntime.optimized_operators(path, TARGET)
    assert not FLOAT_KERNELS & set(found), found
    assert sum(n for name, n in found.items() if name in ("QLinearConv", "QGemm", "QLinearMatMul")) == layers
    assert found.get("QuantizeLinear", 0) <= 2
    assert found.get("DequantizeLinear", 0) <= 2


def test_mobilenet_runs_in_integers(mobile: tuple[nn.Module, Path]) -> None:
    model, path = mobile
    integer_in_onnxruntime(path, len(surgery.weighted_layers(model)))
    found = openvino.optimized_operators(path, Target("openvino"))
    products = {name: n for name, n in found.items() if name.split(":")[0] in ("Convolution", "FullyConnected")}
    assert products == {"Convolution:u8": 27, "FullyConnected:u8": 1}


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "mlp", "twice"])
def test_networks_run_in_integers(name: str, everything: Callable[[str], Any]) -> None:
    _, _, file = everything(name)
    integer_in_onnxruntime(file.path, sum(1 for _ in file.layers()))
    found = openvino.optimized_operators(file.path, Target("openvino"))
    assert "Convolution:f32" not in found
    assert "FullyConnected:f32" not in found


def test_a_float_network_is_told_from_an_integer_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnxruntime.deploy(network("residual"), inputs_of("residual", 3), path, TARGET)
    with pytest.raises(AssertionError):
        integer_in_onnxruntime(path, 9)
    assert "Convolution:f32" in openvino.optimized_operators(path, Target("openvino"))


# ------------------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_the_outputs_stay_close(name: str, ranges: Any) -> None:
    model, _ = quantize(network(name), name, Quantize(ranges=ranges))
    assert 0 < error(model, network(name), name) < 0.1, "samples that it has not seen"
    inputs = task_for(name).calibration_batch().inputs
    found, wanted = outputs(model, inputs), outputs(network(name), inputs)
    assert max(relative_error(found[key], y) for key, y in wanted.items()) < 0.03


def channel_means(model: nn.Module, name: str, fused: dict[str, str]) -> dict[str, Tensor]:
    """Per layer the channel means behind its activation, before they are rounded."""
    means: dict[str, Tensor] = {}
    inputs = tensors(task_for(name).calibration_batch().inputs)

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if key in fused:
            dims = [d for d in range(result.dim()) if d != (1 if "conv" in fused[key] else result.dim() - 1)]
            means[fused[key]] = result.mean(dims)
        return result

    with torch.no_grad(), surgery.watched(model, handler):
        surgery.call(model, inputs)
    return means


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("plain", {"/relu#0": "conv1", "/relu#1": "conv2", "/relu#2": "fc1", "fc2/linear#0": "fc2"}),
        ("depthwise", {"/relu6#0": "conv", "/relu6#1": "conv dw", "/relu6#2": "conv pw", "head/conv2d#0": "conv head"}),
        ("mlp", {"2/relu#0": "a", "4/relu#0": "b", "5/linear#0": "c"}),
    ],
)
def test_bias_correction_brings_the_channel_means_back(name: str, fused: dict[str, str]) -> None:
    wanted = channel_means(network(name), name, fused)
    distance = {}
    for corrected in (False, True):
        settings = Quantize("minmax", bias_correction=corrected, spare_channels=False)  # which means something else
        model, _ = quantize(network(name), name, settings, context(traits=_few_bits()))
        found = channel_means(model, name, fused)
        assert set(found) == set(wanted) == set(fused.values())
        distance[corrected] = {layer: float((found[layer] - y).abs().max()) for layer, y in wanted.items()}
    for layer, off in distance[True].items():
        assert off < 4e-4, f"{layer}: biases are whole multiples of the products' scale"
        assert off < 0.1 * distance[False][layer], layer


def _few_bits() -> Traits:
    """Four bits per weight: errors that are worth correcting."""
    return Traits(integer_operators=INTEGER.integer_operators, float_output=True, weight_bits=4)


def test_bias_correction_helps() -> None:
    reference = network("depthwise")
    errors = {}
    for corrected in (False, True):
        settings = Quantize(bias_correction=corrected)
        model, _ = quantize(network("depthwise"), "depthwise", settings, context(traits=_few_bits()))
        errors[corrected] = error(model, reference, "depthwise")
    assert errors[True] < errors[False]


def test_seven_bits_where_products_saturate(tmp_path: Path) -> None:
    seven = Traits(integer_operators=INTEGER.integer_operators, float_output=True, weight_bits=7)
    model, facts = quantize(network("plain"), given=context(traits=seven))
    assert all(qmax == 63 for _, qmax in facts["layers"])
    layer = surgery.weighted_layers(model)["conv2"]
    with torch.no_grad():
        layer.parametrizations["weight"].original.mul_(1.7)  # training may push weights over the last level
    file = deployed(model, inputs_of("plain", 3), tmp_path)
    quantizer = weight_quantizer(layer)
    assert quantizer is not None
    wanted = quantizer.codes(layer.parametrizations["weight"].original).detach().numpy()
    (node,) = [node for node in file.layers() if node.name == "conv2"]
    assert np.array_equal(file.stored(node.input[1])[0], wanted)
    assert np.abs(wanted).max() == 63
    with torch.no_grad():
        assert float(layer.parametrizations["weight"].original.abs().max()) > float(layer.weight.abs().max())


# ---------------------------------------------------------------------------------------------------------- fewer bits

LOW = [
    Quantize(bits=4, activation_bits=4),
    Quantize("entropy", False, bits=2, activation_bits=6, weight_ranges="mse"),
    Quantize(bits=5, activation_bits=5, per_channel=False),
]


@pytest.mark.parametrize("settings", LOW, ids=["4/4", "2/6", "per tensor"])
@pytest.mark.parametrize("name", ["depthwise", "plain"])
def test_fewer_bits_run_in_integers_and_the_file_is_the_model(name: str, settings: Quantize, tmp_path: Path) -> None:
    """Codes beyond the last level, which uint8 could hold, are clipped in the file too."""
    model, facts = quantize(network(name), name, settings)
    file = agrees(model, name, tmp_path, tolerance=1e-5)
    integer_in_onnxruntime(file.path, 4)
    highest = 2 ** (settings.bits - 1) - 1
    assert {qmax for _, qmax in facts["layers"]} == {highest}
    for node in file.layers():
        quantizer = weight_quantizer(surgery.weighted_layers(model)[node.name])
        assert quantizer is not None
        if file.source(node.input[1]) is None:  # stored in 4 bits, which runtime/onnx_finish.py answers for
            continue
        codes, scale = file.stored(node.input[1])
        assert np.abs(codes.astype(int)).max() == highest
        assert scale.ndim == int(settings.per_channel)
        assert np.array_equal(scale, quantizer.scale.numpy())
    clips = [node for node in file.graph.node if node.op_type == "Clip"]
    assert {int(file.values[node.input[2]]) for node in clips} == {2**settings.activation_bits - 1}
    assert all(file.values[node.input[2]].dtype == np.uint8 for node in clips), "no relu6 in float is left"


def test_fewer_bits_in_an_onnx_file_of_somebody_else(tmp_path: Path) -> None:
    onnxruntime.deploy(network("depthwise"), inputs_of("depthwise", 3), tmp_path / "float.onnx", TARGET)
    model = load(str(tmp_path / "float.onnx")).module
    changed, _ = quantize(model, "depthwise", Quantize(bits=4, activation_bits=4))
    agrees(changed, "depthwise", tmp_path, tolerance=1e-5)
    integer_in_onnxruntime(tmp_path / "model.onnx", 4)


def test_bits_by_layer() -> None:
    seven = Traits(integer_operators=INTEGER.integer_operators, float_output=True, weight_bits=7)
    settings = Quantize(bits=4, layers={"fc1": 2, "conv1": 8})
    _, facts = quantize(network("plain"), settings=settings, given=context(traits=seven))
    assert dict(facts["layers"]) == {"conv1": 63, "conv2": 7, "fc1": 1, "fc2": 7}, "never more than the target's"


def test_bits_of_a_layer_are_those_of_its_factors() -> None:
    settings = Quantize(bits=4, layers={"conv2": 8, "conv2.reduce": 2}, exclude=("fc1",))
    recipe = Recipe((LowRank(layers={"conv2": 0.5, "fc1": 0.5}), settings))
    _, (_, facts) = recipe.apply(network("plain"), task_for("plain"), context())
    assert dict(facts["layers"]) == {"conv1": 7, "conv2.reduce": 1, "conv2.expand": 127, "fc2": 7}


def test_bits_of_a_layer_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match="a layer that the model lacks: got conv3, wanted conv1, conv2"):
        quantize(network("plain"), settings=Quantize(layers={"conv3": 4}))


def test_inputs_keep_eight_bits() -> None:
    model, _ = quantize(network("plain"), settings=Quantize(activation_bits=4))
    quantizers = attached(model)
    assert quantizers is not None
    levels = {name: q.qmax for name, q in quantizers.by_value().items()}
    assert levels.pop("input/x") == 255
    assert set(levels.values()) == {15}


# ---------------------------------------------------------------------------------------------------- calibration data


def with_samples(n: int, change: Callable[[np.ndarray], None] = lambda x: None) -> Any:
    task = task_for("plain", max(n, 4))
    rows = {"x": inputs_of("plain", max(n, 1))["x"][:n].copy()}
    change(rows["x"])
    object.__setattr__(task, "train", Rows(rows, None))
    return task


def test_no_calibration_data() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        Recipe((Quantize(),)).apply(network("plain"), with_samples(0), context())


def test_a_sample_that_is_not_finite_is_named() -> None:
    def spoil(x: np.ndarray) -> None:
        x[5, 1, 2, 3] = np.nan

    with pytest.raises(DataError, match="calibration sample 5 holds a value of x that is not finite"):
        Recipe((Quantize(),)).apply(network("plain"), with_samples(40, spoil), context())


def test_one_sample_is_warned_of() -> None:
    model, (facts,) = Recipe((Quantize(),)).apply(network("plain"), with_samples(1), context())
    (warning,) = facts["warnings"]
    assert "one sample" in warning
    assert all(name in warning for name in ("input/x", "/relu#0", "/relu#1", "/relu#2"))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_one_sample_that_stretches_ranges_is_warned_of() -> None:
    def stretch(x: np.ndarray) -> None:
        x[7] *= 1e6

    model, (facts,) = Recipe((Quantize("percentile"),)).apply(network("plain"), with_samples(40, stretch), context())
    (warning,) = facts["warnings"]
    assert "one calibration sample alone" in warning
    assert "input/x" in warning
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert quantize(network("plain"))[1]["warnings"] == []


# ------------------------------------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    ("settings", "keep", "left"),
    [
        (Quantize(exclude=("conv1",)), (), {"conv1"}),
        (Quantize(exclude=("conv*",)), (), {"conv1", "conv2"}),
        (Quantize(), ("fc1",), {"fc1"}),
        (Quantize(exclude=("conv1",)), ("fc?",), {"conv1", "fc1", "fc2"}),
        (Quantize(exclude=("*",)), (), {"conv1", "conv2", "fc1", "fc2"}),
    ],
)
def test_layers_left_in_float(settings: Quantize, keep: tuple[str, ...], left: set[str], tmp_path: Path) -> None:
    model, facts = quantize(network("plain"), settings=settings, given=context(keep=keep))
    layers = surgery.weighted_layers(model)
    assert {name for name, layer in layers.items() if weight_quantizer(layer) is None} == left
    assert {name for name, _ in facts["layers"]} == set(layers) - left
    if left == set(layers):
        assert attached(model) is None
    if len(left) == 2:
        file = agrees(model, "plain", tmp_path)
        assert {node.name for node in file.layers() if file.source(node.input[1]) is None} == left


def test_without_integer_kernels_only_norms_are_folded() -> None:
    model, facts = quantize(network("plain"), given=context(traits=Traits()))
    assert attached(model) is None
    assert facts["layers"] == facts["values"] == []
    assert len(facts["folded"]) == 2
    assert error(model, network("plain"), "plain") < 1e-5


def test_twice_is_refused() -> None:
    model, _ = quantize(network("plain"))
    with pytest.raises(RecipeError, match="Quantize comes twice"):
        quantize(model)


# ------------------------------------------------------------------------------------------------------- odd networks


def agrees(model: nn.Module, name: str, folder: Path, tolerance: float = 5e-3) -> File:
    file = deployed(model, inputs_of(name, 3), folder)
    session = onnxruntime.open_file(folder / "model.onnx", TARGET)
    inputs = inputs_of(name, 9, seed=3)
    wanted = outputs(model, inputs)
    found = session(inputs)
    for key, y in wanted.items():
        assert np.isfinite(found[key]).all()
        assert relative_error(found[key], y) < tolerance
    return file


def test_dead_and_constant_channels(tmp_path: Path) -> None:
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("conv1").weight[2] = 0  # a constant channel
        model.get_submodule("fc1").weight[3] = 0
        model.get_submodule("fc1").bias[3] = -5  # a dead one
        model.get_submodule("fc2").weight[:, 1] = 0
    changed, _ = quantize(model)
    assert error(changed, model, "plain") < 0.05
    for layer in surgery.weighted_layers(changed).values():
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        assert torch.isfinite(quantizer.scale).all()
        assert (quantizer.scale > 0).all()
    agrees(changed, "plain", tmp_path)


def test_a_network_that_is_dead_altogether(tmp_path: Path) -> None:
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("conv2").weight.zero_()
        model.get_submodule("bn2").bias.fill_(-9.0)
    changed, _ = quantize(model)
    file = agrees(changed, "plain", tmp_path)
    assert error(changed, model, "plain") < 0.02
    assert all(file.stored(node.input[2])[0].dtype == np.int32 for node in file.layers())


def test_a_bias_too_large_for_its_integers(tmp_path: Path) -> None:
    """ONNX Runtime would clip it to them without a word."""
    model = network("plain")
    changed, _ = quantize(model, settings=Quantize(bias_correction=False))
    for name, axis in (("conv2", 12), ("fc1", 16), ("fc2", 4)):
        with torch.no_grad():
            surgery.weighted_layers(changed)[name].bias.copy_(torch.linspace(-9e6, 9e6, axis))
    file = agrees(changed, "plain", tmp_path)
    assert {len(node.input) for node in file.layers()} == {2, 3}
    inputs = inputs_of("plain", 9, seed=3)
    found = openvino.open_file(tmp_path / "model.onnx", Target("openvino"))(inputs)["output"]
    assert relative_error(found, outputs(changed, inputs)["output"]) < 5e-3


def test_a_channel_that_is_almost_zero_does_not_drive_its_layer_out_of_the_integers(tmp_path: Path) -> None:
    """MobileNetV1 has such channels in seven layers: their bias over their scale would not fit."""
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("fc1").weight[3] *= 1e-6
        model.get_submodule("fc1").bias[3] = 30
    changed, _ = quantize(model)
    assert error(changed, model, "plain") < 0.05
    integer_in_onnxruntime(agrees(changed, "plain", tmp_path).path, 4)


def test_a_float_layer_between_integers_is_not_rounded_by_the_runtime(tmp_path: Path) -> None:
    """ONNX Runtime would round its weights per tensor, and nobody would have asked for it."""
    model = network("depthwise")
    with torch.no_grad():
        model.get_submodule("depthwise").weight[::2] *= 0.001
        model.get_submodule("depthwise_bn").running_mean[::2] *= 0.001  # type: ignore[index, operator]
        model.get_submodule("depthwise_bn").running_var[::2] *= 1e-6  # type: ignore[index, operator]
    changed, _ = quantize(model, "depthwise", Quantize(exclude=("depthwise",)))
    file = agrees(changed, "depthwise", tmp_path)
    found = onnxruntime.optimized_operators(file.path, TARGET)
    assert (found["Conv"], found["QLinearConv"], found["QGemm"]) == (1, 2, 1)


@pytest.mark.parametrize(("layer", "kernel"), [("conv2", "Conv"), ("fc1", "Gemm")])
def test_a_float_layer_behind_what_moves_integers_stays_so(layer: str, kernel: str, tmp_path: Path) -> None:
    changed, _ = quantize(network("plain"), settings=Quantize(exclude=(layer,)))
    found = onnxruntime.optimized_operators(agrees(changed, "plain", tmp_path).path, TARGET)
    assert found.get(kernel, 0) + found.get(f"Fused{kernel}", 0) == 1


@pytest.mark.parametrize("size", [1e6, 1e-6])
def test_outliers_among_channels(size: float) -> None:
    """One channel a million times larger, or smaller, than its neighbours keeps its precision, and so do they."""
    model = network("mlp")
    with torch.no_grad():
        model.get_submodule("1").weight[5] *= size
        model.get_submodule("1").bias[5] *= size
        model.get_submodule("3").weight[:, 5] /= size
    changed, _ = quantize(model, "mlp", Quantize("minmax"))
    layer = surgery.weighted_layers(changed)["1"]
    original = layer.parametrizations["weight"].original
    with torch.no_grad():
        rows = (layer.weight - original).abs().amax(1) / original.abs().amax(1)
    kept = rows if size > 1 else torch.cat([rows[:5], rows[6:]])
    assert float(kept.max()) <= 0.51 / 127
    assert all(torch.isfinite(value).all() for value in changed.state_dict().values())


def test_an_outlier_in_one_channel(tmp_path: Path) -> None:
    model = network("plain")
    with torch.no_grad():
        model.get_submodule("fc2").weight[0, 0] = 1e6
    changed, _ = quantize(model)
    assert all(torch.isfinite(value).all() for value in changed.state_dict().values())
    deployed(changed, inputs_of("plain", 3), tmp_path)
    inputs = inputs_of("plain", 9, seed=3)
    found = onnxruntime.open_file(tmp_path / "model.onnx", TARGET)(inputs)["output"]
    wanted = outputs(model, inputs)["output"]
    assert relative_error(found[:, 1:], wanted[:, 1:]) < 0.05, "the other channels do not suffer"


class Odd(nn.Module):
    """Modules that Quantize does not know, between those that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(6, 6, 2, 2)
        self.norm = nn.GroupNorm(2, 6)
        self.act = nn.PReLU(6)
        self.drop = nn.Dropout2d(0.5)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Conv2d(6, 4, 8, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.norm(self.up(F.silu(self.conv(x))))))
        x = self.pool(x) * self.scale + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 0), value=0.0)
        return torch.squeeze(self.last(F.pad(x, (1, 1), value=0.25)[..., 1:-1])).reshape(-1, 4)


def test_odd_modules(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Odd().eval()
    changed, facts = quantize(model)
    assert [name for name, _ in facts["layers"]] == ["conv", "last"]
    assert error(changed, model, "plain") < 0.1
    agrees(changed, "plain", tmp_path)


def test_a_layer_as_the_whole_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).eval()
    changed, facts = quantize(model)
    assert facts["layers"] == [["", 127]]
    assert 0 < error(changed, model, "plain") < 0.05
    agrees(changed, "plain", tmp_path)


def test_values_that_are_not_finite_are_named() -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.exp(self.conv(x) * 1e4))

    with pytest.raises(TrialError, match=r"not finite.*/exp#0"):
        quantize(Overflow())


# ------------------------------------------------------------------------------------------ copies, training, restoring


def test_copies_of_quantized_models(everything: Callable[[str], Any]) -> None:
    for name in NETWORKS:
        model, _, _ = everything(name)
        again = copy.deepcopy(copy.deepcopy(model))
        inputs = inputs_of(name, 4)
        found, wanted = outputs(again, inputs), outputs(model, inputs)
        assert all(np.array_equal(found[key], y) for key, y in wanted.items())


def test_training_after_quantizing_changes_weights_and_still_deploys(tmp_path: Path) -> None:
    recipe = Recipe((Quantize(), STEPS["FineTune"](epochs=6, lr=3e-3, batch=32, distill=0.0)))
    model, facts = recipe.apply(network("residual"), task_for("residual", 256), context())
    before, _ = quantize(network("residual"), "residual")
    for name, layer in surgery.weighted_layers(before).items():
        after = surgery.weighted_layers(model)[name]
        first, second = (one.parametrizations["weight"].original for one in (layer, after))
        assert not torch.equal(first, second), name
    assert facts[1]["last_loss"] < 0.8 * facts[1]["first_loss"]
    file = agrees(model, "residual", tmp_path)
    for node in file.layers():
        layer = surgery.weighted_layers(model)[node.name]
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        wanted = quantizer.codes(layer.parametrizations["weight"].original).detach().numpy()
        assert np.array_equal(file.stored(node.input[1])[0], wanted)


@pytest.mark.parametrize(
    "settings", [Quantize(), Quantize("minmax", False), Quantize(exclude=("head", "conv1")), LOW[2]]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_facts_and_weights_rebuild_the_model(name: str, settings: Quantize) -> None:
    model, facts = quantize(network(name), name, settings)
    again = Recipe((settings,)).restore(network(name, seed=9), [facts])
    again.load_state_dict(model.state_dict())
    inputs = inputs_of(name, 4)
    found, wanted = outputs(again, inputs), outputs(model, inputs)
    assert all(np.array_equal(found[key], y) for key, y in wanted.items())


def test_progress_is_told() -> None:
    told: list[float] = []
    quantize(network("plain"), given=context(progress=lambda text, fraction: told.append(fraction)))
    assert told == sorted(told)
    assert told
    assert all(0 <= fraction <= 1 and math.isfinite(fraction) for fraction in told)
