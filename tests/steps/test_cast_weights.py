"""Weights in a shorter float: the formats by hand, training through them, and files that hold them to the bit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Recipe, Target
from laconic.errors import TrialError
from laconic.models import load
from laconic.profile.weights import stored_weights
from laconic.runtime import onnx_floats, onnxruntime, openvino, runtime_of
from laconic.runtime.difference import relative_error
from laconic.steps.quantize.cast_weights import CastWeights, rounded, scales
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.train.fine_tune import FineTune
from tests.networks import context, inputs_of, network, task_for, tensors
from tests.opened import opened_weights
from tests.sequences import sequence_network, sequence_task, sequences

RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}
KINDS = onnx.TensorProto
STORED = {"f16": KINDS.FLOAT16, "bf16": KINDS.BFLOAT16, "f8e4m3": KINDS.FLOAT8E4M3FN, "f8e5m2": KINDS.FLOAT8E5M2}
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2}


def positive_numbers(exponent_bits: int, significand_bits: int, most: float) -> np.ndarray:
    """All numbers of a format, by its definition: 2^(e - bias) (1 + m), and 2^(1 - bias) m where e is 0."""
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**significand_bits
    found = [2.0 ** (max(e, 1) - bias) * ((e > 0) + m / steps) for e in range(2**exponent_bits) for m in range(steps)]
    return np.array([x for x in found if x <= most])


@pytest.mark.parametrize(("precision", "bits", "most"), [("f8e4m3", (4, 3), 448), ("f8e5m2", (5, 2), 57344)])
def test_8_bits_by_hand(precision: str, bits: tuple[int, int], most: float) -> None:
    """Table 1 of the paper: the nearest of the numbers listed there, times the least power of two that serves."""
    numbers = positive_numbers(*bits, most)
    assert numbers[-1] == most
    weight = torch.randn(40, 200, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 9, 40)[:, None]
    weight[:, :5] = weight.abs().amax(1, keepdim=True) * torch.tensor([0.0, 1.0, -1e-4, 1e-5, -1e-6])
    found, scale = rounded(weight, TYPES[precision]), scales(weight, TYPES[precision])
    for w, q, s in zip(weight.double(), found.double(), scale.double().flatten(), strict=True):
        assert float(s).hex().startswith("0x1.0000000000000p"), "a power of two"
        assert most / 2 < float(w.abs().max() / s) <= most
        grid = np.concatenate([-numbers[::-1], numbers]) * float(s)
        assert np.isin(q.numpy(), grid).all()
        nearest = np.abs(w.numpy()[:, None] - grid).min(1)
        np.testing.assert_allclose(np.abs(w.numpy() - q.numpy()), nearest, rtol=1e-12, atol=0)


def test_every_scale_is_exact_and_dead_channels_stay() -> None:
    exponents = torch.arange(-126, 128)
    weight = torch.ldexp(torch.ones(254), exponents)[:, None]
    assert torch.equal(rounded(weight, torch.float8_e4m3fn), weight)
    zeros = torch.zeros(3, 4)
    assert torch.equal(rounded(zeros, torch.float8_e5m2), zeros)
    assert torch.isfinite(rounded(torch.full((2, 2), 1e-44), torch.float8_e4m3fn)).all()
    twice = rounded(torch.randn(64, 64), torch.float8_e4m3fn)
    assert torch.equal(rounded(twice, torch.float8_e4m3fn), twice)


def cast(model: nn.Module, **settings: Any) -> nn.Module:
    return Recipe((CastWeights(**settings),)).apply(model, task_for("plain"), context())[0]


def test_training_goes_through() -> None:
    """The gradient is the gradient of what is computed with; the weight stays on the grid."""
    recipe = Recipe((CastWeights(precision="f8e4m3"), FineTune(epochs=6, lr=5e-3, batch=32, distill=0.0)))
    trained, (facts, told) = recipe.apply(network("residual"), task_for("residual", 128), context())
    assert (facts["stored_bits"], facts["computed"]) == (8, "float32")
    assert told["last_loss"] < 0.8 * told["first_loss"]
    start = cast(network("residual"), precision="f8e4m3")
    for name in facts["layers"]:
        weight = trained.get_submodule(name).weight
        assert not torch.equal(weight, start.get_submodule(name).weight)
        assert torch.equal(rounded(weight, torch.float8_e4m3fn), weight)
    gradient = torch.randn(2, 4)
    layer = nn.Linear(4, 2)
    parametrize.register_parametrization(layer, "weight", start.head.parametrizations["weight"][0])
    layer.weight.backward(gradient)  # type: ignore[no-untyped-call]
    assert torch.equal(layer.parametrizations["weight"].original.grad, gradient)  # type: ignore[index, union-attr, arg-type]


def holds(path: Path, model: nn.Module) -> None:
    """The opened file holds the model's weights, to the bit."""
    found = [array.ravel() for array in opened_weights(path)]
    found += [array.T.ravel() for array in opened_weights(path) if array.ndim == 2]
    for name, layer in surgery.weighted_layers(model).items():
        weight = layer.weight.detach().numpy().ravel()
        assert any(np.array_equal(weight, array) for array in found), name


def from_elsewhere(folder: Path, opset: int) -> nn.Module:
    """A convolution and a product of an ONNX file: nothing is exported, and its opset stays."""
    rng = np.random.default_rng(0)
    ends = [onnx.helper.make_tensor_value_info(n, KINDS.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 12]))]
    made = {"w": rng.standard_normal((16, 3, 3, 3)), "v": rng.standard_normal((16 * 36, 12))}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["h"]),
        onnx.helper.make_node("Flatten", ["h"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in made.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    versions = [onnx.helper.make_opsetid("", opset)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=versions, ir_version=9), folder / "m.onnx")
    return load(str(folder / "m.onnx")).module


@pytest.mark.parametrize(
    ("precision", "opset", "kind"),
    [*((precision, 19, kind) for precision, kind in STORED.items()), ("f8e4m3", 13, KINDS.UINT8)],
)
def test_the_file_holds_the_weights_to_the_bit(precision: str, opset: int, kind: int, tmp_path: Path) -> None:
    """In the format's own type; 8-bit floats as codes that are looked up, where the opset is too old for them."""
    model, path = cast(from_elsewhere(tmp_path, opset), precision=precision), tmp_path / "f.onnx"
    agrees(model, inputs_of("plain", 6, seed=3), path)
    kinds = [tensor.data_type for tensor in onnx.load(path).graph.initializer]
    assert kinds.count(kind) == 2
    holds(path, model)
    told = onnxruntime.deploy(model, inputs_of("plain", 3), path, Target("onnxruntime"))["computed"]
    assert told == [{"stored_bits": 8 if "8" in precision else 16, "computed": "float32", "layers": 2}]


def agrees(model: nn.Module, inputs: dict[str, np.ndarray], path: Path) -> None:
    """One file gives what the model does, in both runtimes."""
    with torch.no_grad():
        (wanted,) = surgery.call(model.eval(), tensors(inputs)).values()
    onnxruntime.deploy(model, inputs, path, Target("onnxruntime"))
    onnx.checker.check_model(str(path))
    for name, runtime in RUNTIMES.items():
        (found,) = runtime.open_file(path, Target(name))(inputs).values()
        assert relative_error(found, wanted.numpy()) < 1e-5


def test_an_exported_file_holds_them_and_no_batch_norm(tmp_path: Path) -> None:
    model, path = cast(network("residual"), precision="f8e4m3"), tmp_path / "f.onnx"
    agrees(model, inputs_of("residual", 6, seed=3), path)
    holds(path, model)
    graph = onnx.load(path).graph
    stored = [numpy_helper.to_array(t).size for t in graph.initializer if t.data_type == KINDS.FLOAT8E4M3FN]
    assert sorted(stored) == sorted(x.weight.numel() for x in surgery.weighted_layers(model).values())
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("name", ["lstm", "encoder"])
def test_recurrent_networks_and_transformers(name: str, tmp_path: Path) -> None:
    model, (facts,) = Recipe((CastWeights("f8e5m2"),)).apply(sequence_network(name), sequence_task(), context())
    assert set(facts["layers"]) == set(surgery.weighted_layers(model))
    agrees(model, sequences(5, seed=2), tmp_path / "f.onnx")
    kinds = [tensor.data_type for tensor in onnx.load(tmp_path / "f.onnx").graph.initializer]
    assert kinds.count(KINDS.FLOAT8E5M2) >= 4


@pytest.mark.parametrize(("precision", "bits"), [("f16", 16), ("f8e5m2", 8)])
def test_a_profile_counts_what_is_stored(precision: str, bits: int) -> None:
    model = cast(network("residual"), precision=precision)
    assert {stored.bits for stored in stored_weights(model).values()} == {bits}


@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_other_runtimes_keep_them_as_floats(runtime: str, tmp_path: Path) -> None:
    if find_spec({"litert": "litert_torch"}.get(runtime, runtime)) is None:
        pytest.skip(f"{runtime} is not installed")
    model, target = cast(network("mlp"), precision="f8e4m3"), Target(runtime)
    module, inputs = runtime_of(target), inputs_of("mlp", 3)
    facts = module.deploy(model, inputs, tmp_path / "f", target)
    assert facts["computed"] == [{"stored_bits": 32, "computed": "float32", "layers": 3, "rounded": True}]
    with torch.no_grad():
        wanted = surgery.call(model.eval(), tensors(inputs))["output"].numpy()
    assert relative_error(module.open_file(tmp_path / "f", target)(inputs)["output"], wanted) < 1e-5


def test_integers_beside_floats(tmp_path: Path) -> None:
    """What Quantize leaves in float is stored in 16 bits; what it rounded is left alone."""
    recipe = Recipe((Quantize(exclude=("head",)), CastWeights()))
    model, (_, facts) = recipe.apply(network("residual"), task_for("residual"), context())
    assert facts["layers"] == ["head"]
    told = onnxruntime.deploy(model, inputs_of("residual", 3), tmp_path / "f.onnx", Target("onnxruntime"))
    assert {"stored_bits": 16, "computed": "float32", "layers": 1} in told["computed"]
    assert any(row["computed"] == "int8" for row in told["computed"])


def test_other_weights_have_no_shorter_float() -> None:
    rng = np.random.default_rng(0)
    assert onnx_floats.shortest(rng.standard_normal((8, 8)).astype(np.float32)) is None
    assert onnx_floats.shortest(np.array([[np.inf, 1]], np.float32)) is None
    wide = np.array([[1.0, 2.0**-40]], np.float32)  # more binades than any but bf16 has
    found = onnx_floats.shortest(wide)
    assert found is not None
    assert ir.tensor(found.numbers).dtype == ir.DataType.BFLOAT16


@pytest.mark.parametrize(("value", "message"), [(1e6, "head too large for f16"), (np.nan, "not finite in head")])
def test_weights_that_it_refuses(value: float, message: str) -> None:
    model = network("residual")
    with torch.no_grad():
        model.head.weight[0, 0] = value
    with pytest.raises(TrialError, match=message):
        cast(model)
