"""Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2: E[y] - E[y~] is added to the bias), sequential and
empirical: while the quantized network runs once over the calibration samples, each layer's bias is moved, before the
next layer runs, until the channel means *behind the fused activation* equal the float network's. That differs from the
paper, which matches the means in front of it from batch-norm statistics.

Integer kernels add biases as whole multiples of s_a s_w. They are rounded to these here, where the layers behind can
still make up for it: with few bits the multiples are coarse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.fake_quantize import weight_quantizer
from laconic.steps.quantize.observe import channel_axis, thinned
from laconic.steps.quantize.placement import Placement

_NEWTON_STEPS = 4


@torch.no_grad()
def correct_biases(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    graph: surgery.Graph,
    placement: Placement,
    means: Mapping[str, Tensor],
    input_scales: Mapping[str, float],
) -> None:
    """One run of the quantized model over all samples; each layer's bias is moved before the next layer sees it.

    ``means``: the float network's, by the layer's call; ``input_scales``: s_a of what each layer reads.
    """
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
        shift = _shift_to_mean(result, means[key], bounds, channel_axis(key, result))
        bias = layers[module].bias
        assert bias is not None
        shift = whole_bias(layers[module], bias + shift, input_scales[module]) - bias
        bias += shift
        layers[module].bias_correction = shift  # what learns the rounding wants the float layer back
        return result + _along(shift, result, channel_axis(key, result))

    with surgery.watched(model, handler):
        surgery.call(model, inputs)


def whole_bias(layer: surgery.Layer, bias: Tensor, input_scale: float) -> Tensor:
    """``bias`` rounded to multiples of s_a s_w; ``layer`` carries a weight quantizer."""
    quantizer = weight_quantizer(layer)
    assert quantizer is not None
    scale = input_scale * quantizer.scale
    return torch.round(bias / scale) * scale


def _along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if d == axis else 1 for d in range(x.dim())])


def _shift_to_mean(y: Tensor, mean: Tensor, bounds: tuple[float, float], axis: int) -> Tensor:
    """The per-channel d with E[clamp(y + d)] = mean, by Newton's method; its slope is the share left unclamped."""
    y, dims = thinned(y).contiguous(), [i for i in range(y.dim()) if i != axis]
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
