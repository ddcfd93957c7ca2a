"""Changed weights go back into the graph; everything else stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import onnx
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

from laconic import surgery
from laconic.errors import DeployError
from laconic.models import load
from laconic.models.onnx_import.module import OnnxModule
from laconic.models.onnx_import.session import run_graph

FLOAT = torch.float32


@pytest.fixture
def imported(save_graph: Callable[..., str]) -> Callable[..., OnnxModule]:
    def run(*args: object, **kwargs: object) -> OnnxModule:
        module = load(save_graph(*args, **kwargs)).module
        assert isinstance(module, OnnxModule)
        return module

    return run


def check(module: OnnxModule, x: Tensor) -> ModelProto:
    """What is written must compute what the module computes."""
    model = module.to_onnx()
    (found,) = run_graph(model, [x])
    with torch.no_grad():
        torch.testing.assert_close(found, module(x), rtol=1e-4, atol=1e-5)
    return model


def net(bias: bool) -> tuple[list[onnx.NodeProto], dict[str, Tensor]]:
    """Conv, batch norm, Relu, mean, Gemm, MatMul + Add, MatMul."""
    constants = {
        "conv.weight": torch.randn(4, 2, 3, 3),
        **{f"norm.{name}": torch.rand(4) + 0.5 for name in ("weight", "bias", "mean", "var")},
        "gemm.weight": torch.randn(4, 5),
        "matmul.weight": torch.randn(5, 6),
        "matmul.bias": torch.randn(1, 6),
        "last.weight": torch.randn(6, 3),
        **({"conv.bias": torch.randn(4), "gemm.bias": torch.randn(5)} if bias else {}),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", *["conv.bias"] * bias], ["/conv/out"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["/conv/out", *(n for n in constants if n.startswith("norm"))], ["norm"]
        ),
        helper.make_node("Relu", ["norm"], ["relu"]),
        helper.make_node("ReduceMean", ["relu"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["mean", "gemm.weight", *["gemm.bias"] * bias], ["gemm"]),
        helper.make_node("MatMul", ["gemm", "matmul.weight"], ["product"]),
        helper.make_node("Add", ["matmul.bias", "product"], ["sum"]),
        helper.make_node("MatMul", ["sum", "last.weight"], ["y"]),
    ]
    return nodes, constants


@pytest.fixture(params=[False, True], ids=["without bias", "with bias"])
def module(request: pytest.FixtureRequest, imported: Callable[..., OnnxModule]) -> OnnxModule:
    nodes, constants = net(request.param)
    return imported(nodes, {"x": (FLOAT, ["n", 2, 6, 6])}, ["y"], constants, opset=17)


X = torch.randn(3, 2, 6, 6)


def test_layers_are_torch_layers(module: OnnxModule) -> None:
    kinds = {name: type(child) for name, child in module.named_children() if next(child.parameters(), None) is not None}
    assert kinds == {
        "conv_out": nn.Conv2d,
        "norm": nn.BatchNorm2d,
        "gemm": nn.Linear,
        "sum": nn.Linear,
        "y": nn.Linear,
    }
    assert list(surgery.weighted_layers(module)) == ["conv_out", "gemm", "sum", "y"]


def test_unchanged(module: OnnxModule) -> None:
    nodes = [node.op_type for node in check(module, X).graph.node]
    assert nodes == ["Conv", "BatchNormalization", "Relu", "ReduceMean", "Gemm", "MatMul", "Add", "MatMul"]


def test_weights_and_new_biases(module: OnnxModule) -> None:
    before = module(X)
    for layer in surgery.weighted_layers(module).values():
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        layer.weight = nn.Parameter(layer.weight * 0.5)
        layer.bias = nn.Parameter(torch.randn(len(layer.weight)))
    assert not torch.allclose(module(X), before)
    check(module, X)


def test_biases_that_went(module: OnnxModule) -> None:
    for layer in surgery.weighted_layers(module).values():
        layer.bias = None
    model = check(module, X)
    assert not any("bias" in tensor.name and "norm" not in tensor.name for tensor in model.graph.initializer)


def test_folded_batch_norm(module: OnnxModule) -> None:
    wanted = module(X)
    folded = surgery.fold_batch_norm(module, surgery.trace(module, {"x": X}))
    assert folded == [("conv_out", "norm")]
    torch.testing.assert_close(module(X), wanted, rtol=1e-4, atol=1e-5)
    model = check(module, X)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert not any("norm" in tensor.name for tensor in model.graph.initializer)


def test_a_layer_that_became_something_else(module: OnnxModule) -> None:
    surgery.set_module(module, "gemm", nn.Sequential(nn.Linear(4, 5)))
    with pytest.raises(DeployError, match="layer gemm became a Sequential"):
        module.to_onnx()


def test_shared_weights_are_written_apart_only_when_they_differ(imported: Callable[..., OnnxModule]) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"]), helper.make_node("Gemm", ["a", "w"], ["y"])]
    module = imported(nodes, {"x": (FLOAT, ["n", 4])}, ["y"], {"w": torch.randn(4, 4)})
    x = torch.randn(2, 4)
    assert [tensor.name for tensor in check(module, x).graph.initializer] == ["w"]
    with torch.no_grad():
        module.get_submodule("a").weight.mul_(2.0)  # type: ignore[operator,union-attr]
    assert sorted(tensor.name for tensor in check(module, x).graph.initializer) == ["a/input_1", "w"]


def test_weights_computed_from_constants(imported: Callable[..., OnnxModule]) -> None:
    """A weight that is a Constant node's, transposed: the chain goes when the weight is written."""
    value = onnx.numpy_helper.from_array(torch.randn(4, 3).numpy())
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Transpose", ["c"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    module = imported(nodes, {"x": (FLOAT, ["n", 3])}, ["y"])
    assert isinstance(module.get_submodule("y"), nn.Linear)
    with torch.no_grad():
        module.get_submodule("y").weight.mul_(2.0)  # type: ignore[operator,union-attr]
    assert [node.op_type for node in check(module, torch.randn(2, 3)).graph.node] == ["MatMul"]


def test_copies_are_apart(module: OnnxModule) -> None:
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_submodule("gemm").weight.zero_()  # type: ignore[operator,union-attr]
    assert module.get_submodule("gemm").weight.abs().sum() > 0  # type: ignore[operator,union-attr]
    check(other, X)
    check(module, X)


def test_names_of_values(module: OnnxModule) -> None:
    """Every value that is traced is, by its path, the graph's value of the same content."""
    assert module.value_name("conv_out") == "/conv/out"
    assert module.value_name("sum") == "sum"
    seen: dict[str, Tensor] = {}

    def remember(key: str, path: str, function: Callable[..., Tensor], args: object, kwargs: object) -> Tensor:
        result = function(*args, **kwargs)  # type: ignore[misc]
        if path:
            seen[path] = result
        return result

    with torch.no_grad(), surgery.watched(module, remember):
        module(X)
    values = module.values(X)
    assert set(seen) == {name for name, _ in module.named_children()}
    for path, value in seen.items():
        assert torch.equal(values[module.value_name(path)], value)


def test_padding_inside_a_convolution(imported: Callable[..., OnnxModule]) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], pads=[0, 0, 1, 1], strides=[2, 2]),
    ]
    module = imported(nodes, {"x": (FLOAT, ["n", 1, 4, 4])}, ["y"], {"w": torch.randn(2, 1, 3, 3)})
    assert [name for name, _ in module.named_children()] == ["r", "y_pad", "y"]
    assert module.value_name("y_pad") == "r"
    check(module, torch.randn(2, 1, 4, 4))
