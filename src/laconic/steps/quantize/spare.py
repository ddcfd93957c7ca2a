"""Dead channels take copies of those whose rounding costs most: finer activations, for nothing.

Outlier channel splitting (Zhao et al. 2019, arXiv 1901.09504, section 3.2) halves a channel into two that are added up
again, each rounded half a step apart. It widens the layer. Here the copies go where a relu never lets anything through
(10 of the first 24 channels of MobileNetV1 0.75, by their weights alone), so the network stays as large and as fast.

A channel and its k copies are shifted by o_i = step (i - k/2) / (k + 1), i = 0..k, and whoever reads them reads each
with 1/(k + 1) of the weight: together they are rounded to step / (k + 1), and the o_i add up to 0. Without shifts
nothing would change, since all would be rounded alike. A depthwise layer on the way has copies too, which take the
shifts in front out of its bias and put those of its own output in. Not exact is what comes within half a step of a
clamp; at borders padded with zeros the shifts add up to 0 as well.

Which channels: rounding a channel costs step^2 / 12 sum_p (dy / dx_p)^2 of the model's outputs y, the sum over its
places that are not 0, from one backward pass of y with random signs; k copies leave 1 / (k + 1)^2 of it. Whichever
gains most gets the next spare channel.

Equal weights would be rounded alike too, and their errors add up to k + 1 times that of one: so each hands what its
code leaves over to the next (:func:`spread_rounding`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.fake_quantize import FakeQuantize
from laconic.steps.quantize.links import Link, answer_to, in_channels, links, pads
from laconic.steps.quantize.placement import Placement, through_padding
from laconic.steps.quantize.rounding import float_weight, quantizer_of

_SAMPLES = 16  # in the backward pass


@dataclass(frozen=True)
class Copied:
    """``channels``: one that the first of ``layers`` makes, and those that are its copies; the last one reads them, a
    depthwise one may lie between. ``shifts``: what was added to each, behind each layer but the last."""

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    shifts: tuple[tuple[float, ...], ...]
    axis: int

    def facts(self) -> list[list[Any]]:
        """For each layer but the last its name, the axis of the channels, the channels, and their shifts."""
        return [
            [name, self.axis, list(self.channels), list(shifts)]
            for name, shifts in zip(self.layers, self.shifts, strict=False)
        ]


@dataclass(frozen=True)
class _Chain:
    """``first`` makes the channels, ``last`` reads and mixes them, ``middle`` is a depthwise layer between, if any.

    ``links`` lead from one to the next, along ``values``; ``spare``: the channels that are dead behind ``first``'s
    relu, and constant behind ``middle``'s.
    """

    first: surgery.Layer
    middle: surgery.Layer | None
    last: surgery.Layer
    links: tuple[Link, ...]
    values: tuple[str, ...]
    spare: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axis of each value's channels."""
        return tuple(-1 if isinstance(layer, nn.Linear) else 1 for layer in (self.middle, self.last) if layer)


def use_spare_channels(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    graph: surgery.Graph,
    placement: Placement,
    quantizers: Mapping[str, FakeQuantize],
    means: Mapping[str, Tensor],
    layers: Collection[str],
) -> list[Copied]:
    """Copy channels of ``layers`` into their dead ones, in place.

    ``quantizers``: by the value that will carry them; nothing is quantized yet. ``means``: the float network's channel
    means by layer call, which are moved along.
    """
    chains = list(_chains(model, inputs, graph, placement, quantizers, set(layers)))
    axes = {value: axis for chain in chains for value, axis in zip(chain.values, chain.axes, strict=True)}
    steps = {value: float(quantizers[value].scale) for value in axes if value in quantizers}
    costs = _costs(model, inputs, steps, axes) if steps else {}
    copied: list[Copied] = []
    for chain in chains:
        found = [costs[value] for value in chain.values if value in costs]
        shared = _shared_out(torch.stack(found).sum(0), chain.spare) if found else {}
        if not shared:
            continue
        _empty(chain)
        names = [chain.links[0].producer, *(link.consumers[0] for link in chain.links)]
        spare = iter(chain.spare)
        for channel, count in shared.items():
            taken = (channel, *(next(spare) for _ in range(count)))
            shares = [(i - count / 2) / (count + 1) for i in range(count + 1)]
            shifts = tuple(tuple(share * steps.get(value, 0.0) for share in shares) for value in chain.values)
            axis = -1 if isinstance(chain.first, nn.Linear) else 1
            copied.append(Copied(tuple(names), taken, shifts, axis))
            _copy(chain, copied[-1], means)
    return copied


@torch.no_grad()
def spread_rounding(layer: surgery.Layer, channels: Sequence[int]) -> None:
    """Let the weights that read copies be codes whose sum is that of the float weights, rounded once: each but the last
    is rounded and hands on what is left. ``layer`` carries a weight quantizer."""
    quantizer, weight = quantizer_of(layer), float_weight(layer)
    scale = quantizer.scale.reshape(-1, *[1] * (weight.dim() - 2))
    left = torch.zeros_like(weight[:, 0])
    for channel in channels[:-1]:
        wanted = weight[:, channel] + left
        weight[:, channel] = (wanted / scale).round().clamp(quantizer.qmin, quantizer.qmax) * scale
        left = wanted - weight[:, channel]
    weight[:, channels[-1]] += left


# ------------------------------------------------------------------------------------------------------------- finding


def _chains(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    graph: surgery.Graph,
    placement: Placement,
    quantizers: Mapping[str, FakeQuantize],
    chosen: set[str],
) -> Iterator[_Chain]:
    layers, calls, producer = surgery.weighted_layers(model), {call.key: call for call in graph.calls}, graph.producer()
    found = links(model, graph, {name: x[:2] for name, x in inputs.items()})
    simple = {
        link.producer: link
        for link in found
        if len(link.consumers) == 1
        and chosen.issuperset((link.producer, *link.consumers))
        and any(call.bounds is not None and call.bounds[0] == 0 for call in link.between)
    }
    for link in simple.values():
        way: tuple[Link, ...] = (link,)
        middle = None
        if _apart(layers[link.consumers[0]]) and link.consumers[0] in simple:
            way, middle = (link, simple[link.consumers[0]]), layers[link.consumers[0]]
        first, last = layers[link.producer], layers[way[-1].consumers[0]]
        source = through_padding(calls[link.value].inputs[0], producer)
        limits = _limits(source, inputs, quantizers)
        if limits is None or not (_mixes(first) and _mixes(last)):
            continue
        spare = _never_positive(first, *limits)
        padded = pads(last) or any(call.family == "pad" for call in way[-1].between)
        if padded and middle is not None and middle.bias is not None:
            spare &= middle.bias <= 0  # a constant that zeros are padded around is not one
        if bool(spare.any()):
            values = tuple(through_padding(step.reads[0], producer) for step in way)
            yield _Chain(first, middle, last, way, values, tuple(spare.nonzero().flatten().tolist()))


def _apart(layer: surgery.Layer) -> bool:
    return not isinstance(layer, nn.Linear) and layer.groups == len(layer.weight) == in_channels(layer)


def _mixes(layer: surgery.Layer) -> bool:
    return isinstance(layer, nn.Linear) or layer.groups == 1


def _limits(
    value: str, inputs: Mapping[str, Tensor], quantizers: Mapping[str, FakeQuantize]
) -> tuple[float, float] | None:
    """The least and the largest that ``value`` can be: the ends of its quantizer's range, or, of a model's input that
    has none, of its samples."""
    if value in quantizers:
        q = quantizers[value]
        return float((q.qmin - q.zero_point) * q.scale), float((q.qmax - q.zero_point) * q.scale)
    x = inputs.get(value.removeprefix("input/"))
    return None if x is None else (min(float(x.min()), 0.0), max(float(x.max()), 0.0))


@torch.no_grad()
def _never_positive(layer: surgery.Layer, low: float, high: float) -> Tensor:
    """The channels that are at most 0 whatever between ``low`` and ``high`` the layer reads: (channels,)."""
    weight = layer.weight.flatten(1)
    most = (weight.clamp(min=0) * high + weight.clamp(max=0) * low).sum(1)
    return most + (0 if layer.bias is None else layer.bias) <= 0


def _costs(
    model: nn.Module, inputs: Mapping[str, Tensor], steps: Mapping[str, float], axes: Mapping[str, int]
) -> dict[str, Tensor]:
    """What rounding each channel of these values costs the outputs: (channels,) by value."""
    noises: dict[str, tuple[Tensor, Tensor]] = {}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if key not in steps:
            return result
        noises[key] = torch.zeros_like(result, requires_grad=True), result.detach() != 0
        return result + noises[key][0]

    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad(), surgery.watched(model, handler):
        outputs = surgery.call(model, {name: x[:_SAMPLES] for name, x in inputs.items()})
        total = torch.stack([(y * _signs(y, generator)).sum() for y in outputs.values()]).sum()
    slopes = torch.autograd.grad(total, [noise for noise, _ in noises.values()])
    return {
        value: steps[value] ** 2 * (slope.square() * rounded).movedim(axes[value], 0).flatten(1).sum(1)
        for slope, (value, (_, rounded)) in zip(slopes, noises.items(), strict=True)
    }


def _signs(y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, y.shape, generator=generator) * 2.0 - 1


def _shared_out(cost: Tensor, spare: tuple[int, ...]) -> dict[int, int]:
    """How many copies each channel gets of all that are to be had."""
    copies = torch.zeros_like(cost)
    left = cost.clone()
    left[list(spare)] = 0
    for _ in spare:
        gain = left / (copies + 1).square() - left / (copies + 2).square()
        if float(gain.max()) > 0:
            copies[int(gain.argmax())] += 1
    return {int(channel): int(copies[channel]) for channel in copies.nonzero().flatten()}


# ------------------------------------------------------------------------------------------------------------- copying


@torch.no_grad()
def _empty(chain: _Chain) -> None:
    """Take what the spare channels give behind the middle layer, which is constant, into the last layer's bias."""
    for layer in (chain.first, chain.middle, chain.last):
        if layer is not None:
            surgery.give_bias(layer)
    assert chain.last.bias is not None
    spare = list(chain.spare)
    if chain.middle is not None:
        assert chain.middle.bias is not None
        constant = torch.zeros_like(chain.middle.bias)
        constant[spare] = chain.middle.bias[spare]
        for call in chain.links[1].between:
            constant = constant.clamp(*call.bounds) if call.bounds else constant
        chain.last.bias += answer_to(chain.last, constant)
    chain.last.weight[:, spare] = 0


@torch.no_grad()
def _copy(chain: _Chain, copied: Copied, means: Mapping[str, Tensor]) -> None:
    """Make copies of the first channel, and share out between them the weights that read it."""
    source, count = copied.channels[0], len(copied.channels)
    before = (0.0,) * count  # the shifts of what the layer reads
    for layer, link, shifts in zip((chain.first, chain.middle), chain.links, copied.shifts, strict=False):
        assert layer is not None
        assert layer.bias is not None
        weight, bias = layer.weight[source].clone(), layer.bias[source].clone()
        mean = means.get(link.value)
        seen = None if mean is None else mean[source].clone()
        for channel, shift, read in zip(copied.channels, shifts, before, strict=True):
            layer.weight[channel] = weight
            layer.bias[channel] = bias + shift - read * weight.sum()
            if mean is not None and seen is not None:
                mean[channel] = seen + shift
        before = shifts
    chain.last.weight[:, copied.channels] = chain.last.weight[:, [source]] / count
