"""INT8 after training: integer weights and activations from a few hundred samples, no labels, seconds of work.

Weights: symmetric per output channel, s_c = max|w_c| / qmax. Activations: affine per tensor, ranges from
:mod:`.ranges`. Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2: E[y] - E[y~] is added to the bias)
is sequential and empirical: while the quantized network runs once over the calibration samples, each layer's bias is
moved, before the next layer runs, until the channel means *behind the fused activation* equal the float network's.
That differs from the paper, which matches the means in front of it from batch-norm statistics.

Cost: three runs of the network over the calibration samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import FakeQuantize, Shared, attach, attached
from laconic.steps.quantize.placement import Placement, place
from laconic.steps.quantize.ranges import RANGES, Histogram, affine
from laconic.steps.settings import check_types

_BINS = 2048
_CHUNK = 32
_NEWTON_STEPS = 4
_LEAST_SCALE = 2.0**-16  # of the median channel's
_LARGEST_BIAS = 2.0**29  # in codes; the runtime holds 2^30, and bias correction is still to come


@dataclass(frozen=True)
class Quantize:
    """Post-training INT8. ``ranges``: how activation ranges are chosen. ``exclude``: globs of layers left in float."""

    ranges: Literal["minmax", "percentile", "mse"] = "mse"
    bias_correction: bool = True
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if attached(model) is not None:
            raise RecipeError("Quantize comes twice in this recipe", fix="keep one of them")
        inputs = {name: torch.as_tensor(x) for name, x in task.calibration_batch().inputs.items()}
        example = {name: x[:2] for name, x in inputs.items()}
        model.eval()
        folded = [list(pair) for pair in surgery.fold_batch_norm(model, surgery.trace(model, example))]
        graph = surgery.trace(model, example)
        left_float = (*self.exclude, *context.keep)
        layers = [n for n in surgery.weighted_layers(model) if not surgery.matches(n, left_float)]
        placement = place(graph, layers, context.traits)
        if not placement.layers:
            return model, {"folded": folded, "layers": [], "values": [], "inputs": list(inputs)}

        context.progress("observing activations", 0.0)
        histograms, means = _observe(model, inputs, placement)
        groups = [
            (shared, _activation_quantizer(histogram, self.ranges, bounds))
            for histogram, (shared, bounds) in zip(histograms, placement.groups, strict=True)
        ]
        scales = {name: float(q.scale) for shared, q in groups for name in (*shared.active, *shared.passive)}
        qmax = 2 ** (context.traits.weight_bits - 1) - 1
        weighted = surgery.weighted_layers(model)
        for name, value in placement.layers.items():
            _quantize_weight(weighted[name], qmax, scales[value])
        attach(model, groups, list(inputs))
        if self.bias_correction:
            context.progress("correcting biases", 0.5)
            _correct_biases(model, inputs, graph, placement, means)
        return model, {
            "folded": folded,
            "layers": [[name, qmax] for name in placement.layers],
            "values": [[list(shared.active), list(shared.passive)] for shared, _ in placement.groups],
            "inputs": list(inputs),
        }

    def restore(self, model: Any, facts: Facts) -> Any:
        for layer, norm in facts["folded"]:
            surgery.give_bias(model.get_submodule(layer))
            surgery.set_module(model, norm, nn.Identity())
        for name, qmax in facts["layers"]:
            layer = model.get_submodule(name)
            if self.bias_correction:
                surgery.give_bias(layer)
            _quantize_weight(layer, qmax, 1.0)
        groups = [(Shared(tuple(a), tuple(p)), _unsigned_8bit(1.0, 0)) for a, p in facts["values"]]
        if groups:
            attach(model, groups, facts["inputs"])
        return model


# ----------------------------------------------------------------------------------------------------------- observing


@torch.no_grad()
def _observe(
    model: nn.Module, inputs: dict[str, Tensor], placement: Placement
) -> tuple[list[Histogram], dict[str, Tensor]]:
    """A histogram per group of values, and the float channel means behind each layer's activation."""
    index = {name: i for i, (shared, _) in enumerate(placement.groups) for name in shared.active}
    low, high = [math.inf] * len(placement.groups), [-math.inf] * len(placement.groups)

    def extremes(i: int, x: Tensor) -> None:
        least, most = (float(end) for end in torch.aminmax(x))
        if not (math.isfinite(least) and math.isfinite(most)):
            raise TrialError(f"values that are not finite behind {placement.groups[i][0].active[0]}")
        low[i], high[i] = min(low[i], least), max(high[i], most)

    _run_over(model, inputs, index, extremes)
    counts = [np.zeros(_BINS) for _ in placement.groups]
    high = [b if b > a else a + (abs(a) * 1e-6 or 1.0) for a, b in zip(low, high, strict=True)]  # histc wants a width

    def count(i: int, x: Tensor) -> None:
        counts[i] += torch.histc(x, _BINS, low[i], high[i]).double().numpy()

    behind = {value: key for key, value in placement.fused.items()}
    sums: dict[str, Tensor] = {}

    def add(value: str, x: Tensor) -> None:
        key = behind[value]
        total = _channel_mean(x, key) * len(x)
        sums[key] = sums[key] + total if key in sums else total

    _run_over(model, inputs, index, count, dict.fromkeys(behind, add))
    n = len(next(iter(inputs.values())))
    histograms = [Histogram(a, b, c) for a, b, c in zip(low, high, counts, strict=True)]
    return histograms, {key: total / n for key, total in sums.items()}


def _run_over(
    model: nn.Module, inputs: dict[str, Tensor], index: dict[str, int], see: Any, also: dict[str, Any] | None = None
) -> None:
    """Run the float model in chunks; ``see(group, value)`` for each wanted value, ``also[name](name, value)``."""
    also = also or {}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        for name, value in surgery.named_results(key, result):
            if name in index:
                see(index[name], value)
            if name in also:
                also[name](name, value)
        return result

    n = len(next(iter(inputs.values())))
    for start in range(0, n, _CHUNK):
        chunk = {name: x[start : start + _CHUNK] for name, x in inputs.items()}
        for name, x in chunk.items():
            if f"input/{name}" in index:
                see(index[f"input/{name}"], x)
        with surgery.watched(model, handler):
            surgery.call(model, chunk)


def _channel_axis(key: str, x: Tensor) -> int:
    return 1 if "/conv" in key else x.dim() - 1


def _channel_mean(x: Tensor, key: str) -> Tensor:
    x, axis = _thinned(x), _channel_axis(key, x)
    return x.mean([d for d in range(x.dim()) if d != axis])  # (channels,)


def _thinned(x: Tensor) -> Tensor:
    """At most about 32 x 32 places of every map: means of hundreds of samples need no more, and the float and the
    quantized network are compared at the same ones."""
    if x.dim() < 4:
        return x
    return x[(slice(None), slice(None), *(slice(None, None, max(1, size // 16)) for size in x.shape[2:]))]


# ---------------------------------------------------------------------------------------------------------- quantizers


def _unsigned_8bit(scale: float, zero_point: int) -> FakeQuantize:
    return FakeQuantize(torch.tensor(scale), torch.tensor(zero_point), 0, 255)


def _activation_quantizer(histogram: Histogram, ranges: str, bounds: tuple[float, float]) -> FakeQuantize:
    low, high = RANGES[ranges](histogram, 255)
    return _unsigned_8bit(*affine(max(low, bounds[0]), min(high, bounds[1]), 255))


@torch.no_grad()
def _quantize_weight(layer: surgery.Layer, qmax: int, input_scale: float) -> None:
    """Give a layer's weight its quantizer. A scale is no smaller than the layer's bias allows, whose codes in int32 are
    b / (s_a s_w): a layer whose bias does not fit is computed in float, for the sake of a channel that is almost 0."""
    scale = layer.weight.flatten(1).abs().amax(1) / qmax
    alive = scale[scale > 0]
    typical = alive.median() if len(alive) else torch.tensor(1.0 / qmax)
    scale = torch.where(scale > 0, scale.clamp_min(float(typical) * _LEAST_SCALE), typical)
    if layer.bias is not None:
        scale = scale.maximum(layer.bias.abs() / (input_scale * _LARGEST_BIAS))
    quantizer = FakeQuantize(scale, torch.zeros_like(scale), -qmax, qmax, axis=0)
    parametrize.register_parametrization(layer, "weight", quantizer)


# ----------------------------------------------------------------------------------------------------- bias correction


@torch.no_grad()
def _correct_biases(
    model: nn.Module, inputs: dict[str, Tensor], graph: surgery.Graph, placement: Placement, means: dict[str, Tensor]
) -> None:
    """One run of the quantized model over all samples; each layer's bias is moved before the next layer sees it."""
    producer = graph.producer()
    layers = surgery.weighted_layers(model)
    for name in placement.layers:
        surgery.give_bias(layers[name])
    called: set[str] = set()

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if key not in means or module in called:  # a layer that is called again keeps the bias of its first call
            return result
        called.add(module)
        bounds = producer[placement.fused[key]].bounds or (-math.inf, math.inf)
        shift = _shift_to_mean(result, means[key], bounds, _channel_axis(key, result))
        bias = layers[module].bias
        assert bias is not None
        bias += shift
        layers[module].bias_correction = shift  # what learns the rounding wants the float layer back
        return result + _along(shift, result, _channel_axis(key, result))

    with surgery.watched(model, handler):
        surgery.call(model, inputs)


def _along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if d == axis else 1 for d in range(x.dim())])


def _shift_to_mean(y: Tensor, mean: Tensor, bounds: tuple[float, float], axis: int) -> Tensor:
    """The per-channel d with E[clamp(y + d)] = mean, by Newton's method; its slope is the share left unclamped."""
    y, dims = _thinned(y), [i for i in range(y.dim()) if i != axis]
    if bounds == (-math.inf, math.inf):
        return mean - y.mean(dims)
    shift = torch.zeros_like(mean)
    for _ in range(_NEWTON_STEPS):
        moved = y + _along(shift, y, axis)
        clamped = moved.clamp(*bounds)
        slope = (clamped == moved).float().mean(dims)
        step = (mean - clamped.mean(dims)) / slope.clamp_min(0.05)
        shift = torch.where(slope > 0.01, shift + step, shift)  # a channel that is always clamped says nothing
    return shift
