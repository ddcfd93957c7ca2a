"""Integers simulated in float: the quantizer that weights and activations carry, in training and into export.

Q(x) = clamp(round(x / s) + z, qmin, qmax), and what the model computes with is (Q(x) - z) s (Jacob et al. 2017,
arXiv 1712.05877, eq. 1). Rounding is to the nearest, ties to even. The gradient is straight-through inside the
clamping range and zero outside.

On weights a :class:`FakeQuantize` is a parametrization (``torch.nn.utils.parametrize``); on activations it is attached
to a *value* (:mod:`laconic.surgery`) by :func:`attach`. Under ``torch.export`` both become the operator
``laconic::fake_quantize``, which each runtime lowers to its own quantize/dequantize pair: what was trained is what is
exported, with the same scales, to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery

PER_TENSOR = -1


@torch.library.custom_op("laconic::fake_quantize", mutates_args=())
def _operator(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
    return _dequantized(_codes(x, scale, zero_point, qmin, qmax, axis), scale, zero_point, axis)


@_operator.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
    return torch.empty_like(x)


def _spread(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A per-channel parameter shaped so that it broadcasts along ``axis`` of ``x``."""
    if axis == PER_TENSOR:
        return parameter
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.dim())])


def _codes(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
    levels = torch.round(x / _spread(scale, x, axis)) + _spread(zero_point, x, axis)
    return levels.clamp(qmin, qmax)


def _dequantized(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return (codes - _spread(zero_point, codes, axis)) * _spread(scale, codes, axis)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, q: FakeQuantize) -> Tensor:
        ctx.save_for_backward(x)
        ctx.q = q
        return _dequantized(q.codes(x), q.scale, q.zero_point, q.axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        q: FakeQuantize = ctx.q
        low = _spread((q.qmin - q.zero_point - 0.5) * q.scale, x, q.axis)
        high = _spread((q.qmax - q.zero_point + 0.5) * q.scale, x, q.axis)
        return grads[0] * ((x >= low) & (x <= high)), None


class FakeQuantize(nn.Module):
    """Rounds its input to ``qmax - qmin + 1`` levels; ``axis`` is the channel axis, or ``PER_TENSOR``.

    ``scale`` and ``zero_point`` are scalars per tensor and vectors per channel.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int = PER_TENSOR) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().float())
        self.register_buffer("zero_point", zero_point.detach().to(torch.int32))
        self.qmin, self.qmax, self.axis = qmin, qmax, axis

    def codes(self, x: Tensor) -> Tensor:
        """The integer levels of ``x``, kept in float."""
        return _codes(x, self.scale, self.zero_point, self.qmin, self.qmax, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            levels = (self.qmin, self.qmax, self.axis)
            return torch.ops.laconic.fake_quantize(x, self.scale, self.zero_point, *levels)  # type: ignore[no-any-return]
        if self.axis == PER_TENSOR:  # one fused kernel; activations are large
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)
        return _StraightThrough.apply(x, self)  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------------------------------- groups


@torch.library.custom_op("laconic::fake_quantize_groups", mutates_args=())
def _groups_operator(x: Tensor, scale: Tensor, qmin: int, qmax: int, group: int) -> Tensor:
    spread = _spread_groups(scale, x, group)
    return torch.round(x / spread).clamp(qmin, qmax) * spread


@_groups_operator.register_fake
def _(x: Tensor, scale: Tensor, qmin: int, qmax: int, group: int) -> Tensor:
    return torch.empty_like(x)


def _spread_groups(scale: Tensor, x: Tensor, group: int) -> Tensor:
    """The scale of every weight: (out, groups) -> the shape of ``x``."""
    inputs = x[0].numel()
    return scale.repeat_interleave(group or inputs, 1)[:, :inputs].reshape(x.shape)


class _StraightThroughGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, q: GroupQuantize) -> Tensor:
        levels = x / _spread_groups(q.scale, x, q.group)
        ctx.save_for_backward((levels >= q.qmin - 0.5) & (levels <= q.qmax + 0.5))
        return torch.ops.laconic.fake_quantize_groups(x, q.scale, q.qmin, q.qmax, q.group)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class GroupQuantize(FakeQuantize):
    """Rounds a weight (out, in, ...) in groups of ``group`` consecutive inputs of an output; 0: each output is one.

    ``scale`` is (out, ceil(in / group)) and may be negative: one side of zero has a level more, and the sign says
    which. There is no zero point.
    """

    def __init__(self, scale: Tensor, qmin: int, qmax: int, group: int) -> None:
        super().__init__(scale, torch.zeros(()), qmin, qmax, axis=0)
        self.group = group

    def codes(self, x: Tensor) -> Tensor:
        return torch.round(x / _spread_groups(self.scale, x, self.group)).clamp(self.qmin, self.qmax)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return torch.ops.laconic.fake_quantize_groups(x, self.scale, self.qmin, self.qmax, self.group)  # type: ignore[no-any-return]
        return _StraightThroughGroups.apply(x, self)  # type: ignore[no-any-return]


def weight_quantizer(layer: nn.Module) -> FakeQuantize | None:
    """The quantizer on a layer's weight, if it carries one."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    chain = layer.parametrizations["weight"]  # type: ignore[index]
    return next((q for q in chain if isinstance(q, FakeQuantize)), None)


# --------------------------------------------------------------------------------------------------------- activations


@dataclass(frozen=True)
class Shared:
    """Values that share one quantizer. ``passive`` are those which already lie on its grid because an operator only
    moved them there (max pooling, reshaping): they need a node in the exported file, but no rounding."""

    active: tuple[str, ...]
    passive: tuple[str, ...] = ()


_CHILD = "activation_quantizers"


class ActivationQuantizers(nn.Module):
    """The quantizers on a model's values; lives in the model as the child ``activation_quantizers``."""

    def __init__(self, groups: Sequence[tuple[Shared, FakeQuantize]], input_names: Sequence[str]) -> None:
        super().__init__()
        self.groups = tuple(shared for shared, _ in groups)
        self.quantizers = nn.ModuleList([quantizer for _, quantizer in groups])
        self.input_names = tuple(input_names)
        self.active = {name: i for i, group in enumerate(self.groups) for name in group.active}
        self.passive = {name: i for i, group in enumerate(self.groups) for name in group.passive}

    def forward(self, x: Any) -> Any:
        """The identity: a model that runs all its children in turn (``nn.Sequential``) runs this one too."""
        return x

    def apply_to(self, name: str, x: Any) -> Any:
        """The value called ``name``, quantized if it carries a quantizer."""
        index = self.active.get(name)
        if index is None and torch.compiler.is_exporting():
            index = self.passive.get(name)
        if index is None:
            return x
        # what training computed in bf16 has as many digits as 8 bits; a trained scale's gradient needs more
        return self.quantizers[index](x.float() if x.dtype == torch.bfloat16 else x)

    def by_value(self) -> dict[str, FakeQuantize]:
        quantizers: dict[str, FakeQuantize] = {}
        for name, index in (self.active | self.passive).items():
            quantizer = self.quantizers[index]
            assert isinstance(quantizer, FakeQuantize)
            quantizers[name] = quantizer
        return quantizers


def attach(model: nn.Module, groups: Sequence[tuple[Shared, FakeQuantize]], input_names: Sequence[str]) -> None:
    """Make ``model`` quantize these values whenever it runs; ``input_names`` in the order of its arguments."""
    assert attached(model) is None, "a model carries one set of activation quantizers"
    model.add_module(_CHILD, ActivationQuantizers(groups, input_names))
    own = getattr(model.forward, "__func__", type(model).forward)  # a step before may have wrapped the class's
    model.forward = MethodType(_quantized_forward(own), model)


def attached(model: nn.Module) -> ActivationQuantizers | None:
    """The activation quantizers that ``model`` carries, if any."""
    child = getattr(model, _CHILD, None)
    return child if isinstance(child, ActivationQuantizers) else None


def float_values(model: nn.Module) -> None:
    """From now on the values of ``model`` are what they are, and its weights alone are quantized."""
    quantizers = attached(model)
    if quantizers is not None:
        quantizers.active.clear()


@functools.cache
def _quantized_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        quantizers = attached(self)
        assert quantizers is not None

        def handler(key: str, module: str, func: Callable[..., Any], fargs: Any, fkwargs: Any) -> Any:
            result = func(*fargs, **fkwargs)
            quantized = [quantizers.apply_to(name, part) for name, part in surgery.named_results(key, result)]
            return type(result)(quantized) if isinstance(result, (tuple, list)) else quantized[0]

        names = quantizers.input_names
        args = tuple(quantizers.apply_to(f"input/{n}", a) for n, a in zip(names, args, strict=False))
        kwargs = {n: quantizers.apply_to(f"input/{n}", a) for n, a in kwargs.items()}
        with surgery.watched(self, handler):
            return forward(self, *args, **kwargs)

    return run
