"""Removing whole channels, and everything coupled to them: the network becomes really smaller.

Per group of coupled channels (:mod:`.groups`) the least important fraction goes (Li et al. 2016, arXiv 1608.08710, for
magnitude). Counts are rounded to what the target's kernels like, at least one channel stays, and what cannot be pruned
is left whole and named in the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import attached
from laconic.steps.prune.groups import coupling, importance, pruned
from laconic.steps.settings import check_types


@dataclass(frozen=True)
class PruneChannels:
    """Remove a fraction of the channels: ``ratio`` of every group, or what ``layers`` says for a group by its name.

    ``layers`` maps a group's first layer to its own ratio, 0 (untouched) up to, not including, 1.
    """

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name, ratio in {"ratio": self.ratio, **self.layers}.items():
            if not 0 <= ratio < 1:
                raise RecipeError(f"PruneChannels of {name}", got=ratio, wanted="0 up to, not including, 1")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if attached(model) is not None:
            raise RecipeError("PruneChannels after Quantize", fix="prune first, then quantize")
        if not any((self.ratio, *self.layers.values())):
            return model, {"removed": {}, "left_whole": {}, "inputs": {}}
        batch = task.train.read([0, 1])
        example = {name: torch.as_tensor(x) for name, x in batch.inputs.items()}
        touched = None if self.ratio else [name for name, ratio in self.layers.items() if ratio]
        coupled = coupling(model.eval(), example, context.keep, touched)
        unknown = sorted(set(self.layers) - {group.name for group in coupled.groups})
        if unknown:
            wanted, why = ", ".join(group.name for group in coupled.groups), coupled.left_whole
            reason = why.get(unknown[0], why.get(""))
            raise RecipeError(
                "PruneChannels of a layer that leads no group", got=unknown[0], wanted=wanted or "none", fix=reason
            )
        with torch.no_grad():
            shapes = {name: y.shape for name, y in surgery.call(model, example).items()}
        removed: dict[str, list[int]] = {}
        for group in coupled.groups:
            ratio = self.layers.get(group.name, self.ratio)
            count = group.channels - channels_kept(group.channels, ratio, context.traits.channel_multiple)
            if count:
                least = importance(model, coupled.graph, group).argsort(stable=True)[:count]
                removed[group.name] = sorted(least.tolist())
                pruned(model, coupled.graph, group.name, removed[group.name])
        try:
            with torch.no_grad():
                after = {name: y.shape for name, y in surgery.call(model, example).items()}
        except Exception as error:  # whatever a network does whose sizes no longer fit
            raise TrialError(f"the pruned model does not run: {type(error).__name__}: {error}") from error
        if after != shapes:
            raise TrialError(f"pruning changed the model's outputs from {shapes} to {after}")
        return model, {"removed": removed, "left_whole": coupled.left_whole, "inputs": _shapes(example)}

    def restore(self, model: Any, facts: Facts) -> Any:
        if not facts["inputs"]:
            return model
        example = {name: torch.zeros(shape) for name, shape in facts["inputs"].items()}
        coupled = coupling(model, example, (), tried=())
        for name, indices in facts["removed"].items():
            pruned(model, coupled.graph, name, indices)
        return model


def channels_kept(channels: int, ratio: float, multiple: int) -> int:
    """How many of ``channels`` stay: the nearest multiple, of an eighth of a layer at the most, and at least one."""
    step = max(1, min(multiple, channels // 8))
    kept = round(channels * (1 - ratio) / step) * step
    return min(channels, max(kept, min(step, channels)))


def _shapes(example: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(x.shape) for name, x in example.items()}
