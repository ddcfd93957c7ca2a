"""The finishing of a converted TFLite file, as its own objects (the flatbuffer's object API).

The converter takes the outermost quantizers off, so that whoever calls the file must round its inputs himself: they are
put back, since inside the file the runtime's own kernels do it, ten times faster than numpy. And it leaves a padding in
front of a quantized convolution where torch has its channels, between two transpositions of the whole map: what is
TensorFlow's own padding ("SAME") becomes the convolution's.
"""

from __future__ import annotations

import copy
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_IDENTIFIER = b"TFL3"
_KINDS = schema.BuiltinOperator
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # what a transposition does with the axis of channels


def finished(content: bytes) -> bytes:
    """The file with float inputs and outputs, and padding folded into its convolutions; names stay where they were."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    graph.inputs, graph.outputs = list(graph.inputs), list(graph.outputs)
    _Padding(model, graph).fold()
    _float_edges(model, graph)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _kind(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


# ------------------------------------------------------------------------------------------------------------- padding


class _Padding:
    """Finds pad -> transpose -> convolution, and what is in front of it."""

    def __init__(self, model: Any, graph: Any) -> None:
        self.model, self.graph = model, graph
        self.made = {operator.outputs[0]: operator for operator in graph.operators}
        self.readers: dict[int, list[Any]] = {}
        for operator in graph.operators:
            for index in operator.inputs:
                self.readers.setdefault(index, []).append(operator)

    def fold(self) -> None:
        gone: list[Any] = []
        for pad in self.graph.operators:
            turn = self._only_reader(pad, _KINDS.PAD)
            conv = None if turn is None else self._only_reader(turn, _KINDS.TRANSPOSE)
            if turn is None or conv is None:
                continue
            if self._constant(turn.inputs[1]) != _TO_LAST or not self._is_same(pad, conv):
                continue
            before = self.made.get(pad.inputs[0])
            gone.append(pad)
            if (
                before is not None
                and _kind(self.model, before) == _KINDS.TRANSPOSE
                and (self._constant(before.inputs[1]) == _TO_FIRST)
            ):  # the map comes as the convolution wants it
                conv.inputs = [before.inputs[0], *conv.inputs[1:]]
                gone.append(turn)
                if self._only_reader(before, _KINDS.TRANSPOSE) is pad:
                    gone.append(before)
            else:
                turn.inputs = [pad.inputs[0], *turn.inputs[1:]]
                shape = self._shape(pad.inputs[0])
                self.graph.tensors[turn.outputs[0]].shape = [shape[axis] for axis in _TO_LAST]
            conv.builtinOptions.padding = schema.Padding.SAME
        self.graph.operators = [o for o in self.graph.operators if not any(o is g for g in gone)]

    def _only_reader(self, operator: Any, kind: int) -> Any | None:
        """What alone reads the output of ``operator``, if that is of this kind."""
        readers = self.readers.get(operator.outputs[0], [])
        if _kind(self.model, operator) != kind or len(readers) != 1 or operator.outputs[0] in self.graph.outputs:
            return None
        return readers[0]

    def _constant(self, index: int) -> Any:
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        return None if data is None else np.frombuffer(bytes(data), np.int32).tolist()

    def _shape(self, index: int) -> list[int]:
        return [int(size) for size in self.graph.tensors[index].shape]

    def _is_same(self, pad: Any, conv: Any) -> bool:
        """Whether the padding is what TensorFlow's "SAME" would add to this convolution."""
        amounts = self._constant(pad.inputs[1])
        if _kind(self.model, conv) not in (_KINDS.CONV_2D, _KINDS.DEPTHWISE_CONV_2D) or amounts is None:
            return False
        how, kernel, size = conv.builtinOptions, self._shape(conv.inputs[1]), self._shape(pad.inputs[0])
        if how.padding != schema.Padding.VALID or (how.dilationHFactor, how.dilationWFactor) != (1, 1):
            return False
        wanted = [0, 0, 0, 0]
        for axis, stride in ((1, how.strideH), (2, how.strideW)):
            length = size[axis + 1]  # of an (n, c, h, w) map
            total = max((-(-length // stride) - 1) * stride + kernel[axis] - length, 0)
            wanted += [total // 2, total - total // 2]
        return bool(amounts == wanted)


# --------------------------------------------------------------------------------------------------------------- edges


def _float_edges(model: Any, graph: Any) -> None:
    renamed: dict[int, int] = {}
    for i, index in enumerate(graph.inputs):
        if graph.tensors[index].type == schema.TensorType.INT8:
            renamed[index] = graph.inputs[i] = _float_tensor(graph, index)
            graph.operators.insert(0, _operator(model, _KINDS.QUANTIZE, renamed[index], index))
    for i, index in enumerate(graph.outputs):
        if graph.tensors[index].type == schema.TensorType.INT8:
            renamed[index] = graph.outputs[i] = _float_tensor(graph, index)
            graph.operators.append(_operator(model, _KINDS.DEQUANTIZE, index, renamed[index]))
    for signature in model.signatureDefs or []:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = renamed.get(entry.tensorIndex, entry.tensorIndex)


def _float_tensor(graph: Any, index: int) -> int:
    """A new tensor like the one at ``index``, in float, under its name."""
    edge = copy.copy(graph.tensors[index])
    edge.type, edge.quantization = schema.TensorType.FLOAT32, None
    graph.tensors[index].name = edge.name + b"/codes"
    graph.tensors.append(edge)
    return len(graph.tensors) - 1


def _operator(model: Any, kind: int, source: int, made: int) -> Any:
    kinds = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    if kind not in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 1
        model.operatorCodes.append(code)
        kinds.append(kind)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = kinds.index(kind), [source], [made]
    return operator
