"""Weights of few values in the ONNX file: small there, the same to the bit when a runtime has opened it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import models, surgery
from laconic.core import Recipe, Target
from laconic.runtime import onnx_codebook, onnx_file, onnxruntime, openvino
from laconic.runtime.difference import relative_error
from laconic.runtime.export import frozen_weights
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.cluster.product import ProductQuantize
from laconic.steps.quantize.post_training import Quantize
from tests.networks import context, inputs_of, network, task_for, tensors

TARGET = Target("onnxruntime", batch=5)


class Given(nn.Module):
    """A parametrization of a form of its own: all that the file needs is in the weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.given = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.given * 1

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        return ()


def linear(weight: np.ndarray) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    parametrize.register_parametrization(layer, "weight", Given(torch.as_tensor(weight)))
    return nn.Sequential(layer).eval()


def written(model: nn.Module, path: Path, inputs: dict[str, np.ndarray]) -> dict[str, float]:
    found: dict[str, float] = onnx_file.deploy(model, inputs, path).get("codebook_bits", {})
    onnx.checker.check_model(str(path))
    return found


def opened(path: Path, folder: Path) -> onnx.GraphProto:
    """The graph that ONNX Runtime makes of the file before it fuses operators."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "opened.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "opened.onnx").graph


def weight_in(graph: onnx.GraphProto, shape: tuple[int, ...]) -> np.ndarray:
    arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    (found,) = [array for array in arrays if array.shape in (shape, shape[::-1])]
    return found if found.shape == shape else found.T


def agrees(model: nn.Module, name: str, path: Path) -> None:
    """The file gives what the model does, in both runtimes."""
    inputs = inputs_of(name, 5, seed=4)
    with torch.no_grad():
        wanted = surgery.call(model.eval(), tensors(inputs))
    for runtime in (onnxruntime, openvino):
        found = runtime.open_file(path, TARGET)(inputs)
        for key, y in wanted.items():
            assert relative_error(found[key], y.numpy()) < 2e-6


@pytest.mark.parametrize(("entries", "bits"), [(2, 1), (3, 1.6), (6, 16 / 6), (16, 4), (32, 16 / 3), (256, 8)])
def test_single_numbers_to_the_bit(entries: int, bits: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(entries)
    table = rng.standard_normal(entries).astype(np.float32)
    weight = table[np.concatenate([np.arange(entries), rng.integers(0, entries, 61 * 67 - entries)])].reshape(61, 67)
    path = tmp_path / "f.onnx"
    stored = written(linear(weight), path, {"x": np.zeros((2, 67), np.float32)})
    assert stored == {"0.weight": pytest.approx(bits + 32 * entries / weight.size, rel=0.01)}
    assert path.stat().st_size < weight.size * bits / 8 + 4 * entries + 4 * 61 + 800
    graph = opened(path, tmp_path)
    assert [node.op_type for node in graph.node] == ["Gemm"]
    assert weight_in(graph, weight.shape).tobytes() == weight.tobytes()


def test_values_by_channel_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scale = rng.standard_normal((300, 1)).astype(np.float32)
    weight = np.sign(rng.standard_normal((300, 70))).astype(np.float32) * scale
    weight[7] = 0.5  # a channel of one value
    stored = written(linear(weight), tmp_path / "f.onnx", {"x": np.zeros((2, 70), np.float32)})
    assert stored["0.weight"] == pytest.approx(1 + 64 / 70, rel=0.01)
    graph = opened(tmp_path / "f.onnx", tmp_path)
    assert [node.op_type for node in graph.node] == ["Gemm"]
    assert weight_in(graph, weight.shape).tobytes() == weight.tobytes()


@pytest.mark.parametrize(("length", "entries"), [(2, 200), (4, 100), (9, 31)])
def test_sub_vectors_to_the_bit(length: int, entries: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(length)
    table = rng.standard_normal((entries, length)).astype(np.float32)
    weight = table[rng.integers(0, entries, 50 * 60)].reshape(50, 60 * length)
    stored = written(linear(weight), tmp_path / "f.onnx", {"x": np.zeros((2, 60 * length), np.float32)})
    digits = onnx_codebook.digits(entries)
    assert stored["0.weight"] == pytest.approx(16 / digits / length + 32 * table.size / weight.size, rel=0.02)
    assert weight_in(opened(tmp_path / "f.onnx", tmp_path), weight.shape).tobytes() == weight.tobytes()


def test_of_two_forms_the_one_that_packs_smaller() -> None:
    """Of a pruned layer each channel has few of the values; codes by channel are shorter, and pack worse."""
    rng = np.random.default_rng(0)
    table = np.concatenate([[0], rng.standard_normal(60)]).astype(np.float32)
    sparse = table[np.where(rng.random((300, 784)) < 0.03, rng.integers(1, 61, (300, 784)), 0)]
    form = onnx_codebook.smallest(sparse)
    assert isinstance(form, onnx_codebook.Form)
    assert form.table.shape == (61,)
    scale = np.repeat(rng.standard_normal(16), 20)[:, None].astype(np.float32)  # 32 values, two in a channel
    form = onnx_codebook.smallest(np.sign(rng.standard_normal((320, 400))).astype(np.float32) * scale)
    assert isinstance(form, onnx_codebook.Form)
    assert form.by_channel


@pytest.mark.parametrize("values", ["many", "one too many", "not finite", "few weights"])
def test_other_weights_are_stored_as_they_are(values: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    if values == "one too many":
        table = np.random.default_rng(1).standard_normal(257).astype(np.float32)
        weight = table[np.arange(2000).reshape(40, 50) % 257]
        assert onnx_codebook.smallest(table[np.arange(2000).reshape(40, 50) % 256]) is not None
    elif values == "not finite":
        weight = np.sign(weight)
        weight[3, 4] = np.nan
    elif values == "few weights":
        weight = np.float32(0.3) * np.sign(weight[:5, :10])  # signs alone would fit a shorter float
    inputs = {"x": np.zeros((2, weight.shape[1]), np.float32)}
    assert written(linear(weight), tmp_path / "f.onnx", inputs) == {}
    proto = onnx.load(tmp_path / "f.onnx")
    assert [node.op_type for node in proto.graph.node] == ["Gemm"]
    assert [entry.domain for entry in proto.opset_import] == [""]
    np.testing.assert_array_equal(weight_in(proto.graph, weight.shape), weight)


@pytest.mark.parametrize(
    ("name", "step"),
    [("depthwise", Cluster(bits=2)), ("tokens", Cluster(bits=1)), ("residual", ProductQuantize(entries=8))],
)
def test_networks_run_as_their_float_files_do(
    name: str, step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_codebook, "_NODES_BYTES", -(10**6))  # these networks are too small for it to pay
    model, _ = Recipe((step,)).apply(network(name), task_for(name), context())
    float_path, path = tmp_path / "float.onnx", tmp_path / "f.onnx"
    onnx_file.deploy(network(name), inputs_of(name, 3), float_path)
    stored = written(model, path, inputs_of(name, 3))
    assert stored
    assert onnxruntime.optimized_operators(path, TARGET) == onnxruntime.optimized_operators(float_path, TARGET)
    agrees(model, name, path)


def test_batch_norm_is_folded_behind_few_values(tmp_path: Path) -> None:
    model, _ = Recipe((Cluster(bits=2),)).apply(network("residual"), task_for("residual"), context())
    stored = written(model, tmp_path / "f.onnx", inputs_of("residual", 3))
    assert stored["blocks.2.conv2.weight"] == pytest.approx(2 + 32 * 4 / 2304, abs=1e-3)
    operators = [node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Mul") == 7  # the eighth convolution is too small


def test_what_is_stored_as_it_is_has_no_trace_of_its_placeholder(tmp_path: Path) -> None:
    model, _ = Recipe((Cluster(bits=2),)).apply(network("depthwise"), task_for("depthwise"), context())
    assert set(written(model, tmp_path / "f.onnx", inputs_of("depthwise", 3))) == {"conv.weight"}
    graph = onnx.load(tmp_path / "f.onnx").graph
    assert [node.op_type for node in graph.node].count("Mul") == 1
    assert {tensor.name for tensor in graph.initializer if tensor.name.endswith(".gain")} == {"conv.gain"}
    agrees(model, "depthwise", tmp_path / "f.onnx")


def test_between_integers(tmp_path: Path) -> None:
    steps = (Cluster(bits=2, exclude=("stem.0", "head")), Quantize(exclude=("blocks.1.*", "blocks.2.*")))
    model, _ = Recipe(steps).apply(network("residual"), task_for("residual"), context())
    stored = written(model, tmp_path / "f.onnx", inputs_of("residual", 3))
    assert set(stored) >= {"blocks.1.conv2.weight", "blocks.2.conv1.weight", "blocks.2.conv2.weight"}
    assert "blocks.0.conv1.weight" not in stored  # that is integers now
    inputs = inputs_of("residual", 5, seed=4)
    with torch.no_grad():
        wanted = model(tensors(inputs)["x"]).numpy()
    assert relative_error(onnxruntime.open_file(tmp_path / "f.onnx", TARGET)(inputs)["output"], wanted) < 0.02


def test_a_layer_that_is_called_twice_is_stored_once(tmp_path: Path) -> None:
    model, _ = Recipe((Cluster(bits=2),)).apply(network("twice"), task_for("twice"), context())
    written(model, tmp_path / "f.onnx", inputs_of("twice", 3))
    operators = [node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node]
    assert operators.count("Conv") == 3
    assert operators.count("Gather") == 2  # first and again; the head is too small


@pytest.mark.parametrize("name", ["residual", "tokens"])
def test_models_from_onnx_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_codebook, "_NODES_BYTES", -(10**6))
    source, path = tmp_path / "source.onnx", tmp_path / "f.onnx"
    onnx_file.deploy(network(name), inputs_of(name, 3), source)
    module = models.load(str(source)).module
    for step in (Cluster(bits=2), ProductQuantize(entries=8)):
        model, _ = Recipe((step,)).apply(module, task_for(name), context())
        assert written(model, path, inputs_of(name, 3))
        assert onnxruntime.optimized_operators(path, TARGET) == onnxruntime.optimized_operators(source, TARGET)
        agrees(model, name, path)


def test_the_model_is_itself_again_after_an_error() -> None:
    model, _ = Recipe((Cluster(bits=2),)).apply(network("plain"), task_for("plain"), context())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), frozen_weights(model, hide=True):
        model.fc1.parametrizations.weight.original.mul_(1 // 0)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
