"""ONNX nodes that laconic does not know: each is run by ONNX Runtime as a graph of its own.

The call is a torch operator ``laconic_onnx::OPERATOR``, so that whoever watches operators (:mod:`laconic.profile`)
sees what was called and that it is not known. No gradient passes through it.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor, nn

from laconic.models.onnx_import.graph import captured, onnx_dtype
from laconic.models.onnx_import.operators.numbers import as_tensor
from laconic.models.onnx_import.session import open_session, run_session

_LIBRARY = torch.library.Library("laconic_onnx", "DEF")  # type: ignore[no-untyped-call]


class OpaqueNode(nn.Module):
    """One node; called with the values named in ``given``: its inputs and, for its subgraphs, the outer values."""

    def __init__(
        self, proto: NodeProto, model: ModelProto, values: Mapping[str, Any], constants: Collection[str]
    ) -> None:
        super().__init__()
        self.operator = proto.op_type
        self.inputs = tuple(dict.fromkeys(name for name in (*proto.input, *captured(proto)) if name))
        self.given = tuple(name for name in self.inputs if name not in constants)
        for i, name in enumerate(self.inputs):
            if name in constants:
                self.register_buffer(f"constant_{i}", values[name])
        graph = _graph_of(proto, model, {name: as_tensor(values[name]) for name in self.inputs})
        self.graph = base64.b64encode(graph.SerializeToString()).decode()

    def forward(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        given = iter(inputs)
        arguments = [
            as_tensor(next(given)) if name in self.given else self.get_buffer(f"constant_{i}")
            for i, name in enumerate(self.inputs)
        ]
        results = _operator(re.sub(r"\W", "_", self.operator))(arguments, self.graph)
        return results[0] if len(results) == 1 else tuple(results)

    def extra_repr(self) -> str:
        return f"{self.operator}, run by ONNX Runtime"


def _graph_of(proto: NodeProto, model: ModelProto, values: Mapping[str, Tensor]) -> ModelProto:
    """The node alone as a model whose inputs are ``values``."""
    make = onnx.helper
    inputs = [make.make_tensor_value_info(name, onnx_dtype(value.dtype), None) for name, value in values.items()]
    outputs = [make.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = make.make_graph([proto], "node", inputs, outputs)
    return make.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


@functools.cache
def _operator(name: str) -> Callable[..., Any]:
    """The torch operator for an ONNX operator, defined when it is first needed."""
    _LIBRARY.define(f"{name}(Tensor[] inputs, str graph) -> Tensor[]")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, _run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return getattr(torch.ops.laconic_onnx, name)  # type: ignore[no-any-return]


def _run(inputs: list[Tensor], graph: str) -> list[Tensor]:
    device = inputs[0].device
    return [result.to(device) for result in run_session(_session(graph), inputs)]


@functools.cache
def _session(graph: str) -> Any:
    return open_session(base64.b64decode(graph), optimize=False)
