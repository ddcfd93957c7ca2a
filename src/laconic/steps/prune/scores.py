"""What each channel of a coupled group is worth by any criterion: who gives it, who reads it, and its norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Task
from laconic.steps.prune.criteria import CRITERIA, Criterion, Part, sum_of
from laconic.steps.prune.cut import Cut
from laconic.steps.prune.evidence import Evidence, gather, portions
from laconic.steps.prune.groups import ChannelGroup, Graph

_LEAST = 1e-30


@dataclass(frozen=True)
class Members:
    """The modules that hold some ``channels`` of a group, all of them evenly, by name, each with the cut that makes
    these channels its units."""

    channels: Tensor
    givers: Mapping[str, Cut]
    readers: Mapping[str, Cut]
    norms: Mapping[str, Cut]

    def looked_at(self, criterion: Criterion) -> list[tuple[str, Cut]]:
        if criterion.looks_at == "both":
            return [*self.givers.items(), *self.readers.items()]
        chosen: Mapping[str, Cut] = getattr(self, criterion.looks_at)
        return list(chosen.items())


def members(model: nn.Module, graph: Graph, group: ChannelGroup) -> list[Members]:
    """Who gives and who reads the channels of ``group``: convolutions, linear layers and batch norms; apart for
    channels that lie in different modules."""
    layers = surgery.weighted_layers(model)
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    found = graph.places(group.name, range(group.channels))
    counts = {where: torch.bincount(whose, minlength=group.channels) for where, (_, whose, _) in found.items()}
    if not counts:
        return []
    alike: dict[tuple[int, ...], list[int]] = {}
    for channel, held in enumerate(torch.stack(list(counts.values()), 1).tolist()):
        alike.setdefault(tuple(held), []).append(channel)
    parts = []
    for channels in map(torch.tensor, alike.values()):
        cuts: dict[str, dict[str, Cut]] = {"gives": {}, "reads": {}, "passes": {}}
        for (path, _), (role, whose, places) in found.items():
            owner, _, kind = path.rpartition(".")
            own = torch.isin(whose, channels)
            if kind != "weight" or not bool(own.any()):
                continue
            if owner in norms:
                cuts["passes"][owner] = Cut(channels, 1, torch.arange(1), 1)
            elif owner in layers and role != "passes":
                times = int(own.sum()) // len(channels)
                cuts[role][owner] = _cut(layers[owner].weight.shape, role, places[own], times)
        parts.append(Members(channels, cuts["gives"], cuts["reads"], cuts["passes"]))
    return parts


def _cut(shape: torch.Size, role: str, places: Tensor, times: int) -> Cut:
    """The cut of a weight of ``shape``; each channel has ``times`` of the ``places``, one after the other."""
    out, inputs, *space = shape
    kernel = math.prod(space)
    if role == "gives":
        return Cut(places, times, torch.arange(inputs * kernel), inputs * kernel)
    columns = (places[:, None] * kernel + torch.arange(kernel)).flatten()
    return Cut(torch.arange(out), out, columns, times * kernel)


def channel_scores(
    model: nn.Module, graph: Graph, groups: Sequence[ChannelGroup], name: str, task: Task, context: Context
) -> dict[str, Tensor]:
    """The scores (channels,) of every group by the criterion called ``name``; groups of which it says nothing, for want
    of a batch norm or of a layer that reads them, are left out."""
    criterion = CRITERIA[name]
    generator = torch.Generator().manual_seed(context.seed)
    looked_at: dict[tuple[str, int], list[tuple[str, Cut]]] = {}
    held: dict[str, list[Tensor]] = {}
    for group in groups:
        parts = members(model, graph, group)
        if all(part.looked_at(criterion) for part in parts):
            held[group.name] = [part.channels for part in parts]
            looked_at |= {(group.name, i): part.looked_at(criterion) for i, part in enumerate(parts)}
    modules = dict(model.named_modules())
    numbers = {n: sum(modules[m].weight.numel() for m, _ in parts) for n, parts in looked_at.items()}
    scored: dict[tuple[str, int], Tensor] = {}
    for some in portions(numbers, criterion.needs):
        layers = {layer for n in some for layer, _ in looked_at[n] if criterion.looks_at != "norms"}
        known = gather(model, sorted(layers), criterion.needs, task, context) if layers else {}
        for n in some:
            shares = [Part(known[m] if m in known else _of_norm(modules[m]), cut) for m, cut in looked_at[n]]
            scored[n] = _scored(criterion, shares, generator)
    return {n: _put_together([scored[n, i] for i in range(len(parts))], parts) for n, parts in held.items()}


def _put_together(scores: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
    found = torch.cat(list(scores))
    return torch.empty_like(found).index_copy_(0, torch.cat(list(channels)), found)


def _of_norm(norm: nn.Module) -> Evidence:
    """A batch norm's gains as a weight (channels, 1)."""
    gain: Tensor = norm.weight  # type: ignore[assignment]
    return Evidence(gain.detach()[:, None])


def _scored(criterion: Criterion, parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    if not criterion.each:
        return criterion.score(parts, generator)
    scores = [criterion.score([part], generator) for part in parts]
    return sum_of([score / score.mean().clamp_min(_LEAST) for score in scores]) / len(parts)
