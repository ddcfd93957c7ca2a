"""Weights rounded to what is cheapest to store for what it costs in accuracy, without training.

Minimised is L + lambda R. R are the bits that the integers will be coded in (:mod:`.code_length`). L is how far the
network moves from the original, to second order and layer by layer: a change of a layer's weights by rows d_c costs

    L = F / 2 sum_c d_c H d_c^T,    H = E[x x^T] of what it reads,    F = E[mean over c, sum over places of (dL/dy_c)^2]

the Fisher information of its outputs (of convolutions as in Grosse and Martens 2016, arXiv 1602.01407, with errors at
different places taken for independent): gradients towards the task's labels, or, without labels, towards ones that are
drawn from what the original says. (F of each channel c for itself, from few samples, was worse: a class that none of
them is taken for got no bits.)

Rounding goes input by input and passes its error on to the weights that are still to be rounded (:mod:`.gptq`, where e
and U are). So L is a sum over weights, and each takes the integer of the least

    F / 2 e^2 + lambda bits

among the nearest, the next towards zero, and zero: rate-distortion optimised quantization as in video codecs and
DeepCABAC (Wiedemann et al. 2020, arXiv 1907.11900), with GPTQ's errors as in Conzelmann and Bamler 2025 (arXiv
2505.18758). The bits depend on the integers of all weights, so this is done :data:`_PASSES` times.

The step of a layer is the one at which a finer one would cost as much as it gains. At high rate a weight's error is
s^2 / 12, and a bit halves s (Gish and Pierce 1968, "Asymptotically efficient quantizing"):

    s^2 = 12 lambda / (ln 2  F  mean_j U_jj^-2)

So one price says how many bits each layer gets. A channel whose largest weight needs more than 127 steps has a step of
its own. Biases are rounded by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import FakeQuantize
from laconic.steps.cluster.codebook import open_layers
from laconic.steps.prune.evidence import SAMPLES, calls_layer, sample_loss
from laconic.steps.prune.mask import only_masked
from laconic.steps.quantize import rounding
from laconic.steps.quantize.code_length import lengths
from laconic.steps.quantize.gptq import Columns, Pick
from laconic.steps.quantize.layerwise import Rows, choose_codes, give_biases
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.settings import check_types

_TOP = 127
_PASSES = 2
_MANTISSA = 3  # bits of a step's: what it loses is less than a thousandth, and a packed file has a byte less
_KILOBYTE = 8000.0  # bits
_LEAST_FISHER = 1e-12
_BIAS_SHARE = 0.25  # of a weight's step: the error of a bias is the same at all places


@dataclass(frozen=True)
class RateDistortion:
    """Round weights to integers of at most 8 bits times a step per channel; ``price`` is what a kilobyte (1000 bytes)
    of them costs in units of the loss.

    Weights of another form (shared values, say) are left alone; ``exclude``: globs of layers left in float.
    """

    price: float = 1e-4
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.price <= 0:
            raise RecipeError("price of RateDistortion", got=self.price, wanted="more than 0")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        left = (*self.exclude, *context.keep)
        layers = {
            name: layer for name, layer in open_layers(model, left, "RateDistortion").items() if only_masked(layer)
        }
        if not layers:
            return model, {"folded": [], "layers": []}
        example = {name: torch.as_tensor(x) for name, x in task.train.read([0, 1]).inputs.items()}
        folded = [list(pair) for pair in surgery.fold_batch_norm(model.eval(), surgery.trace(model, example))]
        fisher = output_fisher(model, layers, task, context)
        for layer in layers.values():
            _quantize(layer)
        price = self.price / _KILOBYTE
        names = {layer: name for name, layer in layers.items()}

        def choose(layer: Any, rows: Rows) -> Tensor:
            weight = rounding.float_weight(layer)
            grouped = rows.grouped(weight)
            columns = Columns((rows.x.transpose(1, 2) @ rows.x).double() / rows.x.shape[1])
            each = price / fisher[names[layer]]  # of a bit, in units of e^2 / 2
            steps = best_steps(grouped, columns, each)
            rounding.quantizer_of(layer).scale.copy_(steps.flatten())
            return codes_of(grouped, steps, columns, each).reshape(weight.shape)

        uncalled = choose_codes(model, layers, task, context, choose)
        for name, layer in layers.items():
            if name not in uncalled:
                _round_bias(layer, price / fisher[name])
        return model, {"folded": folded, "layers": list(layers), "left": uncalled}

    def restore(self, model: Any, facts: Facts) -> Any:
        for layer, norm in facts["folded"]:
            surgery.give_bias(model.get_submodule(layer))
            surgery.set_module(model, norm, nn.Identity())
        layers = {name: model.get_submodule(name) for name in facts["layers"]}
        for layer in layers.values():
            _quantize(layer)
        give_biases(layers)
        return model


def _quantize(layer: Any) -> None:
    largest = layer.weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / _TOP, 1.0)
    quantizer = FakeQuantize(scale, torch.zeros_like(scale), -_TOP, _TOP, axis=0)
    parametrize.register_parametrization(layer, "weight", quantizer)


def output_fisher(
    model: nn.Module, layers: Mapping[str, surgery.Layer], task: Task, context: Context
) -> dict[str, float]:
    """F of each layer (module docstring); of one that is never called, or does not matter, next to nothing."""
    loss = sample_loss(task, context)
    found = dict.fromkeys(layers, _LEAST_FISHER)
    count = min(SAMPLES, len(next(iter(calibration_inputs(task).values()))))
    parameters = [surgery.parameter_of(layer) for layer in layers.values()]
    before = [p.requires_grad for p in parameters]

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if module in found and calls_layer(key):

            def add(gradient: Tensor) -> None:
                found[module] += float(gradient.square().sum()) / len(layers[module].weight) / count

            result.register_hook(add)
        return result

    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for i in range(count):
            with torch.enable_grad(), surgery.watched(model, handler):
                value = loss(model, task.train.read([i]))
            torch.autograd.grad(value, parameters, allow_unused=True)
            context.progress("gradients", (i + 1) / count)
    finally:
        for parameter, wanted in zip(parameters, before, strict=True):
            parameter.requires_grad_(wanted)
    if not all(map(math.isfinite, found.values())):
        raise TrialError("gradients that are not finite")
    return found


def best_steps(weight: Tensor, columns: Columns, price: float) -> Tensor:
    """The steps (groups, channels) of ``weight`` (groups, channels, inputs) at ``price`` of a bit in units of e^2 / 2:
    none less than the largest code reaches, none more than leaves all codes zero."""
    largest = weight.abs().amax(-1).double()
    spread = columns.upper.diagonal(dim1=1, dim2=2).pow(-2).mean(1)  # g
    wanted = (12 * price / (math.log(2) * spread)).sqrt()[:, None]
    steps = torch.minimum(torch.maximum(wanted, largest / _TOP), 2 * largest)
    unit = torch.exp2(steps.log2().floor() - _MANTISSA)
    return torch.where(steps > 0, (steps / unit).ceil() * unit, 1.0)


def codes_of(weight: Tensor, steps: Tensor, columns: Columns, price: float) -> Tensor:
    """The codes (groups, channels, inputs) of the least e^2 / 2 + ``price`` times bits (module docstring)."""
    scale = steps[:, :, None].expand(weight.shape)
    codes = torch.round(weight / scale)
    for _ in range(_PASSES):
        codes = columns.codes(weight, scale, _cheapest(codes, steps, columns, price))
    return codes


def _cheapest(codes: Tensor, steps: Tensor, columns: Columns, price: float) -> Pick:
    """Picks what is cheapest where ``codes`` are those of all weights."""
    zero, other, magnitude = lengths(codes.flatten(0, 1).abs().double(), _TOP)
    zero, other = (columns.ordered(bits.reshape(codes.shape)) for bits in (zero, other))

    def pick(levels: Tensor, j: int) -> Tensor:
        nearest = torch.round(levels).clamp(-_TOP, _TOP)
        tried = torch.stack([nearest, nearest - nearest.sign(), torch.zeros_like(nearest)])  # t g c
        bits = torch.where(tried == 0, zero[:, :, j], other[:, :, j] + magnitude[tried.abs().long()])
        error = (levels - tried) * steps / columns.upper[:, j, j, None]
        return tried.gather(0, (error.square() / 2 + price * bits).argmin(0, keepdim=True))[0]

    return pick


@torch.no_grad()
def _round_bias(layer: surgery.Layer, price: float) -> None:
    """A bias in multiples of a power of two: as float32 its last bits are zeros."""
    assert layer.bias is not None
    step = 2.0 ** math.floor(math.log2(_BIAS_SHARE * math.sqrt(12 * price / math.log(2))))
    layer.bias.copy_((layer.bias / step).round() * step)
