"""Removing whole residual blocks: the network becomes shallower.

A block that adds something to what it reads, and gives a tensor of that shape, may be left out (Veit, Wilber and
Belongie 2016, arXiv 1605.06431). The block whose absence changes the network's output least on calibration samples,
E|y' - y|^2 / E|y|^2, goes first; then the next, of the network without it. What is left can be fitted to what the
whole network gave (:mod:`.recover`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import attached
from laconic.steps.prune.recover import follow, least_squares
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.settings import check_types


@dataclass(frozen=True)
class PruneBlocks:
    """Leave out the ``blocks`` that are named, and others until a fraction ``ratio`` of all residual blocks is gone, 0
    up to, not including, 1. ``recovery``: least_squares fits every layer that is left."""

    ratio: float = 0.0
    blocks: tuple[str, ...] = ()
    recovery: Literal["none", "least_squares"] = "none"

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.ratio < 1:
            raise RecipeError("ratio of PruneBlocks", got=self.ratio, wanted="0 up to, not including, 1")

    @torch.no_grad()
    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        if attached(model) is not None:
            raise RecipeError("PruneBlocks after Quantize", fix="prune first, then quantize")
        if not self.ratio and not self.blocks:
            return model, {"removed": [], "changes": {}}
        inputs = calibration_inputs(task)
        model.eval()
        free = removable_blocks(model, {name: x[:2] for name, x in inputs.items()}, context.keep)
        for block in self.blocks:
            if block not in free:
                wanted = f"one of {', '.join(free)}" if free else "none, there is no residual block"
                raise RecipeError("PruneBlocks of what is no residual block", got=block, wanted=wanted)
        original = None if self.recovery == "none" else copy.deepcopy(model)
        removed, changes = list(self.blocks), dict[str, float]()
        for block in removed:
            surgery.set_module(model, block, Passed())
        wanted_outputs = _outputs(model, inputs)
        for _ in range(round(self.ratio * len(free)) - len(removed)):
            costs = {block: _change(model, block, inputs, wanted_outputs) for block in free if block not in removed}
            least = min(costs, key=costs.__getitem__)
            surgery.set_module(model, least, Passed())
            removed.append(least)
            changes[least] = round(costs[least], 6)
            context.progress(f"without {least}", len(removed) / len(free))
        facts: Facts = {"removed": removed, "changes": changes}
        if original is not None:
            plain = [n for n, x in surgery.weighted_layers(model).items() if not parametrize.is_parametrized(x)]
            fitted = [name for name in plain if not surgery.matches(name, context.keep)]
            facts |= follow(original, model, dict.fromkeys(fitted, least_squares), {}, task, context)
        return model, facts

    def restore(self, model: Any, facts: Facts) -> Any:
        for block in facts["removed"]:
            surgery.set_module(model, block, Passed())
        return model


class Passed(nn.Module):
    """What a block that was left out does: its first argument goes on."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def removable_blocks(model: nn.Module, example: Mapping[str, Tensor], keep: Sequence[str]) -> list[str]:
    """The residual blocks that hold none of the layers to keep."""
    kept = [name for name in surgery.weighted_layers(model) if surgery.matches(name, keep)]
    found = residual_blocks(model, example)
    return [block for block in found if not any(name.startswith(f"{block}.") for name in kept)]


def residual_blocks(model: nn.Module, example: Mapping[str, Tensor]) -> list[str]:
    """The modules that add something to what they read and give a tensor of its shape, and have none such in them."""
    names = {module: name for name, module in model.named_modules()}
    entered: dict[str, Tensor] = {}
    times: dict[str, int] = {}
    shaped: set[str] = set()
    added: set[str] = set()

    def enter(module: nn.Module, args: Any) -> None:
        if module in names and args and isinstance(args[0], Tensor):
            entered[names[module]] = args[0]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        name = names.get(module)
        if name is not None:
            times[name] = times.get(name, 0) + 1
            if name in entered and isinstance(output, Tensor) and output.shape == entered[name].shape:
                shaped.add(name)

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        if "/add" in key or "/iadd" in key:
            read = {id(value) for value in args if isinstance(value, Tensor)}
            added.update(n for n, x in entered.items() if id(x) in read and (module == n or module.startswith(f"{n}.")))
        return func(*args, **kwargs)

    hooks = nn.modules.module
    watching = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        with torch.no_grad(), surgery.watched(model, handler):
            surgery.call(model, example)
    finally:
        for hook in watching:
            hook.remove()
    weighted = list(surgery.weighted_layers(model))
    found = [
        name
        for name in names.values()
        if name in shaped & added and times[name] == 1 and any(layer.startswith(f"{name}.") for layer in weighted)
    ]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The first output."""
    return next(iter(surgery.call(model, inputs).values()))


def _change(model: nn.Module, block: str, inputs: Mapping[str, Tensor], wanted: Tensor) -> float:
    """E|y' - y|^2 / E|y|^2 with y' of the network without ``block``."""
    module = model.get_submodule(block)
    surgery.set_module(model, block, Passed())
    try:
        found = _outputs(model, inputs)
    finally:
        surgery.set_module(model, block, module)
    if not bool(torch.isfinite(found).all()):
        raise TrialError(f"outputs that are not finite without {block}")
    return float((found - wanted).square().mean() / wanted.square().mean().clamp_min(torch.finfo(wanted.dtype).tiny))
