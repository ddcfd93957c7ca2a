"""INT8 and fewer bits after training: integer weights and activations from a few hundred samples, no labels, seconds.

Weights: symmetric per output channel or per tensor, s_c = max|w_c| / qmax, or the scale of least squared rounding
error. Activations: affine per tensor, or symmetric where the target wants it (s = max|x| / 127, zero point 0), ranges
from :mod:`.ranges`. Then the biases (:mod:`.bias_correction`).

Codes of fewer than 8 bits are computed as int8 and uint8: integer kernels run on them as they are. Narrow weights make
an ONNX file smaller (:mod:`laconic.runtime.onnx_codes`); narrow activations gain nothing on any runtime here, and stand
for hardware that is not.

Cost: three runs of the network over the calibration samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.fake_quantize import PER_TENSOR, FakeQuantize, Shared, attach, attached, weight_quantizer
from laconic.steps.quantize.bias_correction import correct_biases, whole_bias
from laconic.steps.quantize.observe import calibration_inputs, observe
from laconic.steps.quantize.placement import place
from laconic.steps.quantize.ranges import RANGES, WEIGHT_SCALES, Histogram, affine, symmetric
from laconic.steps.quantize.spare import Copied, spread_rounding, use_spare_channels
from laconic.steps.settings import check_types

_LEAST_SCALE = 2.0**-16  # of the median channel's
_LARGEST_BIAS = 2.0**29  # in codes; the runtime holds 2^30, and bias correction is still to come


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization to integers. ``ranges``: how activation ranges are chosen. ``exclude``: globs of
    layers left in float.

    ``bits`` of the weights, 2 to 8 and never more than the target's ``weight_bits``; ``layers`` gives single layers
    theirs by name, which stands for a layer's factors too, once it is a product. ``activation_bits``, 4 to 8; the
    model's inputs keep 8, as is usual. ``per_channel``: a scale for each output channel of a weight, or one for all of
    it. ``weight_ranges``: how far the weights' scales reach. ``spare_channels``: dead channels take copies of those
    whose rounding costs most.
    """

    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    bias_correction: bool = True
    exclude: tuple[str, ...] = ()
    bits: int = 8
    activation_bits: int = 8
    layers: Mapping[str, int] = field(default_factory=dict)
    per_channel: bool = True
    weight_ranges: Literal["minmax", "mse"] = "minmax"
    spare_channels: bool = True

    version: ClassVar[int] = 5

    def __post_init__(self) -> None:
        check_types(self)
        for name, bits in {"bits": self.bits, **self.layers}.items():
            if not 2 <= bits <= 8:
                raise RecipeError(f"Quantize of {name}", got=bits, wanted="2 to 8 bits")
        if not 4 <= self.activation_bits <= 8:
            raise RecipeError("Quantize of activation_bits", got=self.activation_bits, wanted="4 to 8 bits")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if attached(model) is not None:
            raise RecipeError("Quantize comes twice in this recipe", fix="keep one of them")
        weighted = surgery.weighted_layers(model)
        unknown = sorted(key for key in self.layers if not any(_is_of(name, key) for name in weighted))
        if unknown:
            raise RecipeError("Quantize of a layer that the model lacks", got=unknown[0], wanted=", ".join(weighted))
        inputs = calibration_inputs(task)
        example = {name: x[:2] for name, x in inputs.items()}
        model.eval()
        folded = [list(pair) for pair in surgery.fold_batch_norm(model, surgery.trace(model, example))]
        graph = surgery.trace(model, example)
        if context.traits.symmetric and self.activation_bits < 8:
            raise RecipeError(
                "activation_bits of Quantize on a target of symmetric integers", got=self.activation_bits, wanted=8
            )
        left_float = (*self.exclude, *context.keep)
        open_to = [n for n, x in weighted.items() if not surgery.matches(n, left_float) and weight_quantizer(x) is None]
        placement = place(graph, open_to, context.traits)
        if not placement.layers:
            nothing: Facts = {"layers": [], "values": [], "copied": [], "biased": [], "warnings": []}
            return model, {"folded": folded, "inputs": list(inputs), **nothing}

        context.progress("observing activations", 0.0)
        histograms, means, warnings = observe(model, inputs, placement)
        groups = [
            (shared, _fitted(histogram, self.ranges, bounds, self._levels(shared), context.traits.symmetric))
            for histogram, (shared, bounds) in zip(histograms, placement.groups, strict=True)
        ]
        quantizers = {value: q for shared, q in groups for value in (*shared.active, *shared.passive)}
        copied: list[Copied] = []
        if self.spare_channels:
            copied = use_spare_channels(model, inputs, graph, placement, quantizers, means, open_to)
        input_scales = {name: float(quantizers[value].scale) for name, value in placement.layers.items()}
        qmax = {n: _qmax(min(self._bits_of(n), context.traits.weight_bits)) for n in placement.layers}
        for name, scale in input_scales.items():
            _quantize_weight(weighted[name], qmax[name], scale, self.per_channel, self.weight_ranges)
        for copies in (c for c in copied if c.layers[-1] in qmax):
            spread_rounding(weighted[copies.layers[-1]], copies.channels)
        attach(model, groups, list(inputs))
        if self.bias_correction:
            context.progress("correcting biases", 0.5)
            correct_biases(model, inputs, graph, placement, means, input_scales)
        for name, scale in input_scales.items():
            _round_bias(weighted[name], scale)
        return model, {
            "folded": folded,
            "layers": [[name, levels] for name, levels in qmax.items()],
            "values": [[list(shared.active), list(shared.passive)] for shared, _ in placement.groups],
            "inputs": list(inputs),
            "symmetric": context.traits.symmetric,
            "left_in_float": list(placement.floats),
            "copied": [row for c in copied for row in c.facts()],
            "biased": list(dict.fromkeys(name for c in copied for name in c.layers)),
            "warnings": warnings,
        }

    def restore(self, model: Any, facts: Facts) -> Any:
        for layer, norm in facts["folded"]:
            surgery.give_bias(model.get_submodule(layer))
            surgery.set_module(model, norm, nn.Identity())
        for name in facts["biased"]:
            surgery.give_bias(model.get_submodule(name))
        for name, qmax in facts["layers"]:
            layer = model.get_submodule(name)
            if self.bias_correction:
                surgery.give_bias(layer)
            _quantize_weight(layer, qmax, 1.0, self.per_channel, "minmax")
        found = [Shared(tuple(a), tuple(p)) for a, p in facts["values"]]
        if found:
            signed = facts["symmetric"]
            made = [(shared, _quantizer(1.0, 0, self._levels(shared), signed)) for shared in found]
            attach(model, made, facts["inputs"])
        return model

    def _bits_of(self, name: str) -> int:
        """What ``layers`` says of a layer, or of what it is a factor of."""
        mine = [key for key in self.layers if _is_of(name, key)]
        return self.layers[max(mine, key=len)] if mine else self.bits

    def _levels(self, shared: Shared) -> int:
        """The highest code of a group of values."""
        is_input = any(name.startswith("input/") for name in shared.active)
        return (1 << (8 if is_input else self.activation_bits)) - 1


@torch.no_grad()
def _round_bias(layer: surgery.Layer, input_scale: float) -> None:
    """To what the file holds: a layer that was corrected has it already."""
    if layer.bias is not None:
        layer.bias.copy_(whole_bias(layer, layer.bias, input_scale))


def _is_of(name: str, key: str) -> bool:
    """Whether ``key`` is the layer ``name`` or a module around it."""
    return name == key or name.startswith(key + ".")


def _qmax(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _quantizer(scale: float, zero_point: int, levels: int, signed: bool) -> FakeQuantize:
    """Codes 0..``levels``, or with the middle of these taken off: then there is no zero point."""
    middle = (levels + 1) // 2 if signed else 0
    zero = torch.tensor(0 if signed else zero_point)
    return FakeQuantize(torch.tensor(scale), zero, -middle, levels - middle)


def _fitted(histogram: Histogram, ranges: str, bounds: tuple[float, float], levels: int, signed: bool) -> FakeQuantize:
    grid = symmetric if signed else affine
    low, high = RANGES[ranges](histogram, levels, grid)
    return _quantizer(*grid(max(low, bounds[0]), min(high, bounds[1]), levels), levels, signed)


@torch.no_grad()
def _quantize_weight(layer: surgery.Layer, qmax: int, input_scale: float, per_channel: bool, ranges: str) -> None:
    """Give a layer's weight its quantizer. A scale is no smaller than the layer's bias allows, whose codes in int32 are
    b / (s_a s_w): a layer whose bias does not fit is computed in float, for the sake of a channel that is almost 0."""
    rows = layer.weight.flatten(1) if per_channel else layer.weight.reshape(1, -1)
    scale = WEIGHT_SCALES[ranges](rows, qmax)  # (channels,) or (1,)
    alive = scale[scale > 0]
    typical = alive.median() if len(alive) else torch.tensor(1.0 / qmax)
    scale = torch.where(scale > 0, scale.clamp_min(float(typical) * _LEAST_SCALE), typical)
    if layer.bias is not None:
        least = layer.bias.abs() / (input_scale * _LARGEST_BIAS)
        scale = scale.maximum(least if per_channel else least.max())
    scale, axis = (scale, 0) if per_channel else (scale[0], PER_TENSOR)
    quantizer = FakeQuantize(scale, torch.zeros_like(scale), -qmax, qmax, axis)
    parametrize.register_parametrization(layer, "weight", quantizer)
