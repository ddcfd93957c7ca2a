"""What laconic does not know is run by ONNX Runtime, and said so."""

from __future__ import annotations

import copy
from collections.abc import Callable

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from laconic.errors import ModelError
from laconic.models import load
from laconic.models.onnx_import.operators import OPERATORS
from laconic.profile import profile

FLOAT = torch.float32


def test_unknown_operator(save_graph: Callable[..., str]) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Det", ["y"], ["d"]),
        helper.make_node("Exp", ["d"], ["z"]),
    ]
    loaded = load(save_graph(nodes, {"x": (FLOAT, ["n", 3, 3])}, ["z"]))
    module = loaded.module
    x = torch.randn(4, 3, 3)
    assert getattr(module, "unsupported", None) == {"d": "Det"}
    assert "left to ONNX Runtime, neither changed nor counted: Det" in loaded.note
    torch.testing.assert_close(copy.deepcopy(module)(x), torch.exp(torch.linalg.det(x.relu())))
    assert profile(module, x).unsupported == {"laconic_onnx::Det": 1}


def test_unknown_form_of_a_known_operator(save_graph: Callable[..., str]) -> None:
    assert "CumSum" in OPERATORS
    nodes = [helper.make_node("CumSum", ["x", "axis"], ["y"], reverse=1)]
    loaded = load(save_graph(nodes, {"x": (FLOAT, ["n", 3])}, ["y"], {"axis": torch.tensor(1)}))
    x = torch.randn(2, 3)
    assert getattr(loaded.module, "unsupported", None) == {"y": "CumSum"}
    torch.testing.assert_close(loaded.module(x), x.flip(1).cumsum(1).flip(1))


def test_subgraphs_read_outer_values(save_graph: Callable[..., str]) -> None:
    """``If`` reads a constant and a computed value of the graph around it, and one of its own."""

    def branch(name: str, operator: str, *operands: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        own = helper.make_tensor("own", TensorProto.FLOAT, [1], [10.0])
        nodes = [
            helper.make_node(operator, list(operands), [f"{name}_inner"]),
            helper.make_node("Add", [f"{name}_inner", "own"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [result], [own])

    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["many"]),
        helper.make_node(
            "If",
            ["many"],
            ["y"],
            then_branch=branch("a", "Mul", "positive", "two"),
            else_branch=branch("b", "Sub", "positive", "two"),
        ),
    ]
    constants = {"zero": torch.tensor(0.0), "two": torch.tensor([2.0])}
    loaded = load(save_graph(nodes, {"x": (FLOAT, [3, 4])}, ["y"], constants))
    for x in (torch.ones(3, 4), -torch.ones(3, 4)):
        wanted = x.relu() * 2 + 10 if x.sum() > 0 else x.relu() - 2 + 10
        torch.testing.assert_close(loaded.module(x), wanted)
    assert getattr(loaded.module, "unsupported", None) == {"y": "If"}


def test_several_outputs_and_integers(save_graph: Callable[..., str]) -> None:
    nodes = [helper.make_node("Unique", ["x"], ["values", "", "inverse"], sorted=1)]
    loaded = load(save_graph(nodes, {"x": (FLOAT, [4])}, ["values", "inverse"]))
    values, inverse = loaded.module(torch.tensor([3.0, 1.0, 3.0, 2.0]))
    assert values.tolist() == [1, 2, 3]
    assert inverse.tolist() == [2, 0, 2, 1]


def test_what_cannot_be_run_alone_is_named(save_graph: Callable[..., str]) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["y"], axis=1),
    ]
    with pytest.raises(ModelError, match=r"node parts \(SplitToSequence\) cannot be run alone"):
        load(save_graph(nodes, {"x": (FLOAT, ["n", 3])}, ["y"]))
