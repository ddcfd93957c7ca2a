"""What each channel of a coupled group is worth by any criterion: who gives it, who reads it, and its norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Task
from laconic.errors import TrialError
from laconic.steps.prune.criteria import CRITERIA, Criterion, Part, sum_of
from laconic.steps.prune.cut import Cut
from laconic.steps.prune.evidence import Evidence, gather, portions
from laconic.steps.prune.groups import ChannelGroup, group_of

_LEAST = 1e-30


@dataclass(frozen=True)
class Members:
    """The modules of a group by name, each with the cut that makes the group's channels its units."""

    givers: Mapping[str, Cut]
    readers: Mapping[str, Cut]
    norms: Mapping[str, Cut]

    def looked_at(self, criterion: Criterion) -> list[tuple[str, Cut]]:
        if criterion.looks_at == "both":
            return [*self.givers.items(), *self.readers.items()]
        chosen: Mapping[str, Cut] = getattr(self, criterion.looks_at)
        return list(chosen.items())


def members(model: nn.Module, graph: Any, group: ChannelGroup) -> Members:
    """Who gives and who reads the channels of ``group``: convolutions, linear layers and batch norms.

    Raises :class:`TrialError` where a layer has more of one channel than of another.
    """
    layers: dict[nn.Module, str] = {layer: name for name, layer in surgery.weighted_layers(model).items()}
    norms = {m: name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    pairs: dict[tuple[str, str], list[Tensor]] = {}  # channel, index in the layer: (2, n)
    for item in group_of(model, graph, group.name, range(group.channels)):
        target, gives = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if target in norms and target.weight is not None:
            pairs[("norms", norms[target])] = []
        elif target in layers and (gives or getattr(target, "groups", 1) == 1):
            where = pairs.setdefault(("givers" if gives else "readers", layers[target]), [])
            where.append(torch.stack([torch.as_tensor(item.root_idxs), torch.as_tensor(item.idxs)]))
    found: dict[str, dict[str, Cut]] = {"givers": {}, "readers": {}, "norms": {}}
    for (kind, name), each in pairs.items():
        if kind == "norms":
            found[kind][name] = Cut(torch.arange(group.channels), 1, torch.arange(1), 1)
            continue
        out, inputs, *space = surgery.weighted_layers(model)[name].weight.shape
        indices, times = _by_channel(torch.cat(each, 1), group, name)
        places = math.prod(space)
        if kind == "givers":
            columns = torch.arange(inputs * places)
            found[kind][name] = Cut(indices, times, columns, len(columns))
        else:
            columns = (indices[:, None] * places + torch.arange(places)).flatten()
            found[kind][name] = Cut(torch.arange(out), out, columns, times * places)
    return Members(**found)


def _by_channel(pairs: Tensor, group: ChannelGroup, name: str) -> tuple[Tensor, int]:
    """A layer's indices ordered by channel, and how many each channel has."""
    pairs = torch.unique(pairs, dim=1)  # ordered by channel, then by index
    times, rest = divmod(pairs.shape[1], group.channels)
    if rest or not torch.equal(pairs[0], torch.arange(group.channels).repeat_interleave(times)):
        raise TrialError(f"{name} has more of some channels of {group.name} than of others")
    return pairs[1], times


def channel_scores(
    model: nn.Module, graph: Any, groups: Sequence[ChannelGroup], name: str, task: Task, context: Context
) -> dict[str, Tensor]:
    """The scores (channels,) of every group by the criterion called ``name``; groups of which it says nothing, for want
    of a batch norm or of a layer that reads them, are left out."""
    criterion = CRITERIA[name]
    generator = torch.Generator().manual_seed(context.seed)
    looked_at = {group.name: members(model, graph, group).looked_at(criterion) for group in groups}
    modules = dict(model.named_modules())
    numbers = {n: sum(modules[m].weight.numel() for m, _ in parts) for n, parts in looked_at.items() if parts}
    found = {}
    for some in portions(numbers, criterion.needs):
        layers = {layer for n in some for layer, _ in looked_at[n] if criterion.looks_at != "norms"}
        known = gather(model, sorted(layers), criterion.needs, task, context) if layers else {}
        for n in some:
            parts = [Part(known[m] if m in known else _of_norm(modules[m]), cut) for m, cut in looked_at[n]]
            found[n] = _scored(criterion, parts, generator)
    return found


def _of_norm(norm: nn.Module) -> Evidence:
    """A batch norm's gains as a weight (channels, 1)."""
    gain: Tensor = norm.weight  # type: ignore[assignment]
    return Evidence(gain.detach()[:, None])


def _scored(criterion: Criterion, parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    if not criterion.each:
        return criterion.score(parts, generator)
    scores = [criterion.score([part], generator) for part in parts]
    return sum_of([score / score.mean().clamp_min(_LEAST) for score in scores]) / len(parts)
