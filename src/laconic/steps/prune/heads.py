"""Removing attention heads: queries, keys, values and their share of the output layer are really gone.

Michel, Levy and Neubig 2019 (arXiv 1905.10650). In each attention module (:mod:`.attention`) the heads worth least go;
what a head is worth is told from the columns of the output layer that read it, by any criterion (:mod:`.criteria`). A
removal is tried out: a module is left whole if the network without one of its heads does not compute what it computes
with that head unread.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.fake_quantize import attached
from laconic.steps.prune.attention import Attention, find, linear, shrink
from laconic.steps.prune.criteria import CRITERIA, Part
from laconic.steps.prune.cut import Cut
from laconic.steps.prune.evidence import gather, portions
from laconic.steps.prune.recover import follow, least_squares
from laconic.steps.prune.resize import Undo, failing, undone
from laconic.steps.settings import check_types

HeadCriterion = Literal["l1", "l2", "taylor", "taylor_abs", "obd", "obs", "woodfisher", "random"]
_TOLERANCE = 1e-3
_MIXED = "the way of its heads through the network cannot be followed"


@dataclass(frozen=True)
class PruneHeads:
    """Remove a fraction of the attention heads: ``ratio`` of each attention module, or what ``layers`` says for modules
    by globs, 0 up to, not including, 1; one head stays. ``recovery``: least_squares fits every layer behind it."""

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    criterion: HeadCriterion = "l2"
    recovery: Literal["none", "least_squares"] = "none"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name, ratio in {"ratio": self.ratio, **self.layers}.items():
            if not 0 <= ratio < 1:
                raise RecipeError(f"PruneHeads of {name}", got=ratio, wanted="0 up to, not including, 1")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if attached(model) is not None:
            raise RecipeError("PruneHeads after Quantize", fix="prune first, then quantize")
        if not any((self.ratio, *self.layers.values())):
            return model, {"removed": {}, "left_whole": {}}
        batch = task.train.read([0, 1])
        example = {name: torch.as_tensor(x) for name, x in batch.inputs.items()}
        found = _free(model.eval(), context.keep)
        surgery.require_matches("layers of PruneHeads", self.layers, list(found))
        counts = {name: round(self._ratio(name) * a.groups) for name, a in found.items()}
        counts = {name: min(count, found[name].groups - 1) for name, count in counts.items()}
        _check_form(model, [found[name] for name, count in counts.items() if count])
        tried = [name for name, count in counts.items() if count]
        left_whole = dict.fromkeys(_failing(model, {name: found[name] for name in tried}, example), _MIXED)
        chosen = {name: found[name] for name, count in counts.items() if count and name not in left_whole}
        original = None if self.recovery == "none" else copy.deepcopy(model)
        removed, kept = {}, {}
        for name, scores in self._scores(model, chosen, task, context).items():
            removed[name] = sorted(scores.argsort(stable=True)[: counts[name]].tolist())
            stays = [group for group in range(chosen[name].groups) if group not in removed[name]]
            for giver in chosen[name].giving:
                (rows,) = np.isin(chosen[name].rows(linear(model, giver), giver), stays).nonzero()
                kept[giver] = torch.as_tensor(rows)
            shrink(model, chosen[name], stays)
        facts: Facts = {"removed": removed, "left_whole": left_whole}
        if original is not None and removed:
            plain = [n for n, x in surgery.weighted_layers(model).items() if not parametrize.is_parametrized(x)]
            fitted = [name for name in plain if not surgery.matches(name, context.keep)]
            facts |= follow(original, model, dict.fromkeys(fitted, least_squares), kept, task, context)
        return model, facts

    def restore(self, model: Any, facts: Facts) -> Any:
        found = find(model) if facts["removed"] else {}
        for name, groups in facts["removed"].items():
            shrink(model, found[name], [g for g in range(found[name].groups) if g not in groups])
        return model

    def _ratio(self, name: str) -> float:
        stated = [ratio for glob, ratio in self.layers.items() if surgery.matches(name, [glob])]
        return stated[-1] if stated else self.ratio

    def _scores(
        self, model: nn.Module, chosen: Mapping[str, Attention], task: Task, context: Context
    ) -> dict[str, Tensor]:
        criterion = CRITERIA[self.criterion]
        generator = torch.Generator().manual_seed(context.seed)
        readers = {a.out: a for a in chosen.values()}
        scores = {}
        numbers = {out: linear(model, out).weight.numel() for out in readers}
        for names in portions(numbers, criterion.needs):
            for out, evidence in gather(model, names, criterion.needs, task, context).items():
                rows, columns = evidence.weight.shape
                cut = Cut(torch.arange(rows), rows, torch.arange(columns), columns // readers[out].groups)
                scores[readers[out].name] = criterion.score([Part(evidence, cut)], generator)
        return {name: scores[name] for name in chosen}


def removable_heads(model: nn.Module, example: Mapping[str, Tensor], keep: Sequence[str]) -> dict[str, Attention]:
    """The attention modules, by name, of which heads can go."""
    found = {name: a for name, a in _free(model, keep).items() if a.groups > 1}
    fails = _failing(model, found, example)
    return {name: attention for name, attention in found.items() if name not in fails}


def _free(model: nn.Module, keep: Sequence[str]) -> dict[str, Attention]:
    return {
        name: attention
        for name, attention in find(model).items()
        if not any(surgery.matches(one, keep) for one in (name, *attention.giving, attention.out))
    }


def _failing(model: nn.Module, found: Mapping[str, Attention], example: Mapping[str, Tensor]) -> list[str]:
    """Those that cannot lose a head."""
    return failing(list(found), lambda names: _can_go(model, [found[name] for name in names], example))


def _check_form(model: nn.Module, chosen: Sequence[Attention]) -> None:
    for attention in chosen:
        for name in (*attention.giving, attention.out):
            if parametrize.is_parametrized(linear(model, name)):
                raise RecipeError(f"PruneHeads of {name}, whose weight has another form already", fix="prune it first")


@torch.no_grad()
def _can_go(model: nn.Module, attentions: Sequence[Attention], example: Mapping[str, Tensor]) -> bool:
    """Whether the network without the first heads computes what it does with those heads unread; compared are the
    outputs, and what each attention module gives."""
    unread = {a.out: torch.as_tensor((a.columns(linear(model, a.out)) == 0).nonzero()[0]) for a in attentions}
    wanted = _outputs(model, example, unread)
    undo: Undo = []
    with undone(undo):
        try:
            for attention in attentions:
                undo += shrink(model, attention, range(1, attention.groups))
            found = _outputs(model, example, dict.fromkeys(unread))
        except Exception:  # whatever a network does that is built otherwise
            return False
    return found.keys() == wanted.keys() and all(
        found[name].shape == y.shape and float((found[name] - y).abs().max()) <= _TOLERANCE * float(y.abs().max())
        for name, y in wanted.items()
    )


def _outputs(model: nn.Module, example: Mapping[str, Tensor], unread: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The model's outputs and those of the layers named in ``unread``, whose inputs named there are zero."""
    seen: dict[str, Tensor] = {}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        if module not in unread or func is not F.linear:
            return func(*args, **kwargs)
        places = unread[module]
        if places is not None:
            args = (args[0].index_fill(-1, places, 0.0), *args[1:])
        seen[key] = func(*args, **kwargs)
        return seen[key].clone()

    with surgery.watched(model, handler):
        outputs = surgery.call(model, example)
    return seen | {f" {name}": y for name, y in outputs.items()}
