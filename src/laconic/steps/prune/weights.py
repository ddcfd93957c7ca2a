"""Setting single weights, blocks or kernels to zero for good: the zeros are masked, trained around, and in the file.

One shot: each layer keeps ``density`` of its units (:mod:`.cut`), the best by a criterion (:mod:`.criteria`), or, with
``scope`` global, whichever score highest in all layers together. N:M patterns (Mishra et al. 2021, arXiv 2104.08378)
keep n of each m input channels. With ``update`` obs the weights that stay make up for those that go, layer by layer, in
the order in which the layers run (:mod:`.obs`, :mod:`.recover`).

Runtimes multiply by these zeros like by any other number: the file packs better, it runs as fast as before.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.prune import obs
from laconic.steps.prune.criteria import CRITERIA, Part
from laconic.steps.prune.cut import Cut, Granularity, matrix_of
from laconic.steps.prune.evidence import gather, portions
from laconic.steps.prune.mask import install, mask_of, only_masked
from laconic.steps.prune.recover import Rows, follow
from laconic.steps.settings import check_types

WeightCriterion = Literal["l1", "l2", "lamp", "taylor", "taylor_abs", "obd", "obs", "woodfisher", "random"]
_HALF = 0.5


@dataclass(frozen=True)
class PruneWeights:
    """Keep a share ``density`` of the weights, above 0 up to 1, or what ``layers`` says for layers by globs.

    ``granularity``: weight, kernel, a block of outputs x inputs as 4x1, a pattern as 2:4 (which is its own density).
    ``scope``: the share is of each layer, or of all layers together. ``exclude``: globs of layers left as they are.
    """

    density: float = _HALF
    granularity: str = "weight"
    criterion: WeightCriterion = "l2"
    scope: Literal["layer", "global"] = "layer"
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    update: Literal["none", "obs"] = "none"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name, density in {"density": self.density, **self.layers}.items():
            if not 0 < density <= 1:
                wanted = "above 0 (a layer would be empty) up to 1"
                raise RecipeError(f"PruneWeights of {name}", got=density, wanted=wanted)
        if Granularity(self.granularity).pattern and (
            self.density != _HALF or any(d != 1 for d in self.layers.values()) or self.scope != "layer"
        ):
            name = f"PruneWeights of {self.granularity} with a density or scope of its own"
            raise RecipeError(name, fix="the pattern says how many weights stay; in layers, 1 leaves a layer out")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        granularity = Granularity(self.granularity)
        layers, left_whole = self._layers(model, context)
        cuts: dict[str, Cut] = {}
        for name, layer in layers.items():
            cut = granularity.cut(layer)
            if isinstance(cut, str):
                left_whole[name] = cut
            elif self._density(name) < 1 or self.scope == "global":
                cuts[name] = cut
        if not cuts or (self.scope == "global" and self.density == 1 and not self.layers):
            return model, {"layers": {}, "left_whole": left_whole}
        original = copy.deepcopy(model) if self.update == "obs" else None
        keep = {n: max(1, round(self._density(n) * _units(cuts[n]))) for n in cuts}
        if original is None or not self._chooses_on_the_way(granularity):
            scores = self._scores(model, cuts, task, context)
            if self.scope == "global":
                keep |= _shared_out(
                    scores, cuts, [n for n in cuts if surgery.stated(n, self.layers) is None], self.density
                )
            for name, score in scores.items():
                units = _best(score, cuts[name], keep[name], granularity.pattern)
                mask = cuts[name].spread(units, matrix_of(layers[name].weight).shape)
                install(layers[name], mask.reshape(layers[name].weight.shape))
        facts: Facts = {}
        if original is not None:
            facts = self._update(original, model, cuts, keep, task, context)
        density = {name: round(float((layers[name].weight != 0).float().mean()), 6) for name in cuts}
        return model, {"layers": density, "left_whole": left_whole, **facts}

    def restore(self, model: Any, facts: Facts) -> Any:
        layers = surgery.weighted_layers(model)
        for name in facts["layers"]:
            install(layers[name], torch.ones_like(layers[name].weight))
        return model

    def _layers(self, model: nn.Module, context: Context) -> tuple[dict[str, surgery.Layer], dict[str, str]]:
        """The layers to prune, and those left whole with the reason."""
        layers = surgery.weighted_layers(model)
        surgery.require_matches("layers of PruneWeights", self.layers, list(layers))
        surgery.require_matches("exclude of PruneWeights", self.exclude, list(layers))
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        found, left_whole = {}, {}
        for name, layer in layers.items():
            if surgery.matches(name, (*self.exclude, *context.keep)):
                continue
            if not only_masked(layer):
                fix = "put PruneWeights before that step"
                raise RecipeError(f"PruneWeights of {name}, whose weight has another form already", fix=fix)
            if owners[id(surgery.parameter_of(layer))] > 1:
                left_whole[name] = "its weight is another layer's too"
            else:
                found[name] = layer
        return found, left_whole

    def _density(self, name: str) -> float:
        named = surgery.stated(name, self.layers)
        return self.density if named is None else named

    def _chooses_on_the_way(self, granularity: Granularity) -> bool:
        """Whether single weights are chosen as the others are updated, as OBS does."""
        single = granularity.block is None and granularity.name != "kernel"
        return self.criterion == "obs" and self.scope == "layer" and single

    def _scores(self, model: nn.Module, cuts: Mapping[str, Cut], task: Task, context: Context) -> dict[str, Tensor]:
        criterion = CRITERIA[self.criterion]
        generator, layers = torch.Generator().manual_seed(context.seed), surgery.weighted_layers(model)
        found = {}
        for names in portions({name: layers[name].weight.numel() for name in cuts}, criterion.needs):
            for name, evidence in gather(model, names, criterion.needs, task, context).items():
                part = Part(evidence, cuts[name])
                scores = criterion.score([part], generator).double()
                gone = part.weight.count_nonzero(1) == 0
                found[name] = scores.masked_fill(gone, -torch.inf)  # what an earlier mask took stays away
        return found

    def _update(
        self,
        original: nn.Module,
        model: nn.Module,
        cuts: Mapping[str, Cut],
        keep: Mapping[str, int],
        task: Task,
        context: Context,
    ) -> Facts:
        granularity = Granularity(self.granularity)
        on_the_way = self._chooses_on_the_way(granularity)

        def revise(name: str, layer: surgery.Layer, rows: Rows) -> None:
            weight, moments = rows.regressed(), rows.moments()
            if on_the_way:
                mask = obs.selected(weight, moments, keep[name], cuts[name], granularity.pattern)
            else:
                carried = mask_of(layer)
                assert carried is not None
                mask = matrix_of(carried.mask)
            weight = obs.compensated(weight, moments, mask)
            install(layer, mask.reshape(layer.weight.shape))
            surgery.parameter_of(layer).copy_(weight.reshape(layer.weight.shape))
            rows.correct_bias(weight)

        return follow(original, model, dict.fromkeys(cuts, revise), {}, task, context)


def _units(cut: Cut) -> int:
    high, wide = cut.shape
    return high * wide


def _best(scores: Tensor, cut: Cut, keep: int, pattern: tuple[int, int] | None) -> Tensor:
    """Which units stay: bool (units,)."""
    if pattern is None:
        groups, keep_each = scores[None], keep
    else:
        groups, keep_each = scores.reshape(-1, pattern[1]), pattern[0]
    going = groups.argsort(dim=1, stable=True)[:, : groups.shape[1] - keep_each]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, going, False).flatten()


def _shared_out(
    scores: Mapping[str, Tensor], cuts: Mapping[str, Cut], names: list[str], density: float
) -> dict[str, int]:
    """How many units each layer keeps if the best of all layers stay, ``density`` of their weights; one at least."""
    if not names:
        return {}
    sizes = torch.cat([torch.full((len(scores[n]),), cuts[n].height * cuts[n].width) for n in names])
    whose = torch.cat([torch.full((len(scores[n]),), i) for i, n in enumerate(names)])
    best = torch.cat([scores[n] for n in names]).argsort(descending=True, stable=True)
    staying = sizes[best].cumsum(0) <= round(density * int(sizes.sum()))
    counts = torch.bincount(whose[best[staying]], minlength=len(names))
    return {name: max(1, int(count)) for name, count in zip(names, counts, strict=True)}
