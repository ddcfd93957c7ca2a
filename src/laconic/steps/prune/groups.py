"""Channels that must go together: the coupled groups of a network, and how they are removed.

A group is named after the first layer, in the order of definition, that gives its channels; a channel of a group is
whatever :mod:`.labels` found tied: a row here, a column or several there, a place of a norm. What the labels say is
tried out: a group is prunable if the network without one of its channels computes, layer by layer, what the whole
network computes with that channel unread. What is built for a fixed number of channels fails that, and is left whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.steps.prune.labels import Axis, labelled
from laconic.steps.prune.resize import failing, resized, undone

_NORMS_OVER_CHANNELS = (F.layer_norm, F.rms_norm, F.group_norm)
_TOLERANCE = 1e-3
MIXED = "the way of its channels through the network cannot be followed"
_ONE = "its channels are mixed with each other"

Units = Mapping[str, Sequence[int]]
"""Channels of groups, by the groups' names."""


@dataclass(frozen=True)
class ChannelGroup:
    """``channels`` that are kept or removed together in all ``layers`` that give them; ``name`` is the first.

    ``readers``: the layers that take them in, with the share of their inputs that these channels are.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    readers: Mapping[str, float]


class Graph:
    """Whose channels lie where: ``axes`` by the parameter's path and axis; ``units``: each group's, in order."""

    def __init__(self, axes: dict[tuple[str, int], Axis], units: dict[str, np.ndarray[Any, Any]]) -> None:
        self.axes = axes
        self.units = units

    def places(self, name: str, channels: Sequence[int]) -> dict[tuple[str, int], tuple[str, Tensor, Tensor]]:
        """Where these channels of a group lie: for each axis its role, the channel (as a position in the group) of each
        place, and the places, ordered by channel."""
        order = self.units[name][list(channels)]
        position = dict(zip(order.tolist(), channels, strict=True))
        found = {}
        for where, axis in self.axes.items():
            (places,) = np.isin(axis.channels, order).nonzero()
            if len(places):
                whose = np.array([position[c] for c in axis.channels[places].tolist()])
                sort = np.lexsort((places, whose))
                found[where] = axis.role, torch.as_tensor(whose[sort]), torch.as_tensor(places[sort])
        return found

    def without(self, removed: Units) -> Graph:
        """The graph of the network without these channels."""
        gone = [self.units[name][list(channels)] for name, channels in removed.items()]
        every = np.concatenate([np.zeros(0, int), *gone])
        axes = {w: Axis(a.role, a.channels[~np.isin(a.channels, every)]) for w, a in self.axes.items()}
        return Graph(axes, {name: found[~np.isin(found, every)] for name, found in self.units.items()})


@dataclass(frozen=True)
class Coupling:
    """A model's groups, and the groups that are left whole with the reason."""

    groups: tuple[ChannelGroup, ...]
    left_whole: dict[str, str]
    graph: Graph


def coupling(
    model: nn.Module, example: Mapping[str, Tensor], keep: Sequence[str], tried: Collection[str] | None = None
) -> Coupling:
    """The prunable groups of ``model``; ``example`` has one or more samples. Only the groups ``tried`` are tried out,
    if they are given.

    ``model`` is changed in place, without a change of its outputs: modules that say how to be a convolution
    (``as_convolution``) become one.
    """
    for name, module in list(model.named_modules()):
        if hasattr(module, "as_convolution"):
            surgery.set_module(model, name, module.as_convolution())
    try:
        found = labelled(model.eval(), example)
    except Exception as error:  # whatever a network does with what it is given
        return Coupling((), {"": f"the model cannot be traced: {type(error).__name__}: {error}"}, Graph({}, {}))
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = surgery.weighted_layers(model)
    graph = Graph(found.axes, _units(found.axes, layers))
    groups, left_whole = [], {}
    for name, units in graph.units.items():
        group = _group(graph, name, layers)
        reasons = [found.whole[channel] for channel in units.tolist() if channel in found.whole]
        kept = [layer for layer in group.layers if surgery.matches(layer, keep)]
        shared = [n for n in (*group.layers, *group.readers) if owners[id(layers[n].weight)] > 1]
        if reasons or kept:
            left_whole[name] = reasons[0] if reasons else f"--keep names {kept[0]}"
        elif shared:
            left_whole[name] = f"the weight of {shared[0]} is another layer's too"
        elif group.channels == 1 and len(layers[name].weight) > 1:
            left_whole[name] = _ONE
        else:
            groups.append(group)
    to_try = {g.name: [1] for g in groups if g.channels > 1 and (tried is None or g.name in tried)}
    left_whole |= dict.fromkeys(guilty(model, example, graph, to_try), MIXED)
    return Coupling(tuple(g for g in groups if g.name not in left_whole), left_whole, graph)


def _units(
    axes: Mapping[tuple[str, int], Axis], layers: Mapping[str, surgery.Layer]
) -> dict[str, np.ndarray[Any, Any]]:
    """The channels of each group: those that the same layer is the first to give, in its order."""
    seen: set[int] = set()
    units = {}
    for name in layers:
        axis = axes.get((f"{name}.weight".lstrip("."), 0))
        if axis is not None and axis.role == "gives":
            own = [c for c in dict.fromkeys(axis.channels.tolist()) if c not in seen]
            if own:
                units[name] = np.array(own)
                seen.update(own)
    return units


def _group(graph: Graph, name: str, layers: Mapping[str, surgery.Layer]) -> ChannelGroup:
    units = graph.units[name]
    gives, readers = [], {}
    for (path, _), axis in graph.axes.items():
        share = float(np.isin(axis.channels, units).mean())
        owner = path.rpartition(".")[0]
        if share and owner in layers and path.endswith("weight"):
            if axis.role == "gives":
                gives.append(owner)
            elif axis.role == "reads":
                readers[owner] = share
    return ChannelGroup(name, len(units), tuple(sorted(gives, key=list(layers).index)), readers)


def channels_of(model: nn.Module, name: str) -> int:
    """How many channels the layer called ``name`` gives."""
    return len(surgery.weighted_layers(model)[name].weight)


def pruned(model: nn.Module, graph: Graph, removal: Units) -> None:
    """Remove these channels from the model, in place; ``graph`` is then that of what is left."""
    after = graph.without(removal)
    resized(model, graph.axes, after.axes)
    graph.axes, graph.units = after.axes, after.units


# ------------------------------------------------------------------------------------------------------------- trying


def guilty(model: nn.Module, example: Mapping[str, Tensor], graph: Graph, removal: Units) -> list[str]:
    """The groups that cannot go as ``removal`` says."""
    return failing(list(removal), lambda names: _can_go(model, example, graph, {n: removal[n] for n in names}))


@torch.no_grad()
def _can_go(model: nn.Module, example: Mapping[str, Tensor], graph: Graph, removal: Units) -> bool:
    """Whether the network without these channels computes what it does with them unread.

    Compared are the outputs and, of each layer's output, the mean and the mean square of every channel that is left.
    Norms over channels divide by the same number on both sides: what they do depends on how many channels there are.
    """
    after, scales = graph.without(removal), dict[str, Tensor]()
    wanted = _watched(model, example, _unread(model, graph, removal), scales)
    left = {
        path.rpartition(".")[0]: torch.as_tensor(np.isin(axis.channels, after.axes[path, dim].channels))
        for (path, dim), axis in graph.axes.items()
        if axis.role == "gives" and path.endswith("weight")
    }
    try:
        with undone(resized(model, graph.axes, after.axes)):
            found = _watched(model, example, {}, scales)
    except Exception:  # whatever a network does whose sizes no longer fit
        return False
    return found.keys() == wanted.keys() and all(_agree(key, found[key], y, left) for key, y in wanted.items())


def _unread(model: nn.Module, graph: Graph, removal: Units) -> dict[str, tuple[int, Tensor]]:
    """The inputs of each layer, by its axis of channels, that are these channels'."""
    found: dict[str, tuple[int, Tensor]] = {}
    modules = dict(model.named_modules())
    for name, channels in removal.items():
        for (path, _), (role, _, places) in graph.places(name, channels).items():
            owner = path.rpartition(".")[0]
            if role == "reads" and path.endswith("weight"):
                groups = getattr(modules[owner], "groups", 1)
                width = getattr(modules[owner], "in_channels", 0) // groups
                every = (places + width * torch.arange(groups)[:, None]).flatten()
                axis = 1 if width else -1
                found[owner] = axis, torch.cat([found[owner][1], every]) if owner in found else every
    return found


def _watched(
    model: nn.Module,
    example: Mapping[str, Tensor],
    unread: Mapping[str, tuple[int, Tensor]],
    scales: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The outputs, and for each layer the mean and mean square of each channel that it gives.

    ``scales``: what stands for each norm over channels, found here where it is not given. Without any, the values of a
    deep network grow until rounding decides them.
    """
    seen: dict[str, Tensor] = {}

    def handler(key: str, module: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if func in _NORMS_OVER_CHANNELS:
            x = _unnormed(func, *args, **kwargs)
            return x / scales.setdefault(key, x.square().mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny))
        if func is F.batch_norm and (kwargs.get("training") or (len(args) > 5 and args[5])):
            return _unstandardised(*args, **kwargs)
        name = func.__name__ if hasattr(func, "__name__") else ""
        if not name.startswith(("conv", "linear")) or not args:
            return func(*args, **kwargs)
        if module in unread:
            axis, places = unread[module]
            args = (args[0].index_fill(axis, places, 0.0), *args[1:])
        result = func(*args, **kwargs)
        flat = result.movedim(-1 if name == "linear" else 1, 0).flatten(1)
        seen[key] = torch.stack([flat.mean(1), flat.square().mean(1)])
        return result

    with surgery.watched(model, handler):
        outputs = surgery.call(model, example)
    return seen | {f" {name}": y for name, y in outputs.items()}


def _unnormed(func: Callable[..., Any], x: Tensor, shape: Any, *_: Any, **__: Any) -> Tensor:
    if func is not F.group_norm and tuple(x.shape[-len(shape) :]) != tuple(shape):
        raise ValueError(f"a norm over {shape}")
    if func is F.group_norm and x.shape[1] % shape:
        raise ValueError(f"{shape} groups")
    return x


def _unstandardised(x: Tensor, *given: Any, weight: Tensor | None = None, **_: Any) -> Tensor:
    """A norm by the statistics of the moment, as weights are standardised with."""
    gain = given[2] if len(given) > 2 else weight
    if gain is not None and len(gain) != x.shape[1]:
        raise ValueError(f"{len(gain)} gains")
    return x


def _agree(key: str, found: Tensor, wanted: Tensor, left: Mapping[str, Tensor]) -> bool:
    if not key.startswith(" "):
        rows = left.get(key.rpartition("/")[0])
        if rows is None:  # a layer over places: there are fewer channels to take the mean of
            return True
        wanted = wanted[:, rows] if rows.shape == wanted.shape[1:] else wanted
    if found.shape != wanted.shape:
        return False
    most = float(wanted.abs().max()) if wanted.numel() else 0.0
    return bool(((found - wanted).abs() <= _TOLERANCE * most).all())
