"""Removing whole channels, and everything coupled to them: the network becomes really smaller.

Per group of coupled channels (:mod:`.groups`) those worth least by a criterion (:mod:`.criteria`) go; with ``scope``
global the least of all groups. Counts are rounded to what the target's kernels like, at least one channel stays, and
what cannot be pruned is left whole and named in the facts. What is left can be fitted to what the whole network gave
(:mod:`.recover`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import attached
from laconic.steps.prune.groups import MIXED, Coupling, Graph, Units, coupling, guilty, pruned
from laconic.steps.prune.recover import follow, least_squares
from laconic.steps.prune.scores import channel_scores
from laconic.steps.settings import check_types

ChannelCriterion = Literal[
    "l1",
    "l2",
    "lamp",
    "bn_scale",
    "geometric_median",
    "apoz",
    "taylor",
    "taylor_abs",
    "obd",
    "obs",
    "woodfisher",
    "random",
]
_NOTHING = "no batch norm, or no layer that reads the channels"


@dataclass(frozen=True)
class PruneChannels:
    """Remove a fraction of the channels: ``ratio`` of every group (``scope`` global: of all together), or what
    ``layers`` says for a group by its name, 0 (untouched) up to, not including, 1.

    ``recovery``: batch_norm estimates batch norms again on calibration samples, least_squares also fits every layer.
    """

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    criterion: ChannelCriterion = "l2"
    scope: Literal["layer", "global"] = "layer"
    recovery: Literal["none", "batch_norm", "least_squares"] = "none"

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_types(self)
        for name, ratio in {"ratio": self.ratio, **self.layers}.items():
            if not 0 <= ratio < 1:
                raise RecipeError(f"PruneChannels of {name}", got=ratio, wanted="0 up to, not including, 1")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        _check_form(model)
        if not any((self.ratio, *self.layers.values())):
            return model, {"removed": {}, "left_whole": {}, "inputs": {}}
        batch = task.train.read([0, 1])
        example = {name: torch.as_tensor(x) for name, x in batch.inputs.items()}
        touched = None if self.ratio else [name for name, ratio in self.layers.items() if ratio]
        shapes = _output_shapes(model.eval(), example)
        coupled = coupling(model, example, context.keep, touched)
        _check_names(self.layers, coupled)
        original = None if self.recovery == "none" else copy.deepcopy(model)
        removed, whole = self._chosen(model, coupled, task, context)
        whole |= dict.fromkeys(guilty(model, example, coupled.graph, removed), MIXED)
        removed = {name: indices for name, indices in removed.items() if name not in whole}
        kept = _kept(coupled.graph, removed)
        pruned(model, coupled.graph, removed)
        try:
            after = _output_shapes(model, example)
        except TrialError:
            raise
        except Exception as error:  # whatever a network does whose sizes no longer fit
            raise TrialError(f"the pruned model does not run: {type(error).__name__}: {error}") from error
        if after != shapes:
            raise TrialError(f"pruning changed the model's outputs from {shapes} to {after}")
        facts: Facts = {"removed": removed, "left_whole": coupled.left_whole | whole, "inputs": _shapes(example)}
        if original is not None and removed:
            layers = surgery.weighted_layers(model) if self.recovery == "least_squares" else {}
            fitted = [name for name in layers if not surgery.matches(name, context.keep)]
            facts |= follow(original, model, dict.fromkeys(fitted, least_squares), kept, task, context)
        return model, facts

    def restore(self, model: Any, facts: Facts) -> Any:
        if not facts["inputs"]:
            return model
        example = {name: torch.zeros(shape) for name, shape in facts["inputs"].items()}
        coupled = coupling(model, example, (), tried=())
        pruned(model, coupled.graph, facts["removed"])
        return model

    def _chosen(
        self, model: nn.Module, coupled: Coupling, task: Task, context: Context
    ) -> tuple[dict[str, list[int]], dict[str, str]]:
        """The channels to remove by group, and the groups of which the criterion says nothing."""
        asked = [group for group in coupled.groups if self.layers.get(group.name, self.ratio)]
        scores = channel_scores(model, coupled.graph, asked, self.criterion, task, context)
        silent = {g.name: f"{self.criterion} says nothing of it: {_NOTHING}" for g in asked if g.name not in scores}
        if asked and not scores:
            raise RecipeError(f"PruneChannels by {self.criterion}", got=_NOTHING, fix="choose another criterion")
        ratios = {name: self.layers.get(name, self.ratio) for name in scores}
        if self.scope == "global":
            ratios |= _shared_out({n: s for n, s in scores.items() if n not in self.layers}, self.ratio)
        removed = {}
        for group in asked:
            if group.name in scores:
                wanted = channels_kept(group.channels, ratios[group.name], context.traits.channel_multiple)
                least = scores[group.name].argsort(stable=True)[: group.channels - wanted]
                if len(least):
                    removed[group.name] = sorted(least.tolist())
        return removed, silent


def channels_kept(channels: int, ratio: float, multiple: int) -> int:
    """How many of ``channels`` stay: the nearest multiple of :func:`notch`, and one at least."""
    step = notch(channels, multiple)
    kept = round(channels * (1 - ratio) / step) * step
    return min(channels, max(kept, min(step, channels)))


def notch(channels: int, multiple: int) -> int:
    """How many of a layer's channels go at a time, where the target likes a ``multiple``: an eighth of them, or up to
    four a quarter, as a power of two (a count that four does not divide can be slower than the next that it does)."""
    most = min(multiple, max(channels // 8, min(4, channels // 4)), channels)
    return 1 << max(0, most.bit_length() - 1)


def _shared_out(scores: Mapping[str, Tensor], ratio: float) -> dict[str, float]:
    """The share of each group among the lowest ``ratio`` of all groups' channels."""
    if not scores:
        return {}
    everything = torch.cat([score.double() for score in scores.values()])
    whose = torch.cat([torch.full((len(score),), i) for i, score in enumerate(scores.values())])
    going = whose[everything.argsort(stable=True)[: round(ratio * len(everything))]]
    counts = torch.bincount(going, minlength=len(scores))
    return {name: int(count) / len(scores[name]) for name, count in zip(scores, counts, strict=True)}


def _check_form(model: nn.Module) -> None:
    if attached(model) is not None:
        raise RecipeError("PruneChannels after Quantize", fix="prune first, then quantize")
    for name, layer in surgery.weighted_layers(model).items():
        if parametrize.is_parametrized(layer, "weight"):
            raise RecipeError(f"PruneChannels of {name}, whose weight has another form already", fix="prune it first")


def _check_names(names: Mapping[str, float], coupled: Coupling) -> None:
    leaders = {group.name for group in coupled.groups}
    for name in sorted(set(names) - leaders):
        wanted, why = ", ".join(group.name for group in coupled.groups), coupled.left_whole
        leader = next((group.name for group in coupled.groups if name in group.layers), None)
        reason = f"its channels go with those of {leader}" if leader else why.get(name, why.get(""))
        raise RecipeError("PruneChannels of a layer that leads no group", got=name, wanted=wanted or "none", fix=reason)


def _kept(graph: Graph, removed: Units) -> dict[str, Tensor]:
    """The channels that stay, by the modules that lose some."""
    after = graph.without(removed)
    found = {}
    for (path, dim), axis in graph.axes.items():
        owner, _, kind = path.rpartition(".")
        if kind == "weight" and axis.role != "reads" and len(after.axes[path, dim].channels) < len(axis.channels):
            (stays,) = np.isin(axis.channels, after.axes[path, dim].channels).nonzero()
            found[owner] = torch.as_tensor(stays)
    return found


@torch.no_grad()
def _output_shapes(model: nn.Module, example: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    outputs = surgery.call(model, example)
    for name, y in outputs.items():
        if not bool(torch.isfinite(y).all()):
            raise TrialError(f"values of {name} that are not finite")
    return {name: y.shape for name, y in outputs.items()}


def _shapes(example: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(x.shape) for name, x in example.items()}
