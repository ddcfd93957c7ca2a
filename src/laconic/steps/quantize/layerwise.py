"""One layer after the other: each is given its codes before the next one runs, so that it can make up for the errors
of those before it.

The float network runs once and what each of its layers gives is kept at some places: samples and positions, drawn at
random. Then the quantized network runs once; in front of each layer what it reads at the same places is laid out in
rows (im2col), its codes are chosen from them, its bias is corrected (:mod:`.bias_correction`), and the run goes on with
the new weight. A layer that is called more than once is chosen at its first call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Task
from laconic.errors import TrialError
from laconic.steps.quantize import rounding
from laconic.steps.quantize.bias_correction import _shift_to_mean
from laconic.steps.quantize.observe import calibration_inputs

_MOST_ROWS = 2**13
_LEAST_ROWS = 2**11
_NUMBERS = 2**25  # in the rows of one layer: 128 MiB


@dataclass(frozen=True)
class Rows:
    """What a layer's codes are chosen from.

    ``x`` (groups, rows, inputs): what it reads in the quantized network. ``wanted`` (rows, channels): what it gives in
    the float one, in front of its activation, which keeps what is in ``bounds``. ``bias`` (channels,): the float one.
    """

    x: Tensor
    wanted: Tensor
    bounds: tuple[float, float]
    bias: Tensor

    def outputs(self, weight: Tensor) -> Tensor:
        """What the layer gives with ``weight`` (channels, inputs, ...), bias included: (rows, channels)."""
        w = self.grouped(weight)  # g c k
        y = torch.bmm(self.x, w.transpose(1, 2))  # g r c
        return y.transpose(0, 1).flatten(1) + self.bias  # r gc

    def grouped(self, weight: Tensor) -> Tensor:
        """A weight as (groups, channels / groups, inputs)."""
        return weight.reshape(len(self.x), -1, self.x.shape[2])

    def shift(self, y: Tensor) -> Tensor:
        """What to add to the bias so that the channels' means behind the activation are the float network's."""
        return _shift_to_mean(y, self.wanted.clamp(*self.bounds).mean(0), self.bounds, 1)

    def errors(self, weight: Tensor) -> Tensor:
        """The mean squared error behind the activation, with the bias corrected: (channels,)."""
        y = self.outputs(weight)
        y = (y + self.shift(y)).clamp(*self.bounds)
        return (y - self.wanted.clamp(*self.bounds)).square().mean(0)


Choose = Callable[[surgery.Layer, Rows], Tensor]
"""The codes, in the weight's shape, of a layer whose weight is still the float one behind a quantizer."""


@torch.no_grad()
def choose_codes(
    model: nn.Module, layers: dict[str, surgery.Layer], task: Task, context: Context, choose: Choose
) -> list[str]:
    """Let ``choose`` decide the codes of every layer that is called, in the order in which they run; in place. Returns
    the others, whose codes stay as they are: a recurrent module applies its children's weights without calling them."""
    inputs = calibration_inputs(task)
    model.eval()
    give_biases(layers)
    twin = rounding.float_network(model)
    floats = surgery.weighted_layers(twin)
    graph = surgery.trace(twin, {name: x[:2] for name, x in inputs.items()})
    bounds, scales = bounds_behind(graph, layers), rounding.input_scales(model, graph)
    places: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(context.seed)

    def remember(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if key in bounds:
            axis = 1 if result.dim() > 2 and "/conv" in key else result.dim() - 1
            maps = result.movedim(axis, -1)  # n ... c
            inputs_each = layers[module].weight[0].numel() * _groups(layers[module])
            most = max(_LEAST_ROWS, min(_MOST_ROWS, _NUMBERS // inputs_each))
            places[key] = torch.randperm(math.prod(maps.shape[:-1]), generator=generator)[:most].sort().values
            wanted[key] = maps[torch.unravel_index(places[key], maps.shape[:-1])]
            if not torch.isfinite(wanted[key]).all():
                raise TrialError(f"values that are not finite behind {module}")
        return result

    context.progress("running the float network", 0.0)
    with surgery.watched(twin, remember):
        surgery.call(twin, inputs)
    done = itertools.count(1)

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        if key not in wanted:
            return func(*args, **kwargs)
        layer = layers[module]
        exact = floats[module].bias
        assert exact is not None
        rows = Rows(_rows(layer, args, kwargs, places[key]), wanted.pop(key), bounds[key], exact)
        rounding.write_codes(layer, choose(layer, rows))
        bias = rows.bias + rows.shift(rows.outputs(layer.weight))
        rounding.write_bias(layer, bias, rows.bias, scales.get(module))
        context.progress(f"rounding {module}", next(done) / len(bounds))
        return func(args[0], layer.weight, layer.bias, *args[3:], **kwargs)

    with surgery.watched(model, handler):
        surgery.call(model, inputs)
    return [name for name in layers if name not in {key.partition("/")[0] for key in bounds}]


def give_biases(layers: dict[str, surgery.Layer]) -> None:
    """Every layer a bias that can be corrected."""
    for layer in layers.values():
        surgery.give_bias(layer)


def bounds_behind(graph: surgery.Graph, layers: dict[str, surgery.Layer]) -> dict[str, tuple[float, float]]:
    """The first call of each layer, and what the relu or clamp behind it keeps."""
    consumers = graph.consumers()
    found: dict[str, tuple[float, float]] = {}
    seen: set[str] = set()
    for call in graph.calls:
        if call.family not in ("conv", "linear") or call.module not in layers or call.module in seen:
            continue
        seen.add(call.module)
        users = consumers.get(call.key, [])
        alone = len(users) == 1 and call.key not in graph.outputs
        found[call.key] = (users[0].bounds if alone else None) or (-math.inf, math.inf)
    return found


def _groups(layer: surgery.Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _rows(layer: surgery.Layer, args: tuple[Any, ...], kwargs: dict[str, Any], places: Tensor) -> Tensor:
    """What the layer reads where it gives ``places`` of its output: (groups, rows, inputs)."""
    x: Tensor = args[0]
    if isinstance(layer, nn.Linear):
        return x[torch.unravel_index(places, x.shape[:-1])][None]  # 1 r k
    space = layer.weight.shape[2:]
    padding, stride = args[4], layer.stride  # the call's own padding: other modes than zeros have padded before
    pads = _both_sides(padding, space, layer.dilation)
    x = F.pad(x, [side for pair in reversed(pads) for side in pair])
    sizes = [
        (size - dilation * (k - 1) - 1) // step + 1
        for size, k, step, dilation in zip(x.shape[2:], space, stride, layer.dilation, strict=True)
    ]
    sample, *position = torch.unravel_index(places, (len(x), *sizes))
    index: list[Any] = [sample.reshape(-1, *[1] * len(space)), slice(None)]
    for d, k in enumerate(space):
        offsets = (torch.arange(k) * layer.dilation[d]).reshape([-1 if e == d else 1 for e in range(len(space))])
        index.append(position[d].reshape(-1, *[1] * len(space)) * stride[d] + offsets)
    patches = x[tuple(index)].movedim(-1, 1)  # r c kh kw
    return patches.reshape(len(places), layer.groups, -1).transpose(0, 1).contiguous()  # g r k


def _both_sides(padding: Any, space: Any, dilation: Any) -> list[tuple[int, int]]:
    """Zeros before and after each axis of space."""
    if padding == "valid":
        return [(0, 0) for _ in space]
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(space, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in padding]
