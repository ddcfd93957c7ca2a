"""Channels that must go together: the coupled groups of a network, from torch-pruning's dependency graph.

A group is named after the first layer, in the order of definition, that gives its channels. (DepGraph, Fang et al.
2023, arXiv 2301.12900.)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from laconic import surgery


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


def coupling(model: nn.Module, example: Mapping[str, Tensor], keep: Sequence[str]) -> Coupling:
    """The prunable groups of ``model``; ``example`` has one or more samples.

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
    inputs = next(iter(example.values())) if len(example) == 1 else dict(example)
    left_whole: dict[str, str] = {}
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
            found = list(graph.get_all_groups(root_module_types=list(_root_types())))
    except Exception as error:  # it raises whatever its tracing runs into
        return Coupling((), {"": f"torch-pruning cannot trace the model: {type(error).__name__}: {error}"}, None)
    groups = []
    for group in found:
        layers = tuple(names[m] for m in _giving(group) if m in names)
        if not layers:
            continue
        first = min(layers, key=list(names.values()).index)
        reason = _reason_to_leave(group, layers, outputs, keep, names)
        if reason:
            left_whole[first] = reason
        else:
            groups.append(ChannelGroup(first, channels_of(model, first), layers, _readers(group, names)))
    return Coupling(tuple(sorted(groups, key=lambda g: list(names.values()).index(g.name))), left_whole, graph)


def pruned(model: nn.Module, graph: Any, name: str, remove: Sequence[int]) -> None:
    """Remove these channels of the group called ``name`` from the model, in place."""
    layer = model.get_submodule(name)
    group = graph.get_pruning_group(layer, _pruner_of(layer), idxs=list(remove))
    group.prune()


def importance(model: nn.Module, graph: Any, group: ChannelGroup) -> Tensor:
    """Magnitude: per channel of the group, the mean over coupled weights of ||w_c||^2, each layer scaled to mean one.

    Both the weights that give a channel and those that read it count (the group norm of DepGraph, eq. 4, with p = 2).
    """
    layer = model.get_submodule(group.name)
    total = torch.zeros(group.channels)
    members = 0
    for item in graph.get_pruning_group(layer, _pruner_of(layer), idxs=list(range(group.channels))):
        target = item.dep.target.module
        weight = getattr(target, "weight", None)
        if not isinstance(target, _root_types()) or weight is None:
            continue
        rows = weight.detach()
        if not graph.is_out_channel_pruning_fn(item.dep.handler):
            if getattr(target, "groups", 1) > 1:
                continue
            rows = rows.transpose(0, 1)
        norms = rows.flatten(1).pow(2).sum(1)[item.idxs]
        score = torch.zeros(group.channels).index_add_(0, torch.as_tensor(item.root_idxs), norms)
        total += score / score.mean().clamp_min(1e-30)
        members += 1
    return total / max(members, 1)


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
        if isinstance(groups, int) and 1 < groups < getattr(module, "in_channels", 0):
            return f"grouped convolution {names.get(module, '')}"
    return None
