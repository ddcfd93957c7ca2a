"""Which layers read another's channels, and nobody else does: along such a link factors can move, and sums.

Between the two lies nothing but functions that keep channels apart and let a positive factor through, f(s x) = s f(x):
relu, leaky relu, pooling, padding with zeros; or a clamp, whose bounds are then no longer where they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.surgery import Call, Graph, Layer

_HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "max_pool", "avg_pool", "mean", "dropout", "pad", "reshape"})
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_NORM_FAMILIES = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm"})
_SHIFTED = frozenset({"relu", "clamp", "dropout", "max_pool", "mean", "reshape"})  # f(x - c) = f(x) - c where x - c > 0


@dataclass(frozen=True)
class Link:
    """``producer``: the path of the layer or the norm whose channels ``consumers`` read, all of them weighted layers.

    ``value`` is what the producer gives, ``between`` the calls on the way, ``reads`` what each consumer reads.
    """

    producer: str
    value: str
    consumers: tuple[str, ...]
    reads: tuple[str, ...]
    between: tuple[Call, ...]

    @property
    def clamps(self) -> tuple[Call, ...]:
        return tuple(call for call in self.between if call.family == "clamp")

    @property
    def lets_sums_through(self) -> bool:
        """Whether what is taken from every channel in front is missing behind: not where zeros are padded."""
        return all(call.family in _SHIFTED for call in self.between)


def links(model: nn.Module, graph: Graph, example: Mapping[str, Tensor]) -> list[Link]:
    """The links of a traced model, in the order in which it runs.

    Their layers and norms are called once, and no one else has their weights. What the graph does not tell, whether
    channels that were reshaped on the way kept their order, is tried on ``example``.
    """
    found = list(_candidates(model, graph))
    if _lets_factors_through(model, found, example):
        return found
    return [link for link in found if _lets_factors_through(model, [link], example)]


@torch.no_grad()
def _lets_factors_through(model: nn.Module, found: Sequence[Link], example: Mapping[str, Tensor]) -> bool:
    """Whether the outputs stay, with clamps lifted, when factors of 2 and 1/2 go in and out again, which are exact."""
    layers = surgery.weighted_layers(model)
    lifted = {call.key: call.bounds for link in found for call in link.clamps}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        bounds = lifted.get(key)
        return args[0].clamp(min=bounds[0]) if bounds else func(*args, **kwargs)

    def outputs() -> list[Tensor]:
        with surgery.watched(model, handler):
            return list(surgery.call(model, example).values())

    def scale(power: float) -> None:
        for link in found:
            channels = torch.arange(in_channels(layers[link.consumers[0]]))
            factor = 2.0 ** (power * (channels * 7 % 5 % 3 - 1))  # in no order that a reshape brings about
            divide_outputs(model.get_submodule(link.producer), factor)
            for name in link.consumers:
                multiply_inputs(layers[name], factor)

    wanted = outputs()
    scale(1.0)
    changed = outputs()
    scale(-1.0)
    return all(
        torch.allclose(y, x, rtol=1e-4, atol=1e-5 * float(x.abs().max())) for x, y in zip(wanted, changed, strict=True)
    )


def _candidates(model: nn.Module, graph: Graph) -> Iterator[Link]:
    """Links as far as the graph tells; their channels agree in number."""
    times = Counter(c.module for c in graph.calls if c.family in ("conv", "linear", *_NORM_FAMILIES))
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers, consumers = surgery.weighted_layers(model), graph.consumers()

    def alone(path: str) -> bool:
        module = model.get_submodule(path)
        own = list(module.parameters(recurse=False))
        return times[path] == 1 and not parametrize.is_parametrized(module) and all(owners[id(p)] == 1 for p in own)

    for call in graph.calls:
        producer = layers.get(call.module) if call.family in ("conv", "linear") else _norm(model, call)
        if producer is None or not alone(call.module):
            continue
        found = _readers(call.outputs[0], graph, consumers)
        if found is None or not found[0] or not all(c.module in layers and alone(c.module) for c in found[0]):
            continue
        channels = next(producer.parameters(recurse=False)).shape[0]
        if all(in_channels(layers[c.module]) == channels and _fit(call, c, found[1]) for c in found[0]):
            names, reads = tuple(c.module for c in found[0]), tuple(c.inputs[0] for c in found[0])
            yield Link(call.module, call.outputs[0], names, reads, tuple(found[1]))


def _norm(model: nn.Module, call: Call) -> nn.Module | None:
    """The norm that makes this call, if it has a gain for each channel."""
    module = model.get_submodule(call.module) if call.family in _NORM_FAMILIES else None
    weight = getattr(module, "weight", None)
    return module if isinstance(module, _NORMS) and isinstance(weight, Tensor) and weight.dim() == 1 else None


def _readers(value: str, graph: Graph, consumers: dict[str, list[Call]]) -> tuple[list[Call], list[Call]] | None:
    """The weighted calls that read ``value``, and the calls on the way; None where anything else reads it."""
    if value in graph.outputs:
        return None
    weighted: list[Call] = []
    between: list[Call] = []
    for call in consumers.get(value, []):
        if call.family in ("conv", "linear"):
            if call.inputs != (value,):
                return None
            weighted.append(call)
            continue
        passes = call.family in _HOMOGENEOUS or (call.family == "clamp" and call.bounds is not None)
        found = _readers(call.outputs[0], graph, consumers) if passes and not call.channel_pad else None
        if found is None or len(call.outputs) > 1:
            return None
        weighted += found[0]
        between += [call, *found[1]]
    return weighted, between


def _fit(producer: Call, consumer: Call, between: list[Call]) -> bool:
    """Whether the channels that the producer gives are those that the consumer reads: a convolution's and most norms'
    are axis 1, a linear layer's and a layer norm's the last. Reshaping and means may bring the one to the other."""
    first = producer.family in ("conv", "group_norm", "batch_norm")
    moved = any(call.family in ("reshape", "mean") for call in between)
    if first and consumer.family == "linear":
        return producer.dims == 2 or moved
    return first == (consumer.family == "conv")


def in_channels(layer: Layer) -> int:
    return int(layer.weight.shape[1]) * _groups(layer)


def _groups(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def pads(layer: Layer) -> bool:
    """Whether the layer puts zeros around what it reads."""
    padding = () if isinstance(layer, nn.Linear) else layer.padding
    return padding != "valid" if isinstance(padding, str) else any(padding)


def _by_input(layer: Layer) -> Tensor:
    """The weight as (groups, out / groups, in / groups, places): a view."""
    groups = _groups(layer)
    return layer.weight.data.view(groups, len(layer.weight) // groups, layer.weight.shape[1], -1)


def reach_out(layer: Layer) -> Tensor:
    """The largest weight that makes each output channel: (out,)."""
    return layer.weight.detach().flatten(1).abs().amax(1)


def reach_in(layer: Layer) -> Tensor:
    """The largest weight that reads each input channel: (in,)."""
    return _by_input(layer).abs().amax((1, 3)).flatten()


@torch.no_grad()
def divide_outputs(module: nn.Module, factor: Tensor) -> None:
    """Every output channel of a layer or a norm becomes ``1 / factor`` (channels,) of what it was."""
    for parameter in module.parameters(recurse=False):
        parameter.div_(factor.reshape(-1, *[1] * (parameter.dim() - 1)))


def moved(layer: str, axis: int, factor: Tensor, shift: Tensor | None = None) -> list[Any]:
    """For the facts: what became of the channels that a layer gives, x / factor - shift, both (channels,) along
    ``axis``."""
    vectors = (factor, torch.zeros_like(factor) if shift is None else shift)
    return [layer, axis, *([float(f"{x:.7g}") for x in vector.tolist()] for vector in vectors)]


@torch.no_grad()
def multiply_inputs(layer: Layer, factor: Tensor) -> None:
    """The layer reads every input channel times ``factor`` (in,)."""
    weight = _by_input(layer)
    weight *= factor.reshape(weight.shape[0], 1, weight.shape[2], 1)


@torch.no_grad()
def answer_to(layer: Layer, constant: Tensor) -> Tensor:
    """What the layer, without its bias, gives where its inputs are ``constant`` (in,) everywhere: (out,)."""
    weight = _by_input(layer).sum(3)  # groups out/groups in/groups
    return (weight @ constant.reshape(weight.shape[0], weight.shape[2], 1)).flatten()
