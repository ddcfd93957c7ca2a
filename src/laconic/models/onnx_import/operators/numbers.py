"""ONNX operators on sizes: the arithmetic of shapes, in Python numbers and lists of them instead of tensors.

``Shape`` gives a list. As long as operators of this table work on it, what comes out can be the shape of a Reshape
without leaving Python, and ``torch.export`` sees a size where it would have seen data. Anything else gets a tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from laconic.models.onnx_import.graph import Node, torch_dtype
from laconic.models.onnx_import.operators.errors import UnsupportedError

LONGEST = 16
"""No shape is longer: longer constants stay tensors."""


def as_tensor(value: Any, device: torch.device | None = None) -> Tensor:
    """A number or a list of numbers as the integer tensor that ONNX means; tensors pass."""
    return value if isinstance(value, Tensor) else torch.tensor(value, device=device)


def as_numbers(value: Tensor) -> Any:
    """A small integer tensor as a number or a list; None for other tensors."""
    small = value.dim() < 2 and value.numel() <= LONGEST and not value.is_floating_point()
    return value.tolist() if small else None


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Element by element; single numbers and lists of one go with every element of a longer list."""

    def apply(node: Node, *inputs: Any) -> Any:
        if not any(isinstance(value, list) for value in inputs):
            return function(*inputs)
        lists = [value if isinstance(value, list) else [value] for value in inputs]
        length = max(len(values) for values in lists)
        return [function(*items) for items in zip(*(v * length if len(v) == 1 else v for v in lists), strict=True)]

    return apply


def _shape(node: Node, x: Tensor) -> Any:
    return list(x.shape[node.get("start", 0) : node.get("end", None)])


def _gather(node: Node, sizes: Any, indices: Any) -> Any:
    return [sizes[i] for i in indices] if isinstance(indices, list) else sizes[indices]


def _slice(node: Node, sizes: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    (start,), (end,) = node.get("starts", starts), node.get("ends", ends)
    return sizes[start : end : steps[0] if steps else 1]


def _reshape(node: Node, sizes: Any, shape: Any) -> Any:
    if len(shape) > 1:
        raise UnsupportedError("sizes in two dimensions")
    values = sizes if isinstance(sizes, list) else [sizes]
    return values if shape else values[0]


def _unsqueeze(node: Node, size: Any, axes: Any = None) -> Any:
    if isinstance(size, list):
        raise UnsupportedError("sizes in two dimensions")
    return [size]


def _squeeze(node: Node, sizes: Any, axes: Any = None) -> Any:
    return sizes[0] if isinstance(sizes, list) and len(sizes) == 1 else sizes


def _cast(node: Node, sizes: Any) -> Any:
    if torch_dtype(node.attributes["to"]) not in (torch.int64, torch.int32):
        raise UnsupportedError("sizes that become floats")
    return sizes


NUMBERS: dict[str, Callable[..., Any]] = {
    "Add": _each(operator.add),
    "Cast": _cast,
    "Concat": lambda node, *lists: [size for sizes in lists for size in sizes],
    "Div": _each(operator.floordiv),
    "Equal": _each(operator.eq),
    "Gather": _gather,
    "Identity": lambda node, sizes: sizes,
    "Mul": _each(operator.mul),
    "Range": lambda node, start, limit, delta: torch.arange(start, limit, delta),
    "ReduceProd": lambda node, sizes, axes=None: [math.prod(sizes)] if node.get("keepdims", 1) else math.prod(sizes),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(operator.sub),
    "Unsqueeze": _unsqueeze,
    "Where": _each(lambda condition, a, b: a if condition else b),
}
SIZES: dict[str, Callable[..., Any]] = {"Shape": _shape, "Size": lambda node, x: x.numel()}
"""Operators that make sizes out of a tensor."""
