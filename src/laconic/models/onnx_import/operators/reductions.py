"""ONNX reductions, normalisations and products of two computed values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.models.onnx_import.graph import Node
from laconic.models.onnx_import.operators.errors import UnsupportedError
from laconic.models.onnx_import.operators.pooling import flat_pads, spatial_pads
from laconic.models.onnx_import.operators.shapes import ints


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Any]:
    def apply(node: Node, x: Tensor, axes: Any = None) -> Tensor:
        given = node.get("axes", axes)
        wanted = tuple(ints(given)) if given is not None else ()
        if not wanted:
            if node.get("noop_with_empty_axes", 0):
                return x
            wanted = tuple(range(x.dim()))
        return function(x, wanted, bool(node.get("keepdims", 1)))

    return apply


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def apply(node: Node, x: Tensor) -> Tensor:
        if node.get("select_last_index", 0):
            raise UnsupportedError("the last of equal maxima")
        return function(x, node.get("axis", 0), bool(node.get("keepdims", 1)))

    return apply


def _only_first(node: Node) -> None:
    if len([name for name in node.outputs if name]) > 1:
        raise UnsupportedError(f"{node.operator} with more than one output")


def _batch_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    _only_first(node)
    if node.get("training_mode", 0):
        raise UnsupportedError("BatchNormalization in training mode")
    return F.batch_norm(x, mean, variance, weight, bias, eps=node.get("epsilon", 1e-5))


def _layer_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    _only_first(node)
    shape = x.shape[node.get("axis", -1) % x.dim() :]
    offset = None if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, weight.expand(shape), offset, node.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=node.get("epsilon", 1e-5))


def _group_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if len(weight) != x.shape[1]:
        raise UnsupportedError("GroupNormalization with one weight per group")
    return F.group_norm(x, node.attributes["num_groups"], weight, bias, node.get("epsilon", 1e-5))


def _local_response_norm(node: Node, x: Tensor) -> Tensor:
    size = node.attributes["size"]
    if size % 2 == 0:
        raise UnsupportedError("LRN of an even size")
    return F.local_response_norm(x, size, node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0))


def _lp_normalization(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, node.get("p", 2), node.get("axis", -1), eps=0.0)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    alpha: float = node.get("alpha", 1.0)
    product = torch.matmul(a, b) * alpha
    return product if c is None else torch.add(product, c, alpha=node.get("beta", 1.0))


def _convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution whose weight is computed."""
    rank = weight.dim() - 2
    before, after = spatial_pads(node, x.shape[2:], weight.shape[2:])
    if before != after:
        x, before = F.pad(x, flat_pads(before, after)), [0] * rank
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    result: Tensor = convolve(x, weight, bias, strides, before, dilations, node.get("group", 1))
    return result


OPERATORS: dict[str, Callable[..., Any]] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "Einsum": lambda node, *inputs: torch.einsum(node.attributes["equation"], *inputs),
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "LRN": _local_response_norm,
    "MatMul": lambda node, a, b: torch.matmul(a, b),
    "ReduceL1": _reduction(lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_prod),
    "ReduceSum": _reduction(torch.sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
}
