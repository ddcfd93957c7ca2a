"""ONNX pooling, and the padding that it shares with convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.models.onnx_import.graph import Node
from laconic.models.onnx_import.operators.errors import UnsupportedError


def spatial_pads(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """What ``pads`` or ``auto_pad`` add before and after each spatial axis of an input of ``sizes``."""
    rank = len(kernel)
    auto = node.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = node.get("pads", [0] * 2 * rank)
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    totals = [
        max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def flat_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The same as ``F.pad`` wants it: last axis first."""
    return [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel: list[int] = node.attributes["kernel_shape"]
    if len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError("MaxPool with indices")
    before, after = spatial_pads(node, x.shape[2:], kernel)
    strides, dilations = node.get("strides", [1] * len(kernel)), node.get("dilations", [1] * len(kernel))
    if before != after:
        if any(dilation > 1 for dilation in dilations):
            raise UnsupportedError("MaxPool with dilation and uneven padding")
        x = F.pad(x, flat_pads(before, after), "replicate")  # the maximum sees the edge twice: no infinity needed
        before = [0] * len(kernel)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    result: Tensor = pool(x, kernel, strides, before, dilations, ceil_mode=bool(node.get("ceil_mode", 0)))
    return result


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel: list[int] = node.attributes["kernel_shape"]
    strides = node.get("strides", [1] * len(kernel))
    if any(dilation > 1 for dilation in node.get("dilations", [1])):
        raise UnsupportedError("AveragePool with dilation")
    before, after = spatial_pads(node, x.shape[2:], kernel)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil, padded = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    if before == after:
        result: Tensor = pool(x, kernel, strides, before, ceil, padded)
        return result
    if ceil:
        raise UnsupportedError("AveragePool with ceil_mode and uneven padding")
    pads = flat_pads(before, after)
    total: Tensor = pool(F.pad(x, pads), kernel, strides)
    if padded:
        return total
    share: Tensor = pool(F.pad(torch.ones_like(x[:1, :1]), pads), kernel, strides)
    return total / share


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda node, x: torch.mean(x, _space(x), keepdim=True),
    "GlobalMaxPool": lambda node, x: torch.amax(x, _space(x), keepdim=True),
    "MaxPool": _max_pool,
}
