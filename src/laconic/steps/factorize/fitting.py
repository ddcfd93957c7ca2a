"""Putting factors in the place of layers, fitted to calibration samples.

Whatever the technique, the last factor is a linear map of what those before it give: y = L z + b with z = P x, where x
is what the layer reads (a row per place, im2col). P stays; L and b are fitted so that y comes as near as can be to
what the *original* layer gave there, in least squares, from x of the network whose earlier layers are factorized
already:

    min  E |y - L z - b|^2 + m |L - L_0|^2        (Zhang, Zou, He and Sun 2015, arXiv 1505.06798, section 3.3)

L_0 is the technique's own L and m 1 % of the mean square of z. A layer that is called more than once is fitted at its
first call. (Convolution kernels weighted by the inputs' second moments before they are factorized were tried on
ResNet-20: with the fit behind them they were no better, so kernels are factorized as they are.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import TrialError
from laconic.steps.factorize.sites import Site, open_layers, wishes
from laconic.steps.quantize.layerwise import _rows
from laconic.steps.quantize.observe import calibration_inputs

_MOST_ROWS = 2**13
_LEAST_ROWS = 2**11
_NUMBERS = 2**25  # in the rows of one layer: 256 MiB
_DAMPING = 0.01
_CALLS = (F.linear, F.conv1d, F.conv2d, F.conv3d)

Modules = dict[str, nn.Module]
"""The factors' modules by their names, in the order in which they run."""


@dataclass(frozen=True)
class Rows:
    """What a layer reads (groups, rows, inputs x kernel) and what the original gave there (groups, rows, outputs)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Factors:
    """``weights``: those of all modules but the last. ``inner``: P (groups, p, inputs x kernel). ``last``: L (groups,
    outputs, p)."""

    ranks: tuple[int, ...]
    macs: int
    weights: tuple[Tensor, ...]
    inner: Tensor
    last: Tensor


@dataclass(frozen=True)
class Technique:
    """What a file of this folder supplies: the layers that it ``suits``; the empty modules of ranks; and the factors
    of a layer from its site, what is wished of it and its rows, or the reason to leave it whole."""

    suits: Callable[[surgery.Layer], bool]
    modules: Callable[[surgery.Layer, tuple[int, ...]], Modules]
    factors: Callable[[Site, float, Rows], Factors | str]


@torch.no_grad()
def factorize(
    step: Any, technique: Technique, model: nn.Module, task: Task, context: Context, ratio: float
) -> tuple[nn.Module, Facts]:
    """Replace the layers that ``step`` names, in the order in which they run; ``ratio`` is asked of those that it does
    not name."""
    found, left_whole = open_layers(model, type(step).__name__, technique.suits)
    wished = wishes(step, found, context.keep, ratio)
    left_whole = {name: reason for name, reason in left_whole.items() if name in wished}
    asked = {name: found[name] for name in wished if name not in left_whole}
    facts: Facts = {"layers": {}, "left_whole": left_whole}
    if not asked:
        return model, facts
    inputs = calibration_inputs(task)
    example = {name: x[:2] for name, x in inputs.items()}
    shapes = {name: y.shape for name, y in surgery.call(model.eval(), example).items()}
    wanted = _original(model, asked, inputs, context.seed)
    left_whole |= {name: "the model does not call it as a layer" for name in asked if name not in wanted}
    made = _in_turn(technique, model, inputs, wanted, wished, context, left_whole)
    for name, (factors, bias, error) in made.items():
        site = wanted[name].site
        surgery.set_module(model, name, _filled(technique.modules(site.layer, factors.ranks), factors, bias))
        ranks = list(factors.ranks)
        facts["layers"][name] = {"ranks": ranks, "macs": [site.macs, factors.macs], "relative_error": error}
    _check(model, example, shapes)
    return model, facts


def restored(technique: Technique, model: nn.Module, facts: Facts) -> nn.Module:
    """The structure from the facts; the weights are loaded afterwards."""
    layers = surgery.weighted_layers(model)
    for name, fact in facts["layers"].items():
        surgery.set_module(model, name, _sequence(technique.modules(layers[name], tuple(fact["ranks"]))))
    return model


# ------------------------------------------------------------------------------------------------------------- passes


@dataclass(frozen=True)
class _Wanted:
    """A layer's first call in the original network: its key, and what it gave (rows, channels) at some places."""

    site: Site
    key: str
    places: Tensor
    y: Tensor


def _original(
    model: nn.Module, layers: Mapping[str, surgery.Layer], inputs: Mapping[str, Tensor], seed: int
) -> dict[str, _Wanted]:
    """One run of the original: places drawn at random from each layer's first call."""
    wanted: dict[str, _Wanted] = {}
    generator = torch.Generator().manual_seed(seed)

    def handler(key: str, module: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        layer = layers.get(module)
        if layer is None or module in wanted or func not in _CALLS or args[1] is not layer.weight:
            return result
        axis = result.dim() - 1 if isinstance(layer, nn.Linear) else 1
        maps = result.movedim(axis, -1)  # n ... c
        most = max(_LEAST_ROWS, min(_MOST_ROWS, _NUMBERS // (layer.weight[0].numel() * _groups(layer))))
        places = torch.randperm(math.prod(maps.shape[:-1]), generator=generator)[:most].sort().values
        y = maps[torch.unravel_index(places, maps.shape[:-1])]
        if not bool(torch.isfinite(y).all()):
            raise TrialError(f"values that are not finite behind {module}")
        wanted[module] = _Wanted(_site(module, layer, args[0], result), key, places, y)
        return result

    with surgery.watched(model, handler):
        surgery.call(model, inputs)
    return wanted


def _in_turn(
    technique: Technique,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    wanted: Mapping[str, _Wanted],
    wished: Mapping[str, float],
    context: Context,
    left_whole: dict[str, str],
) -> dict[str, tuple[Factors, Tensor, float]]:
    """One run in which every layer computes with its factors as soon as it has them: factors, bias, relative error."""
    made: dict[str, tuple[Factors, Tensor, float]] = {}
    as_one: dict[str, tuple[Tensor, Tensor]] = {}
    first = {place.key: name for name, place in wanted.items()}
    done = itertools.count(1)

    def handler(key: str, module: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if key in first:
            at = wanted[module]
            context.progress(f"factorizing {module}", next(done) / len(first))
            x = _rows(at.site.layer, args, kwargs, at.places).double()
            rows = Rows(x, at.y.double().reshape(len(at.y), len(x), -1).transpose(0, 1))
            factors = technique.factors(at.site, wished[module], rows)
            if isinstance(factors, str):
                left_whole[module] = factors
            else:
                factors, bias, error = fitted(factors, rows)
                made[module] = factors, bias, error
                weight = (factors.last @ factors.inner).reshape(at.site.layer.weight.shape)
                as_one[module] = weight.to(args[0].dtype), bias.to(args[0].dtype)
        if module in as_one and func in _CALLS:
            return func(args[0], *as_one[module], *args[3:], **kwargs)
        return func(*args, **kwargs)

    with surgery.watched(model, handler):
        surgery.call(model, inputs)
    return made


def fitted(factors: Factors, rows: Rows) -> tuple[Factors, Tensor, float]:
    """The factors with L fitted; the bias (channels,); and the squared error left over the variance of y."""
    z = rows.x @ factors.inner.transpose(1, 2)  # g r p
    z_mean, y_mean = z.mean(1, keepdim=True), rows.y.mean(1, keepdim=True)
    z, y = z - z_mean, rows.y - y_mean
    square = z.transpose(1, 2) @ z  # g p p
    square += damping(square.diagonal(dim1=1, dim2=2)) * torch.eye(z.shape[2], dtype=z.dtype)
    change = torch.linalg.solve(square, z.transpose(1, 2) @ (y - z @ factors.last.transpose(1, 2)))  # g p o
    last = factors.last + change.transpose(1, 2)
    bias = y_mean - z_mean @ last.transpose(1, 2)  # g 1 o
    error = (y - z @ last.transpose(1, 2)).square().sum() / y.square().sum().clamp_min(torch.finfo(z.dtype).tiny)
    made = Factors(factors.ranks, factors.macs, factors.weights, factors.inner, last)
    return made, bias.flatten(), float(f"{float(error):.4g}")


def damping(squares: Tensor) -> Tensor:
    """What to add to second moments, whose diagonal is ``squares``, for what is never active: 1 % of their mean;
    something where nothing is active."""
    mean = squares.mean()
    return torch.where(mean > 0, _DAMPING * mean, 1.0)


def _filled(modules: Modules, factors: Factors, bias: Tensor) -> nn.Sequential:
    *before, last = modules.values()
    for module, weight in zip(before, factors.weights, strict=True):
        module.weight.copy_(weight.reshape(module.weight.shape))  # type: ignore[operator, arg-type]
    last.weight.copy_(factors.last.reshape(last.weight.shape))  # type: ignore[operator, arg-type]
    last.bias.copy_(bias)  # type: ignore[operator]
    return _sequence(modules)


def _sequence(modules: Modules) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, module in modules.items():
        sequence.add_module(name, module)
    return sequence.eval()


def _check(model: nn.Module, example: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    try:
        after = {name: y.shape for name, y in surgery.call(model, example).items()}
    except Exception as error:  # whatever a network does that reads a layer's weight itself
        raise TrialError(f"the factorized model does not run: {type(error).__name__}: {error}") from error
    if after != shapes:
        raise TrialError(f"factorization changed the model's outputs from {dict(shapes)} to {after}")


def _groups(layer: surgery.Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _site(name: str, layer: surgery.Layer, x: Tensor, y: Tensor) -> Site:
    if isinstance(layer, nn.Linear):
        tokens = (math.prod(x.shape[1:-1]),)
        return Site(name, layer, tokens, tokens)
    padded = layer._reversed_padding_repeated_twice if layer.padding_mode != "zeros" else [0, 0] * (x.dim() - 2)
    sides = [a + b for a, b in zip(padded[::2], padded[1::2], strict=True)][::-1]
    given = tuple(size - extra for size, extra in zip(x.shape[2:], sides, strict=True))
    return Site(name, layer, given, tuple(y.shape[2:]))
