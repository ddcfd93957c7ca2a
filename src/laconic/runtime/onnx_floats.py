"""Weights that a shorter float holds exactly, stored in it, and made float32 again when a runtime opens the file.

A weight is f8e4m3 or f8e5m2 (Micikevicius et al. 2022, arXiv 2209.05433, table 1) times a power of two per output
channel, f16, or bf16: the shortest that gives it back to the bit, whichever step rounded it. In the graph a Cast makes
the numbers float32 and a Mul brings the channels' scales back; both are constant, so ONNX Runtime and OpenVINO compute
them once, while they open the file. ONNX casts 8-bit floats since opset 19; in an older file their codes are uint8, and
a Gather looks them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from laconic.core import Array
from laconic.runtime.onnx_blocks import stored_scale
from laconic.runtime.onnx_graph import initializer

LEAST_OPSET = 19
"""Since when ONNX casts 8-bit floats."""
_SHORT: dict[Any, float] = {ml_dtypes.float8_e5m2: 57344.0, ml_dtypes.float8_e4m3fn: 448.0}
"""8-bit floats and their largest numbers; the shorter significand first, as the other often holds its numbers too."""
_HALF: tuple[Any, ...] = (ml_dtypes.bfloat16, np.float16)
_LEAST_EXPONENT = -126  # of a float32 that is not subnormal
_NODE_BYTES = 60  # what a node weighs itself, about


@dataclass(frozen=True)
class ShortFloat:
    """A weight (out, in, ...) as ``numbers`` of a shorter type, times ``scale`` (out, 1, ...) where there is one."""

    numbers: Array
    scale: Array | None = None

    @property
    def size_bytes(self) -> int:
        scale = 0 if self.scale is None else self.scale.nbytes + _NODE_BYTES
        return int(self.numbers.nbytes + _NODE_BYTES + scale)


def shortest(weight: Array) -> ShortFloat | None:
    """The shortest float that holds a float32 weight exactly, or None if that is float32."""
    if weight.dtype != np.float32 or weight.size == 0 or not np.isfinite(weight).all():
        return None
    return next((form for form in _forms(weight) if np.array_equal(_whole(form), weight)), None)


def _forms(weight: Array) -> Iterator[ShortFloat]:
    with np.errstate(over="ignore"):
        for kind, most in _SHORT.items():
            scale = _scales(weight, most)
            yield ShortFloat((weight / scale).astype(kind), scale)
        for kind in _HALF:
            yield ShortFloat(weight.astype(kind))


def _whole(form: ShortFloat) -> Array:
    """The float32 weight again."""
    whole: Array = form.numbers.astype(np.float32)
    return whole if form.scale is None else whole * form.scale


def _scales(weight: Array, most: float) -> Array:
    """The least power of two per output channel, (out, 1, ...), by which the largest weight, divided, is at most
    ``most``: where any power of two gives a weight of the format back, this one does."""
    largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    (part, exponent), (reach_part, reach) = np.frexp(largest), np.frexp(most)
    exponent = np.maximum(exponent - reach + (part > reach_part), _LEAST_EXPONENT)
    return np.where(largest > 0, np.ldexp(np.float32(1), exponent), np.float32(1))


def decoded(graph: ir.Graph, form: ShortFloat, name: str, opset: int) -> list[ir.Node]:
    """The nodes that give the float32 weight called ``name``, the last of them the weight itself."""
    numbers, nodes = form.numbers, []
    if numbers.itemsize == 1 and opset < LEAST_OPSET:
        codes = initializer(graph, name, numbers.view(np.uint8))
        every = np.arange(2**8, dtype=np.uint8).view(numbers.dtype).astype(np.float32)
        table = initializer(graph, f"{name}.numbers", np.nan_to_num(every))  # no weight is NaN
        nodes.append(ir.node("Cast", [codes], attributes={"to": ir.DataType.INT32}))
        nodes.append(ir.node("Gather", [table, nodes[-1].outputs[0]]))
    else:
        nodes.append(ir.node("Cast", [initializer(graph, name, numbers)], attributes={"to": ir.DataType.FLOAT}))
    if form.scale is not None:
        more, scale = stored_scale(graph, form.scale, f"{name}.scale")
        nodes += [*more, ir.node("Mul", [nodes[-1].outputs[0], scale])]
    return nodes
