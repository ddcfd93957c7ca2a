"""Channels that must go together: the coupled groups of a network, from torch-pruning's dependency graph.

A group is named after the first layer, in the order of definition, that gives its channels. (DepGraph, Fang et al.
2023, arXiv 2301.12900.) What the graph says is tried out: a group is prunable if the network without one of its
channels computes what it computes with that channel unread. Channels that are shuffled, split by numbers written in the
code, or added to the model's input fail that, and are left whole.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from laconic import surgery

_NORMS_OVER_CHANNELS = (F.layer_norm, F.rms_norm)
_TOLERANCE = 1e-3
_MIXED = "the way of its channels through the network cannot be followed"


@dataclass(frozen=True)
class ChannelGroup:
    """``channels`` that are kept or removed together in all ``layers`` that give them; ``name`` is the first.

    ``readers``: the layers that take them in, with the share of their inputs that these channels are.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    readers: Mapping[str, float]


@dataclass(frozen=True)
class Coupling:
    """A model's groups, and the groups that are left whole with the reason."""

    groups: tuple[ChannelGroup, ...]
    left_whole: dict[str, str]
    graph: Any  # tp.DependencyGraph


def coupling(
    model: nn.Module, example: Mapping[str, Tensor], keep: Sequence[str], tried: Collection[str] | None = None
) -> Coupling:
    """The prunable groups of ``model``; ``example`` has one or more samples. Only the groups ``tried`` are tried out,
    if they are given.

    ``model`` is changed in place, without a change of its outputs: modules that say how to be a convolution
    (``as_convolution``) become one. torch-pruning follows a slice with a zero padding of channels wrongly, and would
    couple channels that do not belong together.
    """
    if hasattr(model, "to_onnx"):
        return Coupling((), {"": "channels of an ONNX file cannot be removed yet"}, None)
    for name, module in list(model.named_modules()):
        if hasattr(module, "as_convolution"):
            surgery.set_module(model, name, module.as_convolution())
    outputs = surgery.output_layers(surgery.trace(model, example))
    names: dict[nn.Module, str] = {layer: name for name, layer in surgery.weighted_layers(model).items()}
    left_whole: dict[str, str] = {}
    try:
        graph = _dependencies(model, example)
        found = list(graph.get_all_groups(root_module_types=list(_root_types())))
    except Exception as error:  # it raises whatever its tracing runs into
        return Coupling((), {"": f"torch-pruning cannot trace the model: {type(error).__name__}: {error}"}, None)
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    groups = []
    for group in found:
        layers = tuple(names[m] for m in _giving(group) if m in names)
        if not layers:
            continue
        first = min(layers, key=list(names.values()).index)
        reason = _reason_to_leave(group, layers, outputs, keep, names) or _shared(group, names, owners)
        if reason:
            left_whole[first] = reason
        else:
            groups.append(ChannelGroup(first, channels_of(model, first), layers, _readers(group, names)))
    to_try = [g.name for g in groups if g.channels > 1 and (tried is None or g.name in tried)]
    left_whole |= dict.fromkeys(_mixed(model, example, to_try), _MIXED)
    groups = [group for group in groups if group.name not in left_whole]
    return Coupling(tuple(sorted(groups, key=lambda g: list(names.values()).index(g.name))), left_whole, graph)


def _dependencies(model: nn.Module, example: Mapping[str, Tensor]) -> Any:
    """torch-pruning's graph; it follows gradients, so for a moment every parameter wants one."""
    inputs = next(iter(example.values())) if len(example) == 1 else dict(example)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            for parameter in frozen:
                parameter.requires_grad_(True)
            return tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _mixed(model: nn.Module, example: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    """The groups that fail the trial; all at once first, since all pass as a rule."""
    if not names or _can_go(model, example, names):
        return []
    return [name for name in names if not _can_go(model, example, [name])]


@torch.no_grad()
def _can_go(model: nn.Module, example: Mapping[str, Tensor], names: Sequence[str]) -> bool:
    """Whether the network without the second channel of each group computes what it does with that channel unread.

    Norms over channels are left out on both sides: what they do depends on how many channels there are.
    """
    network = copy.deepcopy(model).eval()
    graph = _dependencies(network, example)

    def handler(key: str, module: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return args[0] if func in _NORMS_OVER_CHANNELS else func(*args, **kwargs)

    def outputs() -> dict[str, Tensor]:
        with surgery.watched(network, handler):
            return surgery.call(network, example)

    for name in names:
        layer = network.get_submodule(name)
        for item in graph.get_pruning_group(layer, _pruner_of(layer), idxs=[1]):
            columns = _columns(item.dep.target.module)
            if columns is not None and not graph.is_out_channel_pruning_fn(item.dep.handler):
                columns[item.idxs] = 0
    wanted = outputs()
    try:
        for name in names:
            pruned(network, graph, name, [1])
        found = outputs()
    except Exception:  # whatever a network does whose sizes no longer fit
        return False
    return all(
        found[name].shape == y.shape and float((found[name] - y).abs().max()) <= _TOLERANCE * float(y.abs().max())
        for name, y in wanted.items()
    )


def _columns(module: nn.Module) -> Tensor | None:
    """The weight of a module that reads channels, these first; None where they only pass."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    return weight.data if getattr(module, "transposed", False) else weight.data.transpose(0, 1)


def pruned(model: nn.Module, graph: Any, name: str, remove: Sequence[int]) -> None:
    """Remove these channels of the group called ``name`` from the model, in place."""
    group_of(model, graph, name, remove).prune()


def group_of(model: nn.Module, graph: Any, name: str, channels: Sequence[int]) -> Any:
    """torch-pruning's group: what goes from each module with these channels of the group called ``name``."""
    layer = model.get_submodule(name)
    return graph.get_pruning_group(layer, _pruner_of(layer), idxs=list(channels))


def channels_of(model: nn.Module, name: str) -> int:
    """How many channels the layer called ``name`` gives."""
    return len(surgery.weighted_layers(model)[name].weight)


def _root_types() -> tuple[type[nn.Module], ...]:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def _pruner_of(layer: nn.Module) -> Any:
    return tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels


def _giving(group: Any) -> list[nn.Module]:
    """The modules whose output channels the group removes."""
    return [item.dep.target.module for item in group if item.dep.handler.__name__ == "prune_out_channels"]


def _readers(group: Any, names: Mapping[nn.Module, str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for item in group:
        module = item.dep.target.module
        if module in names and item.dep.handler.__name__ == "prune_in_channels":
            width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            shares[names[module]] = shares.get(names[module], 0.0) + len(item.idxs) / width
    return shares


def _shared(group: Any, names: Mapping[nn.Module, str], owners: Counter[int]) -> str | None:
    for item in group:
        module = item.dep.target.module
        if module in names and owners[id(module.weight)] > 1:
            return f"the weight of {names[module]} is another layer's too"
    return None


def _reason_to_leave(
    group: Any, layers: Sequence[str], outputs: set[str], keep: Sequence[str], names: Mapping[nn.Module, str]
) -> str | None:
    if outputs & set(layers):
        return "its channels are the model's outputs"
    kept = [name for name in layers if surgery.matches(name, keep)]
    if kept:
        return f"--keep names {kept[0]}"
    for item in group:
        module = item.dep.target.module
        groups = getattr(module, "groups", 1)
        sides = {getattr(module, side, 0) for side in ("in_channels", "out_channels")}
        if isinstance(groups, int) and groups > 1 and sides not in ({0}, {groups}):  # depthwise ones can be followed
            return f"grouped convolution {names.get(module, '')}"
    return None
