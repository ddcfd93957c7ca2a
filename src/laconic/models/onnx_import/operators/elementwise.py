"""ONNX operators that treat each element for itself, and the softmaxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.models.onnx_import.graph import Node, torch_dtype
from laconic.models.onnx_import.operators.errors import UnsupportedError

Function = Callable[..., Any]


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda node, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda node, a, b: function(a, b)


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda node, *inputs: reduce(function, inputs)


def _mean(node: Node, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _div(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(node: Node, x: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(x, exponent).to(x.dtype)


def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low, high = node.get("min", low), node.get("max", high)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    channels = slope.numel()
    if channels == 1 or (x.dim() > 1 and slope.shape[:1] == (x.shape[1],) and channels == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Function:
    def apply(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.get("axis", -1))
        axis = node.get("axis", 1) % x.dim()
        if axis == x.dim() - 1:
            return function(x, axis)
        return function(torch.flatten(x, axis), -1).reshape(x.shape)  # before opset 13 all axes from ``axis`` are one

    return apply


def _cast(node: Node, x: Tensor) -> Tensor:
    try:
        return x.to(torch_dtype(node.attributes["to"]))
    except (KeyError, TypeError) as error:
        raise UnsupportedError(f"a cast to type {node.attributes['to']}") from error


def _cumsum(node: Node, x: Tensor, axis: Any) -> Tensor:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise UnsupportedError("an exclusive or reverse CumSum")
    return torch.cumsum(x, int(axis))


def _dropout(node: Node, x: Tensor, *_: Any) -> Tensor:
    return x


OPERATORS: dict[str, Function] = {
    "Abs": _unary(torch.abs),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "HardSwish": _unary(F.hardswish),
    "Identity": _unary(lambda x: x),
    "IsInf": _unary(torch.isinf),
    "IsNaN": _unary(torch.isnan),
    "Log": _unary(torch.log),
    "Mish": _unary(F.mish),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(F.relu),
    "Round": _unary(torch.round),
    "Selu": _unary(F.selu),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Mul": _binary(torch.mul),
    "Or": _binary(torch.logical_or),
    "Sub": _binary(torch.sub),
    "Xor": _binary(torch.logical_xor),
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Where": lambda node, condition, a, b: torch.where(condition, a, b),
    "Clip": _clip,
    "Elu": lambda node, x: F.elu(x, node.get("alpha", 1.0)),
    "Celu": lambda node, x: F.celu(x, node.get("alpha", 1.0)),
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "ThresholdedRelu": lambda node, x: F.threshold(x, node.get("alpha", 1.0), 0.0),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "PRelu": _prelu,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Cast": _cast,
    "CastLike": lambda node, x, like: x.to(like.dtype),
    "CumSum": _cumsum,
    "Dropout": _dropout,
}
